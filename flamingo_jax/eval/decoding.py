"""The compiled parts of decoding: the prompt at once, then token by token on the device.

Keys and values of the prompt, of new tokens and of the media are computed once and kept; the host
is not asked between tokens, except by `stream`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flamingo_jax.eval.rows import Graph, Rows
from flamingo_jax.eval.sampling import Chance, choose
from flamingo_jax.model.cache import Prefix
from flamingo_jax.shapes import Array, Params


@functools.partial(jax.jit, static_argnames=("graph", "room"))
def prefill(
    graph: Graph, params: Params, rows: Rows, room: int, prefix: Prefix | None = None
) -> tuple[Array, Any]:
    """Runs the prompts.

    Args:
      graph: the model.
      params: its parameters.
      rows: the prompts, without the prefix.
      room: slots of the cache beyond the prompt's.
      prefix: what stands before every prompt.

    Returns:
      Logits f32[B, V + W] of the first new token, and the cache.
    """
    model = graph.model(params)
    cache = model.start_cache(rows.tokens.shape[1] + room, rows.media, rows.frames, prefix)
    hidden, cache = model.step(rows.tokens, rows.positions, rows.media_of_token, cache)
    return model.logits(hidden[:, -1:])[:, 0], cache


@functools.partial(jax.jit, static_argnames=("graph", "reach"))
def read_prefix(graph: Graph, params: Params, rows: Rows, reach: int) -> Prefix:
    """Runs the one prompt that will stand before others, of `reach` tokens at most."""
    model = graph.model(params)
    cache = model.start_cache(rows.tokens.shape[1], rows.media, rows.frames)
    _, cache = model.step(rows.tokens, rows.positions, rows.media_of_token, cache)
    return model.prefix_of(cache, reach)


def feed(
    model: Any, tokens: Array, positions: Array, media: Array, cache: Any
) -> tuple[Array, Any]:
    """Appends one token a row.

    Args:
      model: the `Flamingo`.
      tokens: i32[B].
      positions: i32[B].
      media: i32[B], the medium each token sees.
      cache: what stands before.

    Returns:
      Logits f32[B, V + W] of the token after it, and the cache.
    """
    hidden, cache = model.step(tokens[:, None], positions[:, None], media[:, None], cache)
    return model.logits(hidden)[:, 0], cache


def one_of(tokens: Array, stop: Array) -> Array:
    """Whether each token is one of stop i32[k]: bool of tokens' shape."""
    return jnp.any(tokens[..., None] == stop, axis=-1)


@functools.partial(jax.jit, static_argnames=("graph", "room"))
def decode(
    graph: Graph,
    params: Params,
    rows: Rows,
    logits: Array,
    cache: Any,
    stop: Array,
    limit: Array,
    chance: Chance | None,
    room: int,
) -> tuple[Array, Array, Array]:
    """Chooses tokens until every row has stopped or has `limit` of them.

    Args:
      graph: the model.
      params: its parameters.
      rows: the prompts.
      logits: f32[B, V + W] of `prefill`.
      cache: of `prefill`, with as much room.
      stop: i32[k], tokens that end a row.
      limit: i32[], at most `room`.
      chance: how to draw; None = greedy.
      room: N.

    Returns:
      tokens i32[B, N], the one that stopped a row included, 0 after it; counts i32[B]; and
      f32[B], the log-likelihood of these tokens (untempered).
    """
    model = graph.model(params)
    B = logits.shape[0]

    def pick(logits: Array, step: Array, done: Array, total: Array) -> tuple[Array, Array, Array]:
        token = choose(logits, chance, rows.index, step)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        likelihood = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
        total = total + jnp.where(done, 0.0, likelihood)
        return jnp.where(done, 0, token), done | one_of(token, stop), total

    def body(state: Any) -> Any:
        step, tokens, token, done, total, counts, cache = state
        logits, cache = feed(model, token, rows.next_position + step - 1, rows.last_medium, cache)
        counts = counts + ~done
        token, done, total = pick(logits, step, done, total)
        tokens = lax.dynamic_update_slice(tokens, token[:, None], (0, step))
        return step + 1, tokens, token, done, total, counts, cache

    def going_on(state: Any) -> Array:
        step, done = state[0], state[3]
        return (step < limit) & ~jnp.all(done)

    fillers = rows.index < 0
    zero = jnp.zeros((), jnp.int32)
    token, done, total = pick(logits, zero, fillers, jnp.zeros((B,), jnp.float32))
    tokens = jnp.zeros((B, room), jnp.int32).at[:, 0].set(token)
    counts = (~fillers).astype(jnp.int32)
    state = (zero + 1, tokens, token, done, total, counts, cache)
    _, tokens, _, _, total, counts, _ = lax.while_loop(going_on, body, state)
    return tokens, counts, total


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def next_token(
    graph: Graph,
    params: Params,
    rows: Rows,
    token: Array,
    step: Array,
    cache: Any,
    chance: Chance | None,
) -> tuple[Array, Any]:
    """Feeds the token chosen at step - 1 and chooses that of `step`: i32[B], and the cache."""
    position = rows.next_position + step - 1
    logits, cache = feed(graph.model(params), token, position, rows.last_medium, cache)
    return choose(logits, chance, rows.index, step), cache


first_token = jax.jit(choose)


@functools.partial(jax.jit, static_argnames="graph")
def forward(graph: Graph, params: Params, batch: Any) -> Array:
    """The full forward pass of a `shapes.Batch`: logits f32[B, T, V + W]."""
    return graph.model(params)(batch)
