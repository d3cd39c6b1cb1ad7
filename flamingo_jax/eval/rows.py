"""Prompts of different lengths as arrays of few different shapes: the fewer, the less is compiled.

Prompts are padded on the left, so that all end in the same slot and new tokens follow at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flamingo_jax import sharding
from flamingo_jax.layout import Layout
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.shapes import Array, Params


class Graph:
    """A model's structure, without parameters: the static argument of what is compiled for it.

    Attributes:
      config: of the model; graphs of equal configs and layouts are equal.
      layout: where activations lie: over the parameters' mesh, as in training.
      abstract: the canonical tree of ShapeDtypeStructs, in f32.
    """

    def __init__(self, config: FlamingoConfig, mesh: Mesh | None = None):
        """Derives the structure; no parameter is made.

        Args:
          config: of the model.
          mesh: that parameters are spread over; None = they are on one device.
        """
        self.layout = Layout(mesh)
        model = nnx.eval_shape(lambda: Flamingo(config, rngs=nnx.Rngs(0), layout=self.layout))
        self._definition, state = nnx.split(model)
        self.config = config
        self.abstract: Params = nnx.to_pure_dict(state)
        self._key = (config, self.layout)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self._key == other._key)

    def model(self, params: Params) -> Flamingo:
        """The model of these parameters, the whole canonical tree."""
        return nnx.merge(self._definition, params)

    @property
    def media_shape(self) -> tuple[int, int] | None:
        """(R, D) of a medium's tokens, as the gated layers see them; None for a bare LM."""
        resampler = self.config.resampler
        if resampler is None:
            return None
        width = self.config.language.width if self.config.project else resampler.width
        return resampler.latents, width


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, its media encoded already.

    Attributes:
      tokens: the ids, at least one.
      media_of_token: for each token the medium it sees, from 1; 0 = none.
      media: the media tokens [R, D] of each medium (`media.MediaEncoder`).
    """

    tokens: Sequence[int]
    media_of_token: Sequence[int]
    media: Sequence[np.ndarray] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Prompts as the rows of a batch.

    Attributes:
      tokens: i32[B, T], padded on the left with 0.
      positions: i32[B, T], -1 at padding.
      media_of_token: i32[B, T].
      media: media tokens [B, M·R, D], or None for a bare language model.
      frames: i32[B, M], 1 where there is a medium, else 0.
      index: i32[B], the number of each row's prompt; -1 for rows that only fill the batch up.
    """

    tokens: Array
    positions: Array
    media_of_token: Array
    media: Array | None
    frames: Array
    index: Array

    @property
    def next_position(self) -> Array:
        """i32[B], the position of the token after the prompt."""
        return self.positions[:, -1] + 1

    @property
    def last_medium(self) -> Array:
        """i32[B], the medium that the prompt's last token sees, and every new token after it."""
        return self.media_of_token[:, -1]


def bucket(count: int, least: int = 8) -> int:
    """The next of least · (1, 3/2, 2, 3, 4, 6, 8, …): a third of it is padding at most."""
    size, odd = least, False
    while size < count:
        size = size * 4 // 3 if odd else size * 3 // 2
        odd = not odd
    return size


def power_of_two(count: int) -> int:
    """The next power of two, at least 1."""
    return 1 << max(count - 1, 0).bit_length()


def multiple(count: int, of: int) -> int:
    """`count` rounded up to a multiple."""
    return -(-count // of) * of


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a batch: B rows, T tokens, M media."""

    rows: int
    tokens: int
    media: int


def own_sizes(prompts: Sequence[Prompt]) -> Sizes:
    """Sizes for one batch of prompts, of few different ones: others may share its program."""
    return Sizes(
        rows=power_of_two(len(prompts)),
        tokens=bucket(max(len(prompt.tokens) for prompt in prompts)),
        media=power_of_two(max(len(prompt.media) for prompt in prompts)),
    )


def common_sizes(prompts: Sequence[Prompt], rows: int) -> Sizes:
    """Sizes for all batches of these prompts: they share one program, hence no more padding."""
    return Sizes(
        rows=power_of_two(min(rows, len(prompts))),
        tokens=multiple(max((len(prompt.tokens) for prompt in prompts), default=1), 8),
        media=max((len(prompt.media) for prompt in prompts), default=1),
    )


def make_rows(
    graph: Graph,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    sizes: Sizes | None = None,
    start: int = 0,
) -> Rows:
    """Pads prompts to a batch.

    A model that can see gets at least one (absent) medium a row, as in training: its gated layers
    change text without pictures too.

    Args:
      graph: the model.
      prompts: at least one.
      numbers: each prompt's number: draws go by it, not by the place in the batch.
      sizes: of the batch, large enough for all; `own_sizes` when None. Rows are filled up to what
        can be split over the model's mesh.
      start: the position of each prompt's first token.
    """
    sizes = sizes or own_sizes(prompts)
    B, T, M = multiple(sizes.rows, graph.layout.shards), sizes.tokens, max(sizes.media, 1)
    tokens, owners = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    positions = np.full((B, T), -1, np.int32)
    for row, prompt in enumerate(prompts):
        first = T - len(prompt.tokens)
        tokens[row, first:] = prompt.tokens
        owners[row, first:] = prompt.media_of_token
        positions[row, first:] = start + np.arange(len(prompt.tokens))
    index = np.full((B,), -1, np.int32)
    index[: len(prompts)] = numbers
    if graph.media_shape is None:
        none = np.zeros((B, 0), np.int32)
        return placed(graph, Rows(tokens, positions, owners, None, none, index))
    R, D = graph.media_shape
    media, frames = (
        np.zeros((B, M, R, D), jnp.dtype(graph.config.dtype)),
        np.zeros((B, M), np.int32),
    )
    for row, prompt in enumerate(prompts):
        frames[row, : len(prompt.media)] = 1
        for place, latents in enumerate(prompt.media):
            media[row, place] = latents
    return placed(graph, Rows(tokens, positions, owners, media.reshape(B, M * R, D), frames, index))


def batches(prompts: Sequence[Prompt], rows: int) -> list[list[int]]:
    """The prompts' numbers in batches of at most `rows`, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].tokens))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def placed(graph: Graph, arrays: Any) -> Any:
    """Arrays with a leading row dim, split over the model's mesh as a batch is in training."""
    mesh = graph.layout.mesh
    return arrays if mesh is None else jax.device_put(arrays, sharding.rows_sharding(mesh))
