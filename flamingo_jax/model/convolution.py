"""Convolutions of the vision encoder: grouped, and with standardised kernels.

"NF" is the code that was published with the NFNet paper (deepmind-research/nfnets), "timm" the
PyTorch port whose weights are common.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from flamingo_jax.model.products import dot
from flamingo_jax.shapes import Array


def grouped_conv(
    x: Array, kernel: Array, *, stride: int = 1, groups: int = 1, split: bool | None = None
) -> Array:
    """A 2-D convolution with "SAME" padding as TensorFlow has it (the odd pixel at the end).

    As many dense ones give the same numbers. XLA's CPU backend runs them many times faster, above
    all the gradient of the kernel; and outside of TPUs its partitioner brings all rows of a grouped
    convolution's input together on every device.

    Args:
      x: [B, y, x, C].
      kernel: [h, w, C / groups, O].
      stride: along both sides.
      groups: dense blocks that C and O fall into.
      split: one dense convolution a group, with gradients spelt out; None = unless the default
        backend is a TPU.

    Returns:
      [B, ceil(y / stride), ceil(x / stride), O].
    """
    if split is None:
        split = jax.default_backend() != "tpu"
    if not split:
        return _conv(x, kernel, (stride, stride), "SAME", groups=groups)
    if groups == 1:
        return _dense_conv(x, kernel, stride)
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([_dense_conv(part, k, stride) for part, k in parts], axis=-1)


def _conv(x: Array, kernel: Array, strides: Any, padding: Any, **settings: Any) -> Array:
    groups = settings.pop("groups", 1)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        **settings,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_conv(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution with both gradients written as convolutions of the same layout.

    XLA's CPU backend is fast in this layout alone, and inside a loop it does not bring others into
    it: JAX's own gradient of the kernel takes some 40 times as long in a scan.
    """
    return _conv(x, kernel, (stride, stride), "SAME")


def _dense_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _dense_conv(x, kernel, stride), (x, kernel)


def _dense_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    sides, sizes, strides = x.shape[1:3], kernel.shape[:2], (stride, stride)
    before = [pad for pad, _ in lax.padtype_to_pads(sides, sizes, strides, "SAME")]
    reach = [(side - 1) * stride + 1 for side in g.shape[1:3]]  # what g spans with gaps between
    # dL/dx: g, with gaps, convolved with the kernel turned round.
    left = [size - 1 - pad for size, pad in zip(sizes, before, strict=True)]
    pads = [
        (pad, side + size - 1 - span - pad)
        for pad, side, size, span in zip(left, sides, sizes, reach, strict=True)
    ]
    turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    dx = _conv(g, turned, (1, 1), pads, lhs_dilation=strides)
    # dL/dkernel: x convolved with g, pictures in the place of channels, channels of pictures.
    pads = [
        (pad, size - 1 + span - side - pad)
        for pad, side, size, span in zip(before, sides, sizes, reach, strict=True)
    ]
    pictures, weights = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    dk = _conv(pictures, weights, (1, 1), pads, rhs_dilation=strides)
    return dx, dk.transpose(1, 2, 0, 3)


_dense_conv.defvjp(_dense_forward, _dense_backward)


def standardise(kernel: Array, gain: Array, eps: float, form: str) -> Array:
    """Scaled weight standardisation, in f32 (NF, base.py; form "add": timm's std_conv.py).

    (w - mean) · gain / sqrt(fan_in · variance), all over the fan-in of an output channel.

    Args:
      kernel: [h, w, C, O].
      gain: [O].
      eps: keeps from dividing by zero.
      form: "floor": max(fan_in · variance, eps), NF's; "add": fan_in · (variance + eps), timm's.

    Returns:
      f32[h, w, C, O].
    """
    kernel = kernel.astype(jnp.float32)
    fan_in = math.prod(kernel.shape[:-1])
    centred = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2))
    floor = jnp.maximum(variance * fan_in, eps) if form == "floor" else (variance + eps) * fan_in
    return centred * (lax.rsqrt(floor) * gain.astype(jnp.float32))


def average_pool(x: Array) -> Array:
    """Means of 2×2 pixels: [B, y, x, C] → [B, ceil(y/2), ceil(x/2), C].

    At an odd edge the mean is over the pixels that there are.
    """
    B, Y, X, C = x.shape
    x = jnp.pad(x, ((0, 0), (0, Y % 2), (0, X % 2), (0, 0)))
    sums = jnp.sum(x.reshape(B, -(-Y // 2), 2, -(-X // 2), 2, C), axis=(2, 4))
    rows = np.minimum(2, Y - 2 * np.arange(sums.shape[1]))
    columns = np.minimum(2, X - 2 * np.arange(sums.shape[2]))
    return sums / jnp.asarray(np.outer(rows, columns)[:, :, None], x.dtype)


class ScaledConv(nnx.Module):
    """A convolution with a standardised kernel: kernel[h, w, C / groups, O], gain[O], bias[O]."""

    def __init__(
        self,
        width: int,
        out: int,
        *,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        eps: float,
        form: str,
        split: bool | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the kernel (normal, deviation fan_in^-½), the gain (ones) and the bias (zeros).

        `eps` and `form` are `standardise`'s, `split` is `grouped_conv`'s.
        """
        shape = (size, size, width // groups, out)
        init = nnx.initializers.normal(math.prod(shape[:-1]) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.gain = nnx.Param(jnp.ones((out,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32))
        self.stride, self.groups, self.split = stride, groups, split
        self.eps, self.form = eps, form

    def __call__(self, x: Array, dtype: Any) -> Array:
        """[B, y, x, C] → [B, y', x', O] in `dtype`."""
        kernel = standardise(self.kernel[...], self.gain[...], self.eps, self.form)
        if kernel.shape[:2] == (1, 1):
            y = dot(x, kernel[0, 0], dtype)
        else:
            x, kernel = x.astype(dtype), kernel.astype(dtype)
            y = grouped_conv(x, kernel, stride=self.stride, groups=self.groups, split=self.split)
        return y + self.bias[...].astype(dtype)
