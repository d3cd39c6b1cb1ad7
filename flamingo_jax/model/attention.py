"""Attention, all of it behind one function: plain products, or a kernel where there is one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model import fused
from flamingo_jax.model.masks import Mask
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class Shared:
    """Keys that all rows of a batch look at beside their own, without a copy for each row.

    Attributes:
      k, v: [P, K, H].
      mask: bool, broadcastable to [B, N, T, P]; True = may attend.
      bias: f32[B, N, T, P], added to the scaled scores; None = nothing.
    """

    k: Array
    v: Array
    mask: Array
    bias: Array | None = None


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Array | None,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    layout: Layout = ANYWHERE,
    shared: Shared | None = None,
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
      shared: further keys, under the same softmax.

    Returns:
      [B, T, N, H] in q's dtype. Scores and softmax are f32.
    """
    if k.shape[1] == 0 and shared is None:
        return jnp.zeros_like(q)
    factor: float = q.shape[3] ** -0.5 if scale is None else scale
    if not isinstance(mask, Mask | None):
        mask = Mask(mask)
    kernel = None if shared is not None else fused.takes(q, k, mask, bias, layout)
    if kernel is not None:
        return kernel(q, k, v, mask, factor, layout)
    return plain(q, k, v, None if mask is None else mask.dense, factor, bias, shared)


def plain(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    scale: float,
    bias: Array | None = None,
    shared: Shared | None = None,
) -> Array:
    """`attend` by XLA's products; scores f32[B, N, T, S] are there at once."""
    scores = _scores(q, k, mask, scale, bias)
    if shared is None:
        return _weigh(_probabilities(scores, mask, v), v).astype(q.dtype)
    before = _scores(q, shared.k, shared.mask, scale, shared.bias)
    own = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    masks = (jnp.broadcast_to(m, s.shape) for m, s in ((shared.mask, before), (own, scores)))
    whole = jnp.concatenate([before, scores], axis=-1)
    probs = _probabilities(whole, jnp.concatenate([*masks], axis=-1), v)
    first, last = jnp.split(probs, [before.shape[-1]], axis=-1)
    return (_weigh(first, shared.v) + _weigh(last, v)).astype(q.dtype)


def _scores(q: Array, k: Array, mask: Array | None, scale: float, bias: Array | None) -> Array:
    """f32[B, N, T, S] of q [B, T, N, H] and k [B, S, K, H], or [S, K, H] of all rows."""
    B, T, N, H = q.shape
    S, K = k.shape[-3:-1]
    rows = "B" if k.ndim == 4 else ""
    if K == N:
        spec = f"BTNH,{rows}SNH->BNTS"
        scores = jnp.einsum(spec, q, k, preferred_element_type=jnp.float32)
    else:
        spec, grouped = f"BTKgH,{rows}SKH->BKgTS", q.reshape(B, T, K, N // K, H)
        scores = jnp.einsum(spec, grouped, k, preferred_element_type=jnp.float32)
        scores = scores.reshape(B, N, T, S)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _probabilities(scores: Array, mask: Array | None, v: Array) -> Array:
    # The mask again after the softmax: a row that may attend to nothing is else uniform, not zero.
    probs = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        probs = jnp.where(mask, probs, 0.0)
    return probs.astype(v.dtype)


def _weigh(probs: Array, v: Array) -> Array:
    """f32[B, T, N, H] of probabilities [B, N, T, S] and v [B, S, K, H], or [S, K, H]."""
    B, N, T, S = probs.shape
    K, H = v.shape[-2:]
    rows = "B" if v.ndim == 4 else ""
    if K == N:
        spec = f"BNTS,{rows}SNH->BTNH"
        return jnp.einsum(spec, probs, v, preferred_element_type=jnp.float32)
    spec, grouped = f"BKgTS,{rows}SKH->BTKgH", probs.reshape(B, K, N // K, T, S)
    out = jnp.einsum(spec, grouped, v, preferred_element_type=jnp.float32)
    return out.reshape(B, T, N, H)
