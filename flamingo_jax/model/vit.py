"""The vision encoder's second kind: a Vision Transformer as CLIP has it.

Patches by a product without bias, a class token before them, learnt positions, a layer norm, blocks
with the norm before each part, and one norm after them (Radford et al. 2021, §2.4; open_clip's
`VisionTransformer`, transformers' `CLIPVisionModel`). What a Flamingo reads of it is a choice:

| | `class_feature` | `normed` |
|---|---|---|
| OpenFlamingo's published models (open_clip before 2.23), the default | no | no |
| open_clip from 2.23 on (its a5f3ae9) | no | yes |
| IDEFICS | yes | no |

The last norm has its parameters in either case: the published weights have it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.model.attention import attend
from flamingo_jax.model.layers import FeedForward, Linear, Norm
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT; the defaults are CLIP's ViT-L/14 (Radford et al. 2021, Table 20).

    Attributes:
      image_size: of a side, in pixels: the positions are learnt for it alone.
      patch: of a patch's side, in pixels; what is left over at the right and below is not seen.
      width: E.
      blocks: L.
      heads: N.
      hidden: I.
      activation: of the feed-forward layers: quick_gelu in OpenAI's weights, gelu in most others.
      norm_eps: of the layer norms.
      class_feature: the class token is the first of the features.
      normed: the features have passed the last norm.
      unroll: lay the blocks out one after another in the program, see `segments.run`.
    """

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    blocks: int = 24
    heads: int = 16
    hidden: int = 4096
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    class_feature: bool = False
    normed: bool = False
    unroll: bool = False

    def __post_init__(self):
        """Refuses what cannot be built."""
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if not 0 < self.patch <= self.image_size:
            raise ValueError(f"a patch of {self.patch} pixels is not one of {self.image_size}")

    @property
    def features_width(self) -> int:
        """E, the width of the features."""
        return self.width

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch) ** 2

    def features(self, image_size: int) -> int:
        """P, features of a square picture.

        Raises:
          ValueError: if its size is not the one that positions are learnt for.
        """
        if image_size != self.image_size:
            raise ValueError(
                f"this ViT's positions are for {self.image_size} pixels a side, not {image_size}"
            )
        return self.patches + self.class_feature

    def flops(self, image_size: int) -> int:
        """FLOPs (multiplications and additions) of the forward pass of one square picture."""
        weights = 4 * self.width**2 + 2 * self.width * self.hidden
        blocks = 2 * (self.patches + 1) * weights * self.blocks
        return blocks + self.first_flops(image_size) + self.attention_flops(image_size)

    def first_flops(self, image_size: int) -> int:
        """Of those, the first product's: pixels need no gradient, so that it has one less."""
        self.features(image_size)
        return 2 * self.patches * 3 * self.patch**2 * self.width

    def attention_flops(self, image_size: int) -> int:
        """Of those, attention's products of activations: scores and values."""
        self.features(image_size)
        return 4 * (self.patches + 1) ** 2 * self.width * self.blocks


class ViTBlock(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x)); biases everywhere."""

    def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
        """Makes one block; the stack is made by `ViT`."""
        E = cfg.width
        into_residual = nnx.initializers.normal((2 * cfg.blocks * E) ** -0.5)
        down = nnx.initializers.normal((2 * cfg.blocks * cfg.hidden) ** -0.5)
        self.norm_attention = Norm(E, eps=cfg.norm_eps)
        self.query = Linear(E, E, bias=True, rngs=rngs)
        self.key = Linear(E, E, bias=True, rngs=rngs)
        self.value = Linear(E, E, bias=True, rngs=rngs)
        self.out = Linear(E, E, bias=True, init=into_residual, rngs=rngs)
        self.norm_dense = Norm(E, eps=cfg.norm_eps)
        self.dense = FeedForward(
            E, cfg.hidden, activation=cfg.activation, bias=True, out_init=down, rngs=rngs
        )
        self.heads = cfg.heads

    def __call__(self, x: Array, dtype: Any) -> Array:
        """[B, S, E] → [B, S, E]: the class token and all patches see one another."""
        B, S, E = x.shape
        h = self.norm_attention(x, dtype)
        shape = (B, S, self.heads, E // self.heads)
        q, k, v = (part(h, dtype).reshape(shape) for part in (self.query, self.key, self.value))
        x = x + self.out(attend(q, k, v, None).reshape(B, S, E), dtype)
        return x + self.dense(self.norm_dense(x, dtype), dtype)


class ViT(nnx.Module):
    """The network: patches/kernel[p·p·3, E], class_token[E], positions[1 + patches, E], blocks/….

    Blocks are stacked [L, …]; norm_in/… stands before them and norm_out/… after.
    """

    def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
        """Makes the parameters; class token and positions start normal (open_clip: 1/sqrt(E))."""

        def embeddings(*dims: int) -> nnx.Param:
            return nnx.Param(cfg.width**-0.5 * jax.random.normal(rngs.params(), dims))

        self.cfg = cfg
        self.patches = Linear(3 * cfg.patch**2, cfg.width, rngs=rngs)
        self.class_token = embeddings(cfg.width)
        self.positions = embeddings(1 + cfg.patches, cfg.width)
        self.norm_in = Norm(cfg.width, eps=cfg.norm_eps)
        keys = jax.random.split(rngs.params(), cfg.blocks)
        self.blocks = nnx.vmap(lambda key: ViTBlock(cfg, rngs=nnx.Rngs(key)))(keys)
        self.norm_out = Norm(cfg.width, eps=cfg.norm_eps)

    def __call__(self, pixels: Array, dtype: Any) -> Array:
        """Normalised pixels f[B, Y, X, 3] → features [B, P, E] in `dtype`, row after row."""
        start, layers = self.embed(pixels, dtype), self._layers()
        x, _ = lax.scan(self._step(dtype), start, layers, unroll=self.cfg.unroll)
        x = x if self.cfg.class_feature else x[:, 1:]
        return self.norm_out(x, dtype) if self.cfg.normed else x

    def embed(self, pixels: Array, dtype: Any) -> Array:
        """What the blocks start from: f[B, Y, X, 3] → [B, 1 + patches, E]."""
        p, E = self.cfg.patch, self.cfg.width
        B, Y, X, C = pixels.shape
        self.cfg.features(Y)
        pixels = pixels[:, : Y // p * p, : X // p * p].reshape(B, Y // p, p, X // p, p, C)
        rows = pixels.swapaxes(2, 3).reshape(B, self.cfg.patches, p * p * C)
        x = self.patches(rows, dtype)  # [B, patches, E]
        first = jnp.broadcast_to(self.class_token[...].astype(dtype), (B, 1, E))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...].astype(dtype)[None]
        return self.norm_in(x, dtype)

    def hidden(self, pixels: Array, dtype: Any) -> list[Array]:
        """What the blocks start from and each block's output, [B, 1 + patches, E] each."""
        x, step = self.embed(pixels, dtype), self._step(dtype)
        _, outputs = lax.scan(lambda x, layer: (step(x, layer)[0],) * 2, x, self._layers())
        return [x, *outputs]

    def pooled(self, x: Array, dtype: Any) -> Array:
        """The last block's output [B, 1 + patches, E] → its class token, normed: [B, E]."""
        return self.norm_out(x[:, 0], dtype)

    def _layers(self) -> Any:
        return nnx.split(self.blocks)[1]

    def _step(self, dtype: Any) -> Any:
        graph = nnx.split(self.blocks)[0]

        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graph, layer)(x, dtype), None

        return step
