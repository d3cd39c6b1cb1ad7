"""Layouts of one experiment that a sweep looks at, and which of them need not be compiled.

A candidate is nothing but overrides of the config, so that what is planned is what `train` with the
same overrides runs. Two facts spare compiling:

- of two that differ in rematerialisation, micro-batches or batch alone, the one that keeps more
  needs more memory: if it fits, so does the other, which only computes or gathers more; if the
  other does not fit, neither does it (a larger batch is another step, though, never a worse one);
- no step's MFU is above its model FLOPs over its hardware FLOPs (`known.survey`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from flamingo_jax.errors import InputError

AXES = ("batch", "remat", "mesh", "micro_batches")
"""What can be swept."""
REMAT = ("none", "dots", "attention", "full")
"""Values of config.model.remat, what keeps most first."""
FACTORS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
"""Of every dataset's batch."""
MOST_PARTS = 16
"""Micro-batches of a dataset."""
MOST_TENSOR = 16
"""The paper's own (Flamingo §B.1.2); beyond, every product is a sliver."""
MOST_REPLICAS = 16
"""A slice: further copies of the weights save no traffic worth their memory."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One layout.

    Attributes:
      mesh: replica, fsdp, tensor.
      remat: one of `REMAT`.
      parts: micro-batches; a dataset with fewer rows a device has as many as it can.
      factor: of the config's batches.
      overrides: of the config, beside the user's own: only what is swept.
    """

    mesh: tuple[int, int, int]
    remat: str
    parts: int
    factor: float
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """For files and tables: "r1-f16-t1-full-m2-b1"."""
        replica, fsdp, tensor = self.mesh
        return f"r{replica}-f{fsdp}-t{tensor}-{self.remat}-m{self.parts}-b{self.factor:g}"

    def dominates(self, other: Candidate) -> bool:
        """Whether this one keeps at least as much of the same step on the same mesh."""
        if (self.mesh, self.factor) != (other.mesh, other.factor):
            return False
        return REMAT.index(self.remat) <= REMAT.index(other.remat) and self.parts <= other.parts

    def needs_more(self, other: Candidate) -> bool:
        """Whether it certainly takes at least the other's memory."""
        same = dataclasses.replace(self, factor=other.factor)
        return self.factor >= other.factor and same.dominates(other)


