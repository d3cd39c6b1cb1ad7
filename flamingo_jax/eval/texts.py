"""Texts to vectors: what the model makes of them without a picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.eval.rows import Graph, Prompt, Rows, batches, make_rows
from flamingo_jax.shapes import Array, Params


@functools.partial(jax.jit, static_argnames="graph")
def _pooled(graph: Graph, params: Params, rows: Rows) -> Array:
    model = graph.model(params)
    cache = model.start_cache(rows.tokens.shape[1], rows.media, rows.frames)
    hidden, _ = model.step(rows.tokens, rows.positions, rows.media_of_token, cache)
    valid = (rows.positions >= 0).astype(jnp.float32)
    sums = jnp.sum(hidden.astype(jnp.float32) * valid[..., None], axis=1)
    return sums / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None]


def pooled(graph: Graph, params: Params, prompts: Sequence[Prompt], batch: int = 32) -> np.ndarray:
    """f32[prompts, D]: the last residual stream of each prompt, averaged over its tokens."""
    found: dict[int, np.ndarray] = {}
    for numbers in batches(prompts, batch):
        rows = make_rows(graph, [prompts[n] for n in numbers], numbers)
        found.update(zip(numbers, np.asarray(_pooled(graph, params, rows)), strict=False))
    return np.stack([found[number] for number in range(len(prompts))])
