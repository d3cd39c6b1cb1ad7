"""What is minimised: next-token negative log-likelihood, and the contrastive loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.shapes import Array, Batch


def token_nll(logits: Array, tokens: Array) -> Array:
    """Negative log-likelihood of each token after the first.

    Args:
      logits: f32[B, T, V]; those at t predict token t + 1.
      tokens: i32[B, T].

    Returns:
      f32[B, T - 1], nats.
    """
    log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]


def next_token(logits: Array, batch: Batch) -> tuple[Array, Array]:
    """The summed NLL of the batch's targets and their number (Flamingo eq. (2), one dataset).

    Both are over the global batch; the loss is their quotient.

    Returns:
      f32[] nats, f32[] count.
    """
    weight = batch.loss_mask[:, 1:]
    return jnp.sum(token_nll(logits, batch.tokens) * weight), jnp.sum(weight)