def meshes(
    devices: int,
    heads: Sequence[int],
    rows: Sequence[int],
    width: int,
    slices: int = 1,
    own: tuple[int, int, int] | None = None,
) -> list[tuple[int, int, int]]:
    """(replica, fsdp, tensor) over all devices that make sense, the fewest copies first.

    Tensor divides all heads and is at most `MOST_TENSOR`, fsdp divides the width, replica is a
    multiple of the slices with at most `MOST_REPLICAS` copies in each, and replica x fsdp divides
    every batch.

    Args:
      devices: in all.
      heads: numbers of heads of attentions (and of their keys).
      rows: every dataset's batch.
      width: D, of the language model.
      slices: groups of devices with a network of their own.
      own: the config's mesh, which is among them whatever it is, if it divides the batches.
    """
    found = []
    for tensor in range(1, min(MOST_TENSOR, devices) + 1):
        if devices % tensor or math.gcd(*heads, tensor) != tensor:
            continue
        split = devices // tensor
        for replica in range(slices, min(split, MOST_REPLICAS * slices) + 1, slices):
            if split % replica or width % (split // replica):
                continue
            if all(batch % split == 0 for batch in rows):
                found.append((replica, split // replica, tensor))
    if own is not None and own not in found and all(b % (own[0] * own[1]) == 0 for b in rows):
        found.append(own)
    return sorted(found, key=lambda mesh: (mesh[0], mesh[2]))


def make(
    c: Any, settings: Any, where: str, axes: Iterable[str], devices: int, slices: int = 1
) -> list[Candidate]:
    """All candidates of a stage.

    Args:
      c: the config, with the user's overrides, not finished.
      settings: the stage's part of it.
      where: of that part, as overrides name it: "train" or "pretrain.language".
      axes: of `AXES`; what is not swept is the config's.
      devices: in all.
      slices: groups of them with a network of their own.

    Raises:
      InputError: for an unknown axis, or if there is no candidate.
    """
    swept = set(axes)
    if unknown := sorted(swept - set(AXES)):
        raise InputError(f"--sweep does not know {unknown[0]!r}; it takes {', '.join(AXES)}")
    rows = {name: row.batch for name, row in settings.datasets.items()}
    own = _own_mesh(c.mesh, devices)
    found = []
    for factor in FACTORS if "batch" in swept else (1.0,):
        batches = {name: batch * factor for name, batch in rows.items()}
        if any(batch != int(batch) or batch < 1 for batch in batches.values()):
            continue
        whole = {name: int(batch) for name, batch in batches.items()}
        layouts = [own] if own else []
        if "mesh" in swept:
            language = c.model.language
            heads = [language.heads, language.kv_heads or language.heads, c.model.xattn.heads]
            sizes = list(whole.values())
            layouts = meshes(devices, heads, sizes, language.width, slices, own)
        for mesh in layouts:
            if any(batch % (mesh[0] * mesh[1]) for batch in whole.values()):
                continue
            some = [settings.micro_batches]
            if "micro_batches" in swept:
                some = _parts(batch // (mesh[0] * mesh[1]) for batch in whole.values())
            for parts in some:
                for remat in REMAT if "remat" in swept else (c.model.remat,):
                    changed = _overrides(swept, where, mesh, remat, parts, whole, factor)
                    found.append(Candidate(mesh, remat, parts, factor, changed))
    if not found:
        raise InputError(
            f"--sweep finds no layout for {devices} devices: the batches "
            f"{', '.join(f'{name} {batch}' for name, batch in rows.items())} must be "
            "multiples of replica x fsdp; sweep the mesh, or change the batches"
        )
    return found


def _own_mesh(mesh: Any, devices: int) -> tuple[int, int, int] | None:
    """The config's mesh over so many devices; None if it is of another number."""
    sizes = [mesh.replica, mesh.fsdp, mesh.tensor]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = devices // math.prod(size for size in sizes if size != -1)
    replica, fsdp, tensor = sizes
    return (replica, fsdp, tensor) if replica * fsdp * tensor == devices else None


def _parts(rows: Iterable[int]) -> list[int]:
    """The powers of two that the rows of a device can be cut into, of all datasets alike."""
    most = math.gcd(*rows)
    return [2**power for power in range(MOST_PARTS.bit_length()) if most % 2**power == 0]


def _overrides(
    swept: set[str],
    where: str,
    mesh: tuple[int, int, int],
    remat: str,
    parts: int,
    batches: dict[str, int],
    factor: float,
) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    if "mesh" in swept:
        names = ("mesh.replica", "mesh.fsdp", "mesh.tensor")
        found |= dict(zip(names, map(str, mesh), strict=True))
    if "remat" in swept:
        found["model.remat"] = remat
    if "micro_batches" in swept:
        found[f"{where}.micro_batches"] = str(parts)
    if factor != 1:
        found |= {f"{where}.datasets.{name}.batch": str(n) for name, n in batches.items()}
    return tuple(found.items())


def ordered(many: Iterable[Candidate], bounds: dict[Candidate, float]) -> list[Candidate]:
    """The likeliest to run out of memory first, which is known in seconds, and the best at once.

    That is the highest bound of MFU (`bounds`), then the fewest micro-batches, the largest batch,
    the fewest copies and the least tensor parallelism.
    """
    return sorted(
        many,
        key=lambda one: (-bounds.get(one, 0.0), one.parts, -one.factor, one.mesh[0], one.mesh[2]),
    )


def spared(
    candidate: Candidate,
    bound: float,
    fitting: dict[Candidate, float],
    overflowing: Iterable[Candidate],
) -> str:
    """Why a candidate need not be compiled; "" if it must.

    Args:
      candidate: the one in question.
      bound: no MFU of it is above this; infinite = unknown.
      fitting: those known to fit, with their MFU at the floor.
      overflowing: those known not to fit.
    """
    for other in overflowing:
        if candidate.needs_more(other):
            return f"does not fit: it needs more than {other.name}"
    for other in fitting:
        if other.dominates(candidate):
            return f"no better: {other.name} fits and computes less"
    best = max(fitting, key=lambda one: fitting[one], default=None)
    if best is not None and bound <= fitting[best]:
        return f"no better: at most {bound:.3f} of the peak, {best.name} has {fitting[best]:.3f}"
    return ""
