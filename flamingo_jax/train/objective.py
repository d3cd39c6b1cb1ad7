"""What is minimised: next-token negative log-likelihood, and the contrastive loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flamingo_jax.shapes import Array, Batch

LogitsFn = Callable[[Any, Array], tuple[Array, ...]]
"""(weights, x [B, t, D]) → f32[B, t, …] each: the vocabulary's logits and, if any, new tokens'."""


def part_nll(parts: tuple[Array, ...], targets: Array) -> Array:
    """Negative log-likelihood of each target, from logits in parts that follow one another.

    The parts are never joined, and a target's logit is picked by comparison: where the vocabulary
    is split over devices, only sums over it travel.

    Args:
      parts: f32[B, T, V] and what else there is, f32[B, T, W].
      targets: i32[B, T], counted over all parts.

    Returns:
      f32[B, T], nats.
    """
    picked, log_sums, first = jnp.zeros(targets.shape), [], 0
    for logits in parts:
        ids = first + lax.broadcasted_iota(jnp.int32, (1, 1, logits.shape[-1]), 2)
        chosen = ids == targets[..., None]
        picked += jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
        log_sums.append(jax.nn.logsumexp(logits, axis=-1))
        first += logits.shape[-1]
    return functools.reduce(jnp.logaddexp, log_sums) - picked


def token_nll(logits: Array, tokens: Array) -> Array:
    """Negative log-likelihood of each token after the first.

    Args:
      logits: f32[B, T, V]; those at t predict token t + 1.
      tokens: i32[B, T].

    Returns:
      f32[B, T - 1], nats.
    """
    return part_nll((logits[:, :-1],), tokens[:, 1:])


def targets(batch: Batch) -> Array:
    """The number of the batch's targets, f32[]: a first token is never one."""
    return jnp.sum(batch.loss_mask[:, 1:])


def next_token(
    logits_of: LogitsFn, weights: Any, hidden: Array, batch: Batch, chunk: int = 0
) -> tuple[Array, Array]:
    """The summed NLL of the batch's targets and their number (Flamingo eq. (2), one dataset).

    Both are over the global batch; the loss is their quotient. With `chunk` the logits of no more
    than so many tokens of each row exist at once, in the backward too. Chunks run along T, so that
    rows stay on their devices.

    Args:
      logits_of: the head.
      weights: its weights, a tree.
      hidden: [B, T, D], the residual stream after the final norm.
      batch: of which tokens and loss_mask are read.
      chunk: tokens of a row at a time; 0 or T and more = all at once.

    Returns:
      f32[] nats, f32[] count.
    """
    T = batch.tokens.shape[1]
    pieces = -(-T // chunk) if chunk else 1
    # Each position has the next token as its target; the last one has none.
    following = jnp.pad(batch.tokens[:, 1:], ((0, 0), (0, 1)))
    weight = jnp.pad(batch.loss_mask[:, 1:], ((0, 0), (0, 1)))
    if pieces <= 1:
        nll = _summed_nll(logits_of, weights, hidden, following, weight)
    else:
        size = -(-T // pieces)
        parts = tuple(_cut(a, pieces, size) for a in (hidden, following, weight))
        nll = _chunked_nll(logits_of, weights, *parts)
    return nll, targets(batch)


def _summed_nll(logits_of: LogitsFn, weights: Any, x: Array, targets: Array, w: Array) -> Array:
    return jnp.sum(part_nll(logits_of(weights, x), targets) * w)


def _cut(a: Array, pieces: int, size: int) -> Array:
    """[B, T, …] → [pieces, B, size, …], padded with zeros."""
    a = jnp.pad(a, ((0, 0), (0, pieces * size - a.shape[1]), *((0, 0),) * (a.ndim - 2)))
    return jnp.moveaxis(a.reshape(a.shape[0], pieces, size, *a.shape[2:]), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_nll(
    logits_of: LogitsFn, weights: Any, x: Array, targets: Array, weight: Array
) -> Array:
    """The summed NLL over chunks [n, B, t, …] of the residual stream, targets and their weights.

    The sum is linear in its cotangent, a scalar: each chunk's gradient is taken while its logits
    are there, and the backward only scales it. So the head's product is never computed twice.
    """

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + _summed_nll(logits_of, weights, *part), None

    return lax.scan(add, jnp.zeros(()), (x, targets, weight))[0]


def _chunked_forward(
    logits_of: LogitsFn, weights: Any, x: Any, targets: Any, weight: Any
) -> tuple[Array, tuple[Any, Array]]:
    leaves, tree = jax.tree.flatten(weights, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    trained = [leaf.value if leaf.perturbed else None for leaf in leaves]

    def nll_of(trained: list[Any], x: Array, targets: Array, weight: Array) -> Array:
        pairs = zip(trained, leaves, strict=True)
        values = [leaf.value if new is None else new for new, leaf in pairs]
        return _summed_nll(logits_of, jax.tree.unflatten(tree, values), x, targets, weight)

    def add(sums: tuple[Array, Any], part: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        nll, (dw, dx) = jax.value_and_grad(nll_of, argnums=(0, 1))(trained, *part)
        return (sums[0] + nll, jax.tree.map(jnp.add, sums[1], dw)), dx

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (nll, dw), dx = lax.scan(add, zero, (x.value, targets.value, weight.value))
    return nll, (jax.tree.unflatten(tree, dw), dx)


def _chunked_backward(
    logits_of: LogitsFn, saved: tuple[Any, Array], g: Array
) -> tuple[Any, Array, None, None]:
    del logits_of
    dw, dx = saved

    def scaled(a: Array) -> Array:
        return (g * a.astype(jnp.float32)).astype(a.dtype)

    return jax.tree.map(scaled, dw), scaled(dx), None, None


_chunked_nll.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)
