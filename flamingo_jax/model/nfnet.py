"""The vision encoder: a Normalizer-Free ResNet, F0 to F7 and smaller ones.

"NF" below is the code that was published with the NFNet paper (deepmind-research/nfnets); "timm" is
the PyTorch port whose weights are common. They differ in three numbers, all fields here:

| | NF, and the default | timm's dm_nfnet |
|---|---|---|
| `activation` | tanh form of GELU | exact GELU |
| `ws_form` | variance · fan_in floored at eps | eps added to the variance |
| `ws_eps` | 1e-4 | 1e-5 |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.model.convolution import ScaledConv, average_pool
from flamingo_jax.model.layers import ACTIVATIONS, Linear
from flamingo_jax.shapes import Array

GAMMAS = {
    "gelu": 1.7015043497085571,
    "gelu_tanh": 1.7015043497085571,
    "relu": 1.7139588594436646,
    "silu": 1.7881293296813965,
}
"""What makes act(x) of a unit normal x have variance 1 (NF, base.py)."""


def quad_stem(width: int) -> tuple[tuple[int, int], ...]:
    """The F-series' stem: four 3×3 convolutions to `width` channels at a quarter of the sides."""
    return ((width // 8, 2), (width // 4, 1), (width // 2, 1), (width, 2))


@dataclasses.dataclass(frozen=True)
class NFNetConfig:
    """The shape of an NFNet; the defaults are F0's.

    Attributes:
      widths: channels that each stage puts out; any number of stages.
      depths: blocks of each stage.
      strides: 1 or 2, of each stage's first block.
      stem: (channels, stride) of each of the stem's 3×3 convolutions.
      group_width: channels of a group of the 3×3 convolutions; at least the inner width = dense.
      bottleneck: inner width of a block as a share of its outer width.
      se_ratio: hidden width of squeeze-and-excite as a share of the outer width.
      channel_multiple: inner and hidden widths are rounded to multiples of this.
      alpha: scale of the residual branch.
      skip_init: initial gain of the residual branch; at 0 (SkipInit) a block adds nothing at first.
      activation: gelu | gelu_tanh | relu | silu, each times its gamma.
      ws_eps: keeps weight standardisation from dividing by zero.
      ws_form: "floor": max(variance · fan_in, eps); "add": (variance + eps) · fan_in.
      extra_conv: two 3×3 convolutions a block rather than one.
      final_width: channels of the 1×1 convolution at the end; 0 = none.
      classes: outputs of a classifier over the mean feature; 0 = none.
      stochastic_depth: rate of dropping the last block; grows linearly from 0 at the first.
      remat: recompute a block's activations in the backward pass.
      split_groups: grouped convolutions as separate dense ones; None = but on TPUs.
    """

    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    depths: tuple[int, ...] = (1, 2, 6, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: tuple[tuple[int, int], ...] = quad_stem(128)
    group_width: int = 128
    bottleneck: float = 0.5
    se_ratio: float = 0.5
    channel_multiple: int = 8
    alpha: float = 0.2
    skip_init: float = 0.0
    activation: str = "gelu_tanh"
    ws_eps: float = 1e-4
    ws_form: str = "floor"
    extra_conv: bool = True
    final_width: int = 3072
    classes: int = 0
    stochastic_depth: float = 0.0
    remat: bool = False
    split_groups: bool | None = None

    def __post_init__(self):
        """Refuses what the network cannot be built of."""
        if not len(self.widths) == len(self.depths) == len(self.strides) > 0:
            raise ValueError("widths, depths and strides must name the same number of stages")
        if set(self.strides) | {stride for _, stride in self.stem} > {1, 2}:
            raise ValueError(f"strides are 1 or 2, not {self.strides} after {self.stem}")
        if self.activation not in GAMMAS:
            raise ValueError(f"activation is {self.activation!r}; one of {', '.join(GAMMAS)}")
        if self.ws_form not in ("floor", "add"):
            raise ValueError(f"ws_form is {self.ws_form!r}; floor or add")

    @property
    def features_width(self) -> int:
        """E, the width of the features."""
        return self.final_width or self.widths[-1]

    def inner(self, out: int) -> tuple[int, int]:
        """(inner width, groups) of a block that puts out `out` channels."""
        width = self.rounded(out * self.bottleneck)
        groups = max(width // self.group_width, 1)
        return (self.group_width * groups if groups > 1 else width), groups

    def rounded(self, width: float) -> int:
        """The nearest multiple of `channel_multiple`, never more than a tenth below `width`."""
        step = self.channel_multiple
        near = max(step, int(width + step / 2) // step * step)
        return near + step if near < 0.9 * width else near

    def grid(self, image_size: int) -> int:
        """Features along a side of a square picture."""
        for stride in (*(s for _, s in self.stem), *self.strides):
            image_size = -(-image_size // stride)
        return image_size

    def features(self, image_size: int) -> int:
        """P, features of a square picture."""
        return self.grid(image_size) ** 2

    def flops(self, image_size: int) -> int:
        """FLOPs (multiplications and additions) of the forward pass of one square picture."""
        return count_flops(self, image_size)

    def first_flops(self, image_size: int) -> int:
        """Of those, the first product's: pixels need no gradient, so that it has one less."""
        out, stride = self.stem[0]
        return 2 * (-(-image_size // stride)) ** 2 * 9 * 3 * out

    def attention_flops(self, image_size: int) -> int:
        """Of those, attention's: there is none."""
        del image_size
        return 0

    def schedule(self) -> list[list[tuple[float, float]]]:
        """For each stage, each block's (beta, rate of dropping it).

        beta is 1 / the deviation expected of the block's input: it starts at 1, each block adds
        alpha² to the variance, and a stage's first block resets it (NF, nfnet.py).
        """
        stages, variance, index, total = [], 1.0, 0, sum(self.depths)
        for depth in self.depths:
            rows = []
            for block in range(depth):
                rows.append((variance**-0.5, self.stochastic_depth * index / total))
                variance = (1.0 if block == 0 else variance) + self.alpha**2
                index += 1
            stages.append(rows)
        return stages


def _f_series(step: int) -> NFNetConfig:
    return NFNetConfig(depths=tuple(depth * step for depth in (1, 2, 6, 3)))


VARIANTS: dict[str, NFNetConfig] = {
    **{f"F{i}": _f_series(i + 1) for i in range(8)},
    # 64-pixel pictures on CPUs: dense 3×3 convolutions, most of them at 8×8 and 4×4, where the
    # gradient of the kernel is fastest; 4×4 features of 256. Blocks count from the first step on.
    "demo": NFNetConfig(
        widths=(192, 512),
        depths=(1, 1),
        strides=(2, 2),
        stem=((32, 2), (64, 2)),
        group_width=256,
        activation="relu",
        final_width=256,
        skip_init=1.0,
    ),
    # For tests: grouped, four stages, two of them with a scanned rest.
    "tiny": NFNetConfig(
        widths=(16, 32, 32, 32),
        depths=(1, 2, 3, 1),
        stem=quad_stem(16),
        group_width=8,
        final_width=64,
    ),
}


def _scaled_conv(cfg: NFNetConfig, rngs: nnx.Rngs) -> Callable[..., ScaledConv]:
    return functools.partial(
        ScaledConv, eps=cfg.ws_eps, form=cfg.ws_form, split=cfg.split_groups, rngs=rngs
    )


class SqueezeExcite(nnx.Module):
    """A factor in 0…1 for each channel, from the picture's mean: sigmoid(up(relu(down(mean))))."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        """Makes two linears with biases."""
        self.down = Linear(width, hidden, bias=True, rngs=rngs)
        self.up = Linear(hidden, width, bias=True, rngs=rngs)

    def __call__(self, x: Array, dtype: Any) -> Array:
        """[B, y, x, C] → [B, 1, 1, C] in `dtype`."""
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        return jax.nn.sigmoid(self.up(jax.nn.relu(self.down(mean, dtype)), dtype))


class Block(nnx.Module):
    """A bottleneck: 1×1, two 3×3 in groups, 1×1, squeeze-and-excite (NF, nfnet.py)."""

    def __init__(self, width: int, out: int, stride: int, *, cfg: NFNetConfig, rngs: nnx.Rngs):
        """Makes a block from `width` to `out` channels."""
        inner, groups = cfg.inner(out)
        conv = _scaled_conv(cfg, rngs)
        wide = functools.partial(conv, inner, inner, size=3, groups=groups)
        self.conv0 = conv(width, inner)
        self.conv1 = wide(stride=stride)
        self.conv1b = wide() if cfg.extra_conv else None
        self.conv2 = conv(inner, out)
        self.shortcut = conv(width, out) if stride > 1 or width != out else None
        self.excite = SqueezeExcite(out, cfg.rounded(out * cfg.se_ratio), rngs=rngs)
        self.skip_gain = nnx.Param(jnp.full((), cfg.skip_init, jnp.float32))
        self.stride, self.cfg = stride, cfg

    def __call__(
        self, x: Array, beta: Array, dtype: Any, drop: tuple[Array, Array] | None
    ) -> Array:
        """[B, y, x, C] → [B, y', x', O].

        Args:
          x: the residual stream.
          beta: f32[], see `NFNetConfig.schedule`.
          dtype: of the computation.
          drop: (key, rate): the branch is left out with this probability, for each picture; what
            stays is not scaled up. None = never.
        """
        y = _activate(x, self.cfg) * beta.astype(dtype)
        if self.shortcut is not None:
            x = self.shortcut(average_pool(y) if self.stride > 1 else y, dtype)
        y = self.conv0(y, dtype)
        y = self.conv1(_activate(y, self.cfg), dtype)
        if self.conv1b is not None:
            y = self.conv1b(_activate(y, self.cfg), dtype)
        y = self.conv2(_activate(y, self.cfg), dtype)
        y = y * (2 * self.excite(y, dtype))  # twice, as a sigmoid halves what it scales
        gain = (self.skip_gain[...].astype(jnp.float32) * self.cfg.alpha).astype(dtype)
        if drop is not None:
            key, rate = drop
            keep = jax.random.uniform(key, (y.shape[0], 1, 1, 1)) >= rate
            gain = jnp.where(keep, gain, jnp.zeros_like(gain))
        return x + gain * y


def _activate(x: Array, cfg: NFNetConfig) -> Array:
    """The activation times the gamma that keeps a unit normal's variance at 1."""
    return ACTIVATIONS[cfg.activation](x) * GAMMAS[cfg.activation]


class Stage(nnx.Module):
    """`first` changes width and sides; `rest` [depth - 1, …] keeps them and is scanned."""

    def __init__(self, width: int, index: int, *, cfg: NFNetConfig, rngs: nnx.Rngs):
        """Makes stage `index`, which takes `width` channels."""
        out, depth = cfg.widths[index], cfg.depths[index]
        self.first = Block(width, out, cfg.strides[index], cfg=cfg, rngs=rngs)

        def make(key: Array) -> Block:
            return Block(out, out, 1, cfg=cfg, rngs=nnx.Rngs(key))

        keys = jax.random.split(rngs.params(), max(depth - 1, 1))
        self.rest = nnx.vmap(make)(keys) if depth > 1 else None
        self.remat, self.schedule = cfg.remat, tuple(cfg.schedule()[index])

    def __call__(self, x: Array, dtype: Any, key: Array | None) -> Array:
        """[B, y, x, C] → [B, y', x', O]; `key` draws the blocks that are dropped."""
        betas, rates = jnp.asarray(self.schedule, jnp.float32).T
        keys = None if key is None else jax.random.split(key, len(self.schedule))
        drop = None if keys is None else (keys[0], rates[0])
        if self.remat:
            graph, state = nnx.split(self.first)
            x = jax.checkpoint(lambda s, x: nnx.merge(graph, s)(x, betas[0], dtype, drop))(state, x)
        else:
            x = self.first(x, betas[0], dtype, drop)
        if self.rest is None:
            return x
        graph, state = nnx.split(self.rest)

        def body(x: Array, block: Any) -> tuple[Array, None]:
            state, beta, drop = block
            return nnx.merge(graph, state)(x, beta, dtype, drop), None

        drops = None if keys is None else (keys[1:], rates[1:])
        body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        return lax.scan(body, x, (state, betas[1:], drops))[0]


class NFNet(nnx.Module):
    """The network: stem/conv0…, stage1, stage2, …, final and, with classes, head."""

    def __init__(self, cfg: NFNetConfig, *, rngs: nnx.Rngs):
        """Makes the parameters."""
        self.cfg = cfg
        conv = _scaled_conv(cfg, rngs)
        self.stem = nnx.Module()
        width = 3
        for i, (out, stride) in enumerate(cfg.stem):
            setattr(self.stem, f"conv{i}", conv(width, out, size=3, stride=stride))
            width = out
        for i, out in enumerate(cfg.widths):
            setattr(self, f"stage{i + 1}", Stage(width, i, cfg=cfg, rngs=rngs))
            width = out
        self.final = conv(width, cfg.final_width) if cfg.final_width else None
        E = cfg.features_width
        normal = nnx.initializers.normal(0.01)
        self.head = (
            Linear(E, cfg.classes, bias=True, init=normal, rngs=rngs) if cfg.classes else None
        )

    def __call__(self, pixels: Array, dtype: Any, key: Array | None = None) -> Array:
        """Normalised pixels f[B, Y, X, 3] → features [B, y, x, E] in `dtype`.

        With a `key` blocks are dropped at the config's rate, without one never.
        """
        return self.activations(pixels, dtype, key)[-1]

    def linear(self, pixels: Array, dtype: Any, key: Array | None = None) -> Array:
        """As `__call__`, but before the last activation."""
        return self.activations(pixels, dtype, key)[-2]

    def activations(self, pixels: Array, dtype: Any, key: Array | None = None) -> list[Array]:
        """What the stem, each stage and the last convolution put out, and the features.

        [B, y, x, C] each. Without a last convolution the features follow on the last stage.
        """
        cfg, x = self.cfg, pixels.astype(dtype)
        for i in range(len(cfg.stem)):
            x = getattr(self.stem, f"conv{i}")(x if i == 0 else _activate(x, cfg), dtype)
        outputs = [x]
        key = key if cfg.stochastic_depth > 0 else None
        for i in range(len(cfg.widths)):
            stage_key = None if key is None else jax.random.fold_in(key, i)
            outputs.append(getattr(self, f"stage{i + 1}")(outputs[-1], dtype, stage_key))
        if self.final is not None:
            outputs.append(self.final(outputs[-1], dtype))
        return [*outputs, _activate(outputs[-1], cfg)]

    def logits(self, features: Array) -> Array:
        """Features [B, y, x, E] → f32[B, classes], from their mean over the picture."""
        if self.head is None:
            raise ValueError("this NFNet was made without classes")
        return self.head(jnp.mean(features.astype(jnp.float32), axis=(1, 2)), jnp.float32)


def count_flops(cfg: NFNetConfig, image_size: int) -> int:
    """FLOPs (multiplications and additions) of the forward pass of one square picture."""
    total, width, side = 0, 3, image_size
    for out, stride in cfg.stem:
        side = -(-side // stride)
        total += side * side * 9 * width * out
        width = out
    for out, depth, stride in zip(cfg.widths, cfg.depths, cfg.strides, strict=True):
        inner, groups = cfg.inner(out)
        wide = 9 * inner * inner // groups
        for i in range(depth):
            before, side = side, -(-side // stride) if i == 0 else side
            total += before * before * width * inner + side * side * (wide + inner * out)
            total += side * side * wide if cfg.extra_conv else 0
            total += side * side * width * out if i == 0 and (stride > 1 or width != out) else 0
            total += 2 * out * cfg.rounded(out * cfg.se_ratio)
            width = out
    total += side * side * width * cfg.final_width
    return 2 * (total + cfg.features_width * cfg.classes)
