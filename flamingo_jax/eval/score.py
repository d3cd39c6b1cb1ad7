"""Log-likelihoods of given continuations: multiple choice without generating anything.

The prompt with its media runs once; its keys and values serve all its choices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flamingo_jax.eval import decoding
from flamingo_jax.eval.beams import tile
from flamingo_jax.eval.rows import (
    Graph,
    Prompt,
    Rows,
    batches,
    bucket,
    common_sizes,
    make_rows,
    multiple,
    placed,
    power_of_two,
)
from flamingo_jax.eval.shared import Shared
from flamingo_jax.shapes import Array, Params

Choice = Sequence[int]
"""A continuation's token ids."""


@functools.partial(jax.jit, static_argnames="graph")
def _score_rows(
    graph: Graph,
    params: Params,
    rows: Rows,
    logits: Array,
    cache: Any,
    choices: Array,
    lengths: Array,
) -> Array:
    """Log-likelihoods f32[B, K] of choices i32[B, K, C], padded on the right to lengths i32[B, K].

    `logits` f32[B, V + W] and `cache` are those of `decoding.prefill` with room for C tokens.
    """
    B, K, C = choices.shape

    def likelihood(logits: Array, token: Array) -> Array:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]

    first = likelihood(jnp.repeat(logits, K, axis=0), choices[:, :, 0].reshape(-1)).reshape(B, K)
    first = jnp.where(lengths > 0, first, 0.0)
    if C == 1:
        return first
    model = graph.model(params)
    # The last token of a choice is predicted, never fed.
    place = jnp.arange(C - 1)
    fed = place < (lengths - 1)[:, :, None]
    positions = jnp.where(fed, rows.next_position[:, None, None] + place, -1)
    owners = jnp.broadcast_to(rows.last_medium[:, None, None], fed.shape)
    flat = (B * K, C - 1)
    hidden, _ = model.step(
        choices[:, :, :-1].reshape(flat),
        positions.reshape(flat),
        owners.reshape(flat),
        tile(cache, K),
    )

    def later(place: Array) -> Array:
        """f32[B·K] of the tokens at place + 1: one place at a time bounds the logits' memory."""
        at = lax.dynamic_slice_in_dim(hidden, place, 1, axis=1)
        token = lax.dynamic_index_in_dim(choices, place + 1, axis=2, keepdims=False)
        return likelihood(model.logits(at)[:, 0], token.reshape(-1))

    rest = lax.map(later, place).reshape(C - 1, B, K)
    return first + jnp.sum(jnp.where(jnp.moveaxis(fed, 2, 0), rest, 0.0), axis=0)


def score(
    graph: Graph,
    params: Params,
    prompts: Sequence[Prompt],
    choices: Sequence[Sequence[Choice]],
    batch: int = 32,
    uniform: bool = False,
    after: Shared | None = None,
) -> list[np.ndarray]:
    """The log-likelihood of each of a prompt's choices after it, in nats.

    Args:
      graph: the model.
      params: its parameters.
      prompts: any number.
      choices: for each prompt its choices, any number of them.
      batch: sequences (prompt with choice) run at once.
      uniform: pad all batches to one size: for many prompts of like length, where compiling costs
        more than padding.

    Returns:
      For each prompt f32[choices]: sums over the choice's tokens.
    """
    results: list[np.ndarray] = [np.zeros((0,), np.float32)] * len(prompts)
    most = max((len(own) for own in choices), default=0)
    at_once = min(power_of_two(most), power_of_two(batch))  # choices of a prompt
    own_rows = max(batch // at_once, 1)
    sizes = common_sizes(prompts, own_rows) if uniform else None
    everywhere = _longest(choices)
    for numbers in batches(prompts, own_rows):
        longest = everywhere if uniform else _longest([choices[n] for n in numbers])
        room = _room(longest, uniform)
        start = after.tokens if after else 0
        rows = make_rows(graph, [prompts[n] for n in numbers], numbers, sizes, start)
        prefix = after.before(rows, room) if after else None
        logits, cache = decoding.prefill(graph, params, rows, room, prefix)
        parts = []
        for start in range(0, max(len(choices[number]) for number in numbers), at_once):
            own = [choices[number][start : start + at_once] for number in numbers]
            padded, lengths = placed(graph, _pad(own, len(rows.index), at_once, room))
            parts.append(
                np.asarray(_score_rows(graph, params, rows, logits, cache, padded, lengths))
            )
        for row, number in enumerate(numbers):
            found = [part[row] for part in parts]
            results[number] = np.concatenate([*found, results[number]])[: len(choices[number])]
    return results


def _room(longest: int, uniform: bool) -> int:
    """The columns that choices are padded to. Of one token nothing is fed: it has its own size."""
    if longest == 1:
        return 1
    return multiple(longest, 4) if uniform else bucket(longest)


def _longest(choices: Sequence[Sequence[Choice]]) -> int:
    """Tokens of the longest choice; 1 where there is none, so that there is a column to pad to."""
    return max((len(choice) for own in choices for choice in own), default=1) or 1


def _pad(
    choices: Sequence[Sequence[Choice]], B: int, K: int, C: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choices i32[B, K, C], padded on the right, and their lengths i32[B, K]."""
    tokens, lengths = np.zeros((B, K, C), np.int32), np.zeros((B, K), np.int32)
    for row, own in enumerate(choices):
        for place, choice in enumerate(own):
            tokens[row, place, : len(choice)] = choice
            lengths[row, place] = len(choice)
    return tokens, lengths
