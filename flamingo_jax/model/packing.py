"""Several batches as one stream, so that a step multiplies by each weight once for all of them.

A weight that is split over devices is brought together, and its gradient summed over them, once for
every product with it: four datasets one after another would pay four times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the batches' tokens lie in the stream [Z, J, …].

    Rows of the stream are the shards of the batches' rows, so that no token leaves its device; in
    each, the batches follow one another. A single batch is a stream of its own rows.

    Attributes:
      sizes: (rows, tokens of a row) of each batch.
      shards: into how many parts the rows of each are split over devices.
    """

    sizes: tuple[tuple[int, int], ...]
    shards: int = 1

    @property
    def rows(self) -> int:
        """Z."""
        return self.sizes[0][0] if len(self.sizes) == 1 else self.shards

    def pack(self, parts: Sequence[Array]) -> Array:
        """[B, T, …] of each batch → [Z, J, …]."""
        laid = [
            a.reshape(self.rows, B * T // self.rows, *a.shape[2:])
            for a, (B, T) in zip(parts, self.sizes, strict=True)
        ]
        return laid[0] if len(laid) == 1 else jnp.concatenate(laid, axis=1)

    def unpack(self, stream: Array) -> list[Array]:
        """The inverse: [Z, J, …] → [B, T, …] of each batch."""
        # Not slices: their gradients would be summed, each padded to the whole stream.
        parts = lax.split(stream, [B * T // self.rows for B, T in self.sizes], axis=1)
        return [
            part.reshape(B, T, *stream.shape[2:])
            for part, (B, T) in zip(parts, self.sizes, strict=True)
        ]


def packing(batches: Sequence[Array], shards: int = 1) -> Packing:
    """The packing of arrays [B, T, …]."""
    return Packing(tuple((a.shape[0], a.shape[1]) for a in batches), shards)
