"""Where activations lie on the mesh: what XLA is told between products, so that weights stay put.

Left to itself XLA's partitioner answers a conflict between the axes of a product's two operands by
bringing either of them together; with few rows a device it takes whole layers of weights. So both
sides of a product are pinned: what goes in is whole but for its rows, what comes out of a matrix
split over `tensor` is split there too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flamingo_jax.shapes import Array
from flamingo_jax.sharding import ROWS


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where activations lie. Without a mesh everything is left where it is.

    Attributes:
      mesh: the devices.
      sequence: between layers the tokens, too, are split over `tensor` (sequence parallelism,
        Korthikanti et al. 2022, §4.2.2): norms and what the backward keeps are split as well, and
        an all-reduce becomes a reduce-scatter and an all-gather, of the same bytes.
      attention: the kernel that attention may use on these devices: "plain", or a row of
        `model.fused.FORMS`.
      rounded: are parts of a product's sum rounded before they travel (`products.rounded_sums`)?
    """

    mesh: Mesh | None = None
    sequence: bool = True
    attention: str = "plain"
    rounded: bool = False

    def _pin(self, x: Array, *dims: Any) -> Array:
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*dims)))

    def _over(self, axis: str) -> int:
        return 1 if self.mesh is None else self.mesh.shape[axis]

    @property
    def shards(self) -> int:
        """Into how many parts rows are split."""
        return self._over("replica") * self._over("fsdp")

    @property
    def tensor(self) -> int:
        """Over how many devices products, and heads, are split."""
        return self._over("tensor")

    @property
    def platform(self) -> str:
        """Of the devices."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    def _tensor(self, size: int) -> str | None:
        """The axis for a dim of this size: none where it does not divide it."""
        return "tensor" if size % self._over("tensor") == 0 else None

    def residual(self, x: Array) -> Array:
        """[B, T, D] between layers: rows over ROWS and, where it divides T, tokens over tensor."""
        split = self.sequence and x.ndim == 3 and self._over("tensor") > 1
        return self._pin(x, ROWS, self._tensor(x.shape[1]) if split else None)

    def whole(self, x: Array) -> Array:
        """[B, …] that a product with a split matrix takes: rows over ROWS alone."""
        return self._pin(x, ROWS) if self._over("tensor") > 1 else x

    def split(self, x: Array, dim: int = -1) -> Array:
        """[B, …, O] that such a product gives: rows over ROWS, and O (or another dim) over tensor.

        O is hidden units or heads; where the axis does not divide them they are whole.
        """
        if self._over("tensor") == 1:
            return x
        dim %= x.ndim
        return self._pin(x, ROWS, *[None] * (dim - 1), self._tensor(x.shape[dim]))

    def each(
        self, kernel: Callable[..., Array], heads: Sequence[Array], rows: Sequence[Array]
    ) -> Array:
        """kernel(*heads, *rows) of each device's own parts: what XLA cannot split by itself.

        Args:
          kernel: what is computed of a device's rows and heads; its result is like the first of
            `heads`.
          heads: [B, T, N, H], N of their own; over tensor where it divides all their N.
          rows: [B, …].
        """
        if self.mesh is None or self.mesh.size == 1:
            return kernel(*heads, *rows)
        whole = any(self._tensor(a.shape[2]) is None for a in heads)
        split, own = P(ROWS, None, None if whole else "tensor"), P(ROWS)
        return jax.shard_map(
            kernel,
            mesh=self.mesh,
            in_specs=(*(split for _ in heads), *(own for _ in rows)),
            out_specs=split,
            check_vma=False,  # kernels do not say over which axes their results vary
        )(*heads, *rows)

    def head(self, weights: tuple[Array, ...]) -> tuple[Array, ...]:
        """[D, V] and, if any, [D, W] whole over fsdp: gathered once, not for each chunk's loss."""
        own, *new = weights
        return self._pin(own, None, self._tensor(own.shape[1])), *(self._pin(w) for w in new)

    def spread(self, images: Sequence[Array]) -> Array:
        """Images [n, …] of several batches, in the order of their rows → all of them, [n', …].

        Spread over tensor as well: every device of a tensor group would else encode all of the
        group's images. Those of a device come from its own group's rows. n' is the sum of the n,
        padded with zeros to what can be split.
        """
        shards, tensor = self.shards, self._over("tensor")
        parts = [a.reshape(shards, a.shape[0] // shards, *a.shape[1:]) for a in images]
        grid = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        grid = jnp.pad(grid, ((0, 0), (0, -grid.shape[1] % tensor), *((0, 0),) * (grid.ndim - 2)))
        grid = self._pin(grid, ROWS, "tensor")
        return self._pin(grid.reshape(-1, *grid.shape[2:]), (*ROWS, "tensor"))

    def gather(self, features: Array, sizes: Sequence[int]) -> list[Array]:
        """The inverse of `spread`: [n', …] → [n, …] for each n, split as its batch's rows alone."""
        shards = self.shards
        grid = self._pin(features.reshape(shards, -1, *features.shape[1:]), ROWS)
        found, first = [], 0
        for n in sizes:
            part = grid[:, first : first + n // shards]
            found.append(self._pin(part.reshape(n, *features.shape[1:]), ROWS))
            first += n // shards
        return found


ANYWHERE = Layout()
"""Activations lie where they are."""
