"""What decoding keeps between calls: keys and values of a batch, and of what stands before it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from flamingo_jax.model.language import Before
from flamingo_jax.shapes import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Text and media that stand before every row of a batch, read once and kept once.

    Attributes:
      keys, values: [L, P, K, H] of the self-attention.
      far: [L, F, N, H], encodings of the distances F - 1, F - 2, …, 0 by each block; None with
        rotary positions.
      media: keys and values [n, M·R, N, H] of the gated layers, or None without media.
      frames: i32[M] valid frames of each medium; those that are there come first.
      valid: bool[P], the slots that hold a token: the last ones.
    """

    keys: Array
    values: Array
    far: Array | None
    media: tuple[Array, Array] | None
    frames: Array
    valid: Array

    @property
    def tokens(self) -> Array:
        """i32[], how many there are: the position of a row's first token."""
        return jnp.sum(self.valid).astype(jnp.int32)

    @property
    def media_count(self) -> Array:
        """i32[], how many media there are: a row's own first one has the next number."""
        return jnp.sum(self.frames > 0).astype(jnp.int32)

    def before(self, positions: Array) -> Before:
        """How tokens at positions i32[B, T], counted from the prefix's start, stand to it."""
        mask = self.valid[None, None, None]
        if self.far is None:
            return Before(mask, None)
        P, F = self.valid.shape[0], self.far.shape[1]
        slots = jnp.arange(P) - (P - self.tokens)  # the positions of its tokens
        distances = positions[:, :, None] - slots
        return Before(mask, jnp.clip(F - 1 - distances, 0, F - 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding keeps between calls.

    Attributes:
      keys, values: [L, B, S, K, H] of the self-attention.
      media: keys and values [n, B, M·R, N, H] of the gated layers, or None without media.
      frames: i32[B, M] valid frames of each medium.
      valid: bool[B, S], the slots that hold a token.
      offset: i32[], the next free slot.
      prefix: what stands before every row, or None.
    """

    keys: Array
    values: Array
    media: tuple[Array, Array] | None
    frames: Array
    valid: Array
    offset: Array
    prefix: Prefix | None = None
