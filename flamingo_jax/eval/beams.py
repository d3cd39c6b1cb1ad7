"""Beam search on the device, for many prompts at once.

A sequence's score is its log-likelihood divided by (its number of tokens)^penalty; the one with the
highest is returned. A beam ends at a stop token that is among the best K continuations, or at the
last step. A row ends when nothing that its beams can still become scores higher.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flamingo_jax.eval.decoding import feed, one_of
from flamingo_jax.eval.rows import Graph, Rows
from flamingo_jax.shapes import Array, Params

NOWHERE = -1e30
"""The log-likelihood of beams that do not exist yet: finite, so that sums stay ordered."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Search:
    """Where a search stands.

    Attributes:
      step: i32[], tokens chosen so far.
      tokens: i32[B, K, N] of the live beams.
      sums: f32[B, K], their log-likelihoods, best first.
      best_tokens: i32[B, N] of the best sequence that has ended.
      best_count, best_sum, best_score: i32[B], f32[B], f32[B] of it.
      done: bool[B], rows that have ended.
    """

    step: Array
    tokens: Array
    sums: Array
    best_tokens: Array
    best_count: Array
    best_sum: Array
    best_score: Array
    done: Array


def tile(cache: Any, copies: int) -> Any:
    """A cache of B rows as one of B · copies: row b becomes rows b · copies, b · copies + 1, …"""

    def rows(axis: int) -> Any:
        return lambda a: jnp.repeat(a, copies, axis=axis)

    return dataclasses.replace(
        cache,
        keys=rows(1)(cache.keys),
        values=rows(1)(cache.values),
        media=jax.tree.map(rows(1), cache.media),
        frames=rows(0)(cache.frames),
        valid=rows(0)(cache.valid),
    )


def _reorder(cache: Any, parents: Array) -> Any:
    """Gives beam k of row b the past of beam parents[b, k]; media are the same for all beams."""
    B, K = parents.shape
    rows = (jnp.arange(B)[:, None] * K + parents).reshape(-1)
    return dataclasses.replace(cache, keys=cache.keys[:, rows], values=cache.values[:, rows])


def _expand(
    search: Search, logits: Array, stop: Array, limit: Array, penalty: Array
) -> tuple[Search, Array]:
    """Chooses the next token of every beam.

    Args:
      search: where it stands.
      logits: f32[B, K, V].
      stop: i32[k].
      limit: i32[], tokens at most.
      penalty: f32[].

    Returns:
      The search a token further, and parents i32[B, K]: the beam that each live beam goes on.
    """
    B, K, V = logits.shape
    totals = search.sums[:, :, None] + jax.nn.log_softmax(logits, axis=-1)
    # At most K · |stop| of them end: K that go on are surely among these.
    candidates = min(K * (1 + stop.shape[0]), K * V)
    sums, flat = lax.top_k(totals.reshape(B, K * V), candidates)
    parents, tokens = flat // V, flat % V
    ends = one_of(tokens, stop)
    count = (search.step + 1).astype(jnp.float32)

    def score(sum_: Array, count: Array) -> Array:
        return sum_ / count**penalty

    ended = jnp.where(ends & (jnp.arange(candidates) < K), score(sums, count), -jnp.inf)
    place = jnp.argmax(ended, axis=1)
    pick = functools.partial(_pick, place=place)
    better = (pick(ended) > search.best_score) & ~search.done
    past = jnp.take_along_axis(search.tokens, pick(parents)[:, None, None], axis=1)[:, 0]
    whole = _write(past[:, None], pick(tokens)[:, None], search.step)[:, 0]
    best_score = jnp.where(better, pick(ended), search.best_score)

    sums_on, places = lax.top_k(jnp.where(ends, 2 * NOWHERE, sums), K)
    parents = jnp.take_along_axis(parents, places, axis=1)
    tokens = jnp.take_along_axis(tokens, places, axis=1)
    live = jnp.take_along_axis(search.tokens, parents[:, :, None], axis=1)
    # Sums only fall: a beam scores best at its last step where length is rewarded, else at once.
    reach = jnp.where(penalty > 0, limit.astype(jnp.float32), count + 1)
    new = Search(
        step=search.step + 1,
        tokens=_write(live, tokens, search.step),
        sums=sums_on,
        best_tokens=jnp.where(better[:, None], whole, search.best_tokens),
        best_count=jnp.where(better, search.step + 1, search.best_count),
        best_sum=jnp.where(better, pick(sums), search.best_sum),
        best_score=best_score,
        done=search.done | (best_score >= score(sums_on[:, 0], reach)),
    )
    return new, parents


def _pick(values: Array, place: Array) -> Array:
    return jnp.take_along_axis(values, place[:, None], axis=1)[:, 0]


def _write(tokens: Array, token: Array, step: Array) -> Array:
    """tokens[B, K, N] with token[B, K] at `step`."""
    return lax.dynamic_update_slice(tokens, token[:, :, None], (0, 0, step))


@functools.partial(jax.jit, static_argnames=("graph", "beams", "room"))
def beam_search(
    graph: Graph,
    params: Params,
    rows: Rows,
    logits: Array,
    cache: Any,
    stop: Array,
    limit: Array,
    penalty: Array,
    beams: int,
    room: int,
) -> tuple[Array, Array, Array]:
    """The best sequence of each prompt that a search with `beams` beams finds.

    Args:
      graph: the model.
      params: its parameters.
      rows: the prompts.
      logits: f32[B, V + W] of `decoding.prefill`.
      cache: of `decoding.prefill`, with as much room.
      stop: i32[k], tokens that end a sequence.
      limit: i32[], tokens at most, not more than `room`.
      penalty: f32[], see the module's docstring; 0 = the likeliest.
      beams: K.
      room: N.

    Returns:
      As `decoding.decode`: tokens i32[B, N], counts i32[B], log-likelihoods f32[B].
    """
    model = graph.model(params)
    B, K = logits.shape[0], beams
    position = jnp.repeat(rows.next_position, K)
    medium = jnp.repeat(rows.last_medium, K)
    expand = functools.partial(_expand, stop=stop, limit=limit, penalty=penalty)

    def body(state: tuple[Search, Any]) -> tuple[Search, Any]:
        search, cache = state
        newest = lax.dynamic_index_in_dim(search.tokens, search.step - 1, axis=2, keepdims=False)
        logits, cache = feed(model, newest.reshape(-1), position + search.step - 1, medium, cache)
        search, parents = expand(search, logits.reshape(B, K, -1))
        return search, _reorder(cache, parents)

    def going_on(state: tuple[Search, Any]) -> Array:
        return (state[0].step < limit) & ~jnp.all(state[0].done)

    search = Search(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((B, K, room), jnp.int32),
        sums=jnp.full((B, K), NOWHERE, jnp.float32).at[:, 0].set(0.0),
        best_tokens=jnp.zeros((B, room), jnp.int32),
        best_count=jnp.zeros((B,), jnp.int32),
        best_sum=jnp.zeros((B,), jnp.float32),
        best_score=jnp.full((B,), -jnp.inf, jnp.float32),
        done=rows.index < 0,
    )
    search, _ = expand(search, jnp.repeat(logits[:, None], K, axis=1))
    search, _ = lax.while_loop(going_on, body, (search, tile(cache, K)))
    unended = search.sums[:, 0] / limit.astype(jnp.float32) ** penalty
    live = (unended > search.best_score) & ~search.done
    return (
        jnp.where(live[:, None], search.tokens[:, 0], search.best_tokens),
        jnp.where(live, limit, search.best_count),
        jnp.where(live, search.sums[:, 0], search.best_sum),
    )
