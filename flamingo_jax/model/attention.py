"""Attention, all of it behind one function: plain products, or a kernel where there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model import fused
from flamingo_jax.model.masks import Mask
from flamingo_jax.shapes import Array


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Array | None,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    layout: Layout = ANYWHERE,
) -> Array:
    """Softmax attention with grouped key/value heads; a fully masked row gives exactly zero.

    Where the layout asks for a fused kernel, one is taken if it has a form for this call
    (`fused.takes`), else the plain form.

    Args:
      q: [B, T, N, H] queries.
      k: [B, S, K, H] keys; N must be a multiple of K.
      v: [B, S, K, H] values.
      mask: bool, broadcastable to [B, N, T, S] (rank 4, its head axis 1 or N); True = may attend.
        One with segments can be told to more kernels. None = all True.
      scale: of the dot products; 1/sqrt(H) when None.
      bias: f32, broadcastable to [B, N, T, S], added to the scaled scores.
      layout: which kernel, and where the arrays lie.

    Returns:
      [B, T, N, H] in q's dtype. Scores and softmax are f32.
    """
    if k.shape[1] == 0:
        return jnp.zeros_like(q)
    factor: float = q.shape[3] ** -0.5 if scale is None else scale
    if not isinstance(mask, Mask | None):
        mask = Mask(mask)
    kernel = fused.takes(q, k, mask, bias, layout)
    if kernel is not None:
        return kernel(q, k, v, mask, factor, layout)
    return plain(q, k, v, None if mask is None else mask.dense, factor, bias)


def plain(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, bias: Array | None = None
) -> Array:
    """`attend` by XLA's products; scores f32[B, N, T, S] are there at once."""
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    if K == N:
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
    else:
        grouped = q.reshape(B, T, K, N // K, H)
        scores = jnp.einsum("BTKgH,BSKH->BKgTS", grouped, k, preferred_element_type=jnp.float32)
        scores = scores.reshape(B, N, T, S)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # The mask again after the softmax: a row that may attend to nothing is else uniform, not zero.
    probs = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        probs = jnp.where(mask, probs, 0.0)
    probs = probs.astype(v.dtype)
    if K == N:
        return jnp.einsum("BNTS,BSNH->BTNH", probs, v, preferred_element_type=jnp.float32).astype(
            q.dtype
        )
    probs = probs.reshape(B, K, N // K, T, S)
    out = jnp.einsum("BKgTS,BSKH->BTKgH", probs, v, preferred_element_type=jnp.float32)
    return out.reshape(B, T, N, H).astype(q.dtype)
