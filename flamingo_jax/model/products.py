"""Products with weights: bf16 operands, sums in f32, gradients only where they are asked for."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flamingo_jax.shapes import Array

_ROUNDED = contextvars.ContextVar("rounded", default=False)


@contextlib.contextmanager
def rounded_sums(rounded: bool) -> Iterator[None]:
    """Whether products that are traced here round each device's part of a sum before it travels.

    A device sums in f32 either way. Where a product's sum runs over devices (of a matrix split over
    `tensor`), parts in f32 are twice the bytes, and XLA cannot put those of several products
    together, as each is rounded by itself afterwards.
    """
    token = _ROUNDED.set(rounded)
    try:
        yield
    finally:
        _ROUNDED.reset(token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dot_low_precision(x: Array, kernel: Array, out: Any, rounded: bool) -> Array:
    """x[..., D] · kernel[D, O] in the operands' low precision, summed in f32, rounded to `out`.

    Without a rule of its own the cotangent of the f32 product would be f32 and turn both backward
    products into f32 ones: on a CPU they are 2 to 4 times slower.
    """
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return _product(x, kernel, dims, out, rounded)


def _product(x: Array, y: Array, dims: Any, out: Any, rounded: bool) -> Array:
    sums = out if rounded else jnp.float32
    return lax.dot_general(x, y, dims, preferred_element_type=sums).astype(out)


def _dot_forward(
    x: Any, kernel: Any, out: Any, rounded: bool
) -> tuple[Array, tuple[Array | None, Array | None]]:
    # Only what a gradient is asked of costs one: a frozen kernel keeps no rows for its own.
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _dot_low_precision(x.value, kernel.value, out, rounded), saved


def _dot_backward(
    out: Any, rounded: bool, saved: tuple[Array | None, Array | None], g: Array
) -> tuple[Array | None, Array | None]:
    del out
    x, kernel = saved
    dx = dk = None
    if kernel is not None:
        g = g.astype(kernel.dtype)
        dims = (((g.ndim - 1,), (1,)), ((), ()))
        dx = _product(g, kernel, dims, g.dtype, rounded)
    if x is not None:
        g = g.astype(x.dtype)
        rows = tuple(range(g.ndim - 1))
        dims = ((rows, rows), ((), ()))
        dk = lax.dot_general(x, g, dims, preferred_element_type=jnp.float32).astype(g.dtype)
    return dx, dk


_dot_low_precision.defvjp(_dot_forward, _dot_backward, symbolic_zeros=True)


def dot(x: Array, kernel: Array, dtype: Any, out: Any = None) -> Array:
    """x[..., D] · kernel[D, O] → [..., O], computed in `dtype`, bf16 products summed in f32.

    Args:
      x: the rows.
      kernel: the matrix.
      dtype: both are cast to it.
      out: dtype of the result; `dtype` when None. (Logits leave a bf16 product in f32.)
    """
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if dtype == jnp.float32:
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return _dot_low_precision(x, kernel, dtype if out is None else out, _ROUNDED.get())
