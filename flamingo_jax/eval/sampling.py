"""Choosing the next token: the likeliest, or one drawn with temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from flamingo_jax.shapes import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chance:
    """How tokens are drawn.

    Attributes:
      temperature: f32[], above 0: logits are divided by it first.
      top_k: i32[], draw from the k likeliest; 0 = from all.
      top_p: f32[], then from the fewest likeliest that make up this probability (nucleus sampling,
        Holtzman et al. 2020, §3.1); 1 = from all.
      seed: u32[].
    """

    temperature: Array
    top_k: Array
    top_p: Array
    seed: Array


def kept(logits: Array, chance: Chance) -> tuple[Array, Array]:
    """What may be drawn, likeliest first.

    Args:
      logits: f32[B, V].
      chance: how tokens are drawn.

    Returns:
      order i32[B, V], the token of each rank; logits f32[B, V] of the ranks, divided by the
      temperature, -inf where top-k or top-p leaves a rank out. The first is always left.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True).astype(jnp.int32)
    ranked = jnp.take_along_axis(logits, order, axis=-1) / chance.temperature
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    # ≥ 1 keeps all: rounding may let the sum reach 1 before the last rank.
    keep = (before < chance.top_p) | (chance.top_p >= 1)
    keep &= (rank < chance.top_k) | (chance.top_k <= 0)
    keep |= rank == 0
    return order, jnp.where(keep, ranked, -jnp.inf)


def choose(logits: Array, chance: Chance | None, index: Array, step: Array) -> Array:
    """The next token of each row: i32[B].

    Args:
      logits: f32[B, V].
      chance: how to draw; None = take the likeliest, of equals the first.
      index: i32[B], each prompt's number: with the seed and the step it decides its draw, so that
        neither the batch nor a prompt's place in it matters.
      step: i32[], how many tokens were chosen before.
    """
    if chance is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    order, ranked = kept(logits, chance)
    root = jax.random.key(chance.seed)

    def draw(number: Array, row: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(root, number), step)
        return jax.random.categorical(key, row)

    rank = jax.vmap(draw)(index, ranked)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]
