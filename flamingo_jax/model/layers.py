"""Linear, norm and feed-forward: what every tower of the model is made of.

Parameters are stored in the dtype they are given (f32 masters when trained, bf16 when frozen)
and cast to the compute dtype where they are used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model.products import dot
from flamingo_jax.shapes import Array

Initializer = Callable[..., Array]


PRODUCT = "product"
"""Name of the result of a product with weights, once it is rounded to the compute dtype."""

ATTENTION = ("attention/query", "attention/key", "attention/value", "attention/stream")
"""Names of what an attention makes: its three projections, and the residual stream after it."""


def squared_relu(x: Array) -> Array:
    """max(x, 0)², the activation of the layers that Flamingo trains (Flamingo v1 §B.1)."""
    return jnp.square(jax.nn.relu(x))


def quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x), CLIP's approximation of GELU (openai/CLIP, model.py)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "squared_relu": squared_relu,
}


class Linear(nnx.Module):
    """y = x · kernel (+ bias): kernel[D, O], bias[O]."""

    def __init__(
        self,
        width: int,
        out: int,
        *,
        bias: bool = False,
        init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters; `init` defaults to a normal of deviation 1/sqrt(width)."""
        init = init or nnx.initializers.normal(width**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (width, out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32)) if bias else None

    def __call__(self, x: Array, dtype: Any) -> Array:
        """[..., D] → [..., O] in `dtype`."""
        y = checkpoint_name(dot(x, self.kernel[...], dtype), PRODUCT)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class Norm(nnx.Module):
    """LayerNorm (`kind="layer"`) or RMSNorm (`kind="rms"`) over the last axis, in f32.

    `bias=False` leaves out LayerNorm's offset (MPT's kind); RMSNorm never has one.
    """

    def __init__(self, width: int, *, kind: str = "layer", eps: float = 1e-5, bias: bool = True):
        """Makes scale[width] (ones) and, for LayerNorm with `bias`, bias[width] (zeros)."""
        if kind not in ("layer", "rms"):
            raise ValueError(f"the kind of norm is 'layer' or 'rms', not {kind!r}")
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = (
            nnx.Param(jnp.zeros((width,), jnp.float32)) if kind == "layer" and bias else None
        )
        self.kind, self.eps = kind, eps

    def __call__(self, x: Array, dtype: Any) -> Array:
        """[..., D] → [..., D] in `dtype`; statistics in f32."""
        x = x.astype(jnp.float32)
        if self.kind == "layer":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        y = y * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return _apart(y.astype(dtype))


@jax.custom_vjp
def _apart(x: Array) -> Array:
    """x, whose gradient is there before it is used: a product with weights made it.

    A TPU's compiler else does a norm's backward in that product, whose tiles then are smaller: by
    its cycles a step of 9B is a twentieth longer so (DECISIONS.md, the 9B and a TPU's compiler).
    """
    return x


_apart.defvjp(lambda x: (x, None), lambda _, g: (lax.optimization_barrier(g),))


class FeedForward(nnx.Module):
    """down(act(up(x))), or down(act(gate(x)) · up(x)) when gated (SwiGLU's kind).

    Parameters: up[D, I], down[I, D], and gate[D, I] where gated.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = False,
        out_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes two (gated: three) linears; `out_init` initialises the last one."""
        self.gate = Linear(width, hidden, bias=bias, rngs=rngs) if gated else None
        self.up = Linear(width, hidden, bias=bias, rngs=rngs)
        self.down = Linear(hidden, width, bias=bias, init=out_init, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array, dtype: Any, layout: Layout = ANYWHERE) -> Array:
        """[..., D] → [..., D] in `dtype`; `layout` = where the hidden units lie."""
        act = ACTIVATIONS[self.activation]
        h = layout.split(self.up(x, dtype))
        h = act(h) if self.gate is None else act(layout.split(self.gate(x, dtype))) * h
        return self.down(h, dtype)


def named_projections(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """An attention's three projections under the names by which rematerialisation keeps them."""
    q, k, v = (checkpoint_name(a, n) for a, n in zip((q, k, v), ATTENTION, strict=False))
    return q, k, v
