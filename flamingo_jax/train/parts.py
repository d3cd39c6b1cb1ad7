"""Micro-batches: the gradient of a batch taken part by part, so that one part's activations exist.

Every part's loss is divided by the number of the whole batch's targets (the denominator of one
dataset's loss, whatever the parts), so that losses and gradients of the parts add up to the
batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flamingo_jax.shapes import Array, Batch, Params
from flamingo_jax.train import objective

WeightedLoss = Callable[..., tuple[Array, dict[str, Array]]]
"""(trainable, frozen, batches, key) → loss f32[], {name: f32[]}.

With more than one part it also takes `counts`, {dataset: the number of the whole batch's targets},
and what it returns beside the loss is summed over the parts.
"""

GradientFn = Callable[
    [Params, Params, dict[str, Batch], Array], tuple[tuple[Array, dict[str, Array]], Params]
]
"""(trainable, frozen, batches, key) → ((loss f32[], {name: f32[]}), gradient)."""


def gradient(
    loss_fn: WeightedLoss,
    parts: int = 1,
    split: Callable[[Any, int], Any] | None = None,
    pin: Callable[[Params], Params] = lambda grads: grads,
) -> GradientFn:
    """The loss and its gradient, over batches in so many parts.

    Args:
      loss_fn: what is differentiated.
      parts: n.
      split: batches [B, …] → parts [n, B / n, …], each with rows of every device
        (`sharding.split_rows`).
      pin: fixes the gradient's sharding (that of the parameters).
    """
    value = jax.value_and_grad(loss_fn, has_aux=True)

    def whole(
        params: Params, frozen: Params, batches: dict[str, Batch], key: Array
    ) -> tuple[tuple[Array, dict[str, Array]], Params]:
        found, g = value(params, frozen, batches, key)
        return found, pin(g)

    if parts == 1:
        return whole
    assert split is not None

    def summed(
        params: Params, frozen: Params, batches: dict[str, Batch], key: Array
    ) -> tuple[tuple[Array, dict[str, Array]], Params]:
        counts = {name: objective.targets(batch) for name, batch in batches.items()}

        def add(grads: Params, part: tuple[Array, dict[str, Batch]]) -> tuple[Params, Any]:
            i, rows = part
            found, g = value(params, frozen, rows, jax.random.fold_in(key, i), counts=counts)
            return pin(jax.tree.map(jnp.add, grads, g)), found

        zeros = pin(jax.tree.map(jnp.zeros_like, params))
        grads, found = lax.scan(add, zeros, (jnp.arange(parts), split(batches, parts)))
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), found), grads

    return summed
