"""Topologies by name: `v4:8x12x16`, `v5e:16x16`, `h100:8x8` (nodes x GPUs), `v5p:8x8x8*2`, `local`.

`*n` behind the shape is n slices of it over the data-centre network. Which shapes there are:

- v5e and v6e have the eight shapes of the vendor's pages (https://docs.cloud.google.com/tpu/docs/v5e
  and v6e), at most 16x16. An axis closes to a ring where it is 16 long.
- v4, v5p and tpu7x have 2x2x1, 2x2x2, 2x2x4 and 2x4x4, and cubes of 4x4x4 side by side: every dim
  a multiple of 4 (docs/v4, docs/v5p). Those of whole cubes are rings along every axis. A pod has
  4096, 8960 and 9216 chips; the largest job of v5p is 6144.

Rings are told to the compiler as MaxText does (accelerator_to_spec_map.py of
https://github.com/AI-Hypercomputer/maxtext): three booleans, whatever the number of dims.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import jax

from flamingo_jax.errors import InputError
from flamingo_jax.planning import gpus
from flamingo_jax.planning.chips import CHIPS, Chip, of_device

LOCAL = "local"
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
"""Shapes of v5e and v6e."""
SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
"""Shapes of v4, v5p and tpu7x below a cube of 4x4x4."""
POD = {"v4": 4096, "v5p": 8960, "tpu7x": 9216}
"""Chips of the largest pod."""
LARGEST_JOB = {"v5p": 6144}
CUBE = 4
RING = 16  # the length from which on an axis of v5e or v6e is a ring

_NAME = re.compile(r"(?P<kind>[a-z0-9]+):(?P<dims>\d+(x\d+)*)(\*(?P<slices>\d+))?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are joined.

    Attributes:
      kind: a key of `CHIPS`, or "local".
      dims: chips along each axis of a slice; (nodes, GPUs of a node); (devices,) of this machine.
      slices: how many of it, joined by the data-centre network.
      wrap: which axes of a slice are rings.
      hosts: processes of JAX, over all slices.
      chip: the chip; None for devices of this machine that are none of `CHIPS`.
      warnings: what may be wrong with it, a sentence each.
    """

    kind: str
    dims: tuple[int, ...]
    slices: int
    wrap: tuple[bool, ...]
    hosts: int
    chip: Chip | None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        if self.kind == LOCAL:
            return LOCAL
        shape = f"{self.kind}:{'x'.join(map(str, self.dims))}"
        return shape if self.slices == 1 else f"{shape}*{self.slices}"

    @property
    def devices(self) -> int:
        """Devices that JAX shows."""
        size = math.prod(self.dims) * self.slices
        return size if self.kind == LOCAL or self.chip is None else size * self.chip.devices

    @property
    def chips(self) -> int:
        """Chips, over all slices."""
        return self.devices if self.chip is None else self.devices // self.chip.devices

    @property
    def island(self) -> int:
        """Devices that are joined by fast links: those of a slice, or of a node of GPUs."""
        gpus = self.chip is not None and not self.chip.torus and self.kind != LOCAL
        return self.dims[-1] if gpus else self.devices // self.slices


def parse(text: str) -> Topology:
    """The topology of this name; see the module's docstring.

    Raises:
      InputError: for a name, kind or shape that there is not.
    """
    if text == LOCAL:
        return _local()
    found = _NAME.fullmatch(text)
    if found is None or found["kind"] not in CHIPS:
        raise InputError(
            f"there is no topology {text!r}; give KIND:SHAPE such as v4:8x12x16, v5e:4x4, h100:2x8 "
            f"or v5p:8x8x8*2 (two slices), KIND one of {', '.join(CHIPS)}; or {LOCAL}"
        )
    chip = CHIPS[found["kind"]]
    dims = tuple(int(size) for size in found["dims"].split("x"))
    slices = int(found["slices"] or 1)
    if not slices or not all(dims):
        raise InputError(f"topology {text!r}: sizes and the number of slices are at least 1")
    if not chip.torus:
        return _nodes(chip, dims, found["slices"])
    if len(dims) != chip.torus:
        raise InputError(
            f"topology {text!r}: a slice of {chip.kind} has {chip.torus} dims, such as "
            f"{chip.kind}:{'x'.join(['4'] * chip.torus)}"
        )
    warnings = _check_flat(chip, dims) if chip.torus == 2 else _check_cubes(chip, dims)
    return Topology(
        kind=chip.kind,
        dims=dims,
        slices=slices,
        wrap=_rings(chip, dims),
        hosts=slices * math.prod(dims) // math.prod(_host(dims)),
        chip=chip,
        warnings=warnings,
    )


def _host(dims: tuple[int, ...]) -> tuple[int, int, int]:
    """The chips of a host along each axis: a square of 2x2, or what there is of it."""
    return min(2, dims[0]), min(2, dims[1]), 1


def _local() -> Topology:
    """The devices of this machine or job, as JAX shows them."""
    devices = jax.devices()
    return Topology(
        kind=LOCAL,
        dims=(len(devices),),
        slices=1,
        wrap=(False,),
        hosts=jax.process_count(),
        chip=of_device(devices[0].device_kind),
    )


def _nodes(chip: Chip, dims: tuple[int, ...], slices: str | None) -> Topology:
    """Nodes of GPUs; the network between them is theirs already, so that there are no slices."""
    if len(dims) != 2 or slices is not None or dims[1] > chip.host:
        raise InputError(
            f"{chip.kind} takes NODESxGPUS, such as {chip.kind}:4x8, at most {chip.host} GPUs a "
            "node and no number of slices"
        )
    return Topology(chip.kind, dims, 1, (False, False), dims[0], chip)


def _check_flat(chip: Chip, dims: tuple[int, ...]) -> tuple[str, ...]:
    if max(dims) > RING:
        raise InputError(
            f"{chip.kind} has at most {RING} chips along a side and {RING}x{RING} in all, not "
            f"{'x'.join(map(str, dims))}; more are slices: {chip.kind}:16x16*2"
        )
    return () if dims in FLAT else (_unlisted(chip, dims, FLAT),)


def _check_cubes(chip: Chip, dims: tuple[int, ...]) -> tuple[str, ...]:
    shape, chips = "x".join(map(str, dims)), math.prod(dims)
    if chips > POD[chip.kind]:
        raise InputError(
            f"{chip.kind}:{shape} is {chips} chips; a pod has {POD[chip.kind]}, more are slices"
        )
    if any(size % CUBE for size in dims):
        if max(dims) > CUBE or chips >= CUBE**3:
            raise InputError(
                f"{chip.kind}:{shape}: from {CUBE}x{CUBE}x{CUBE} on every dim is a multiple of "
                f"{CUBE}; below there are {', '.join('x'.join(map(str, d)) for d in SMALL)}"
            )
        return () if dims in SMALL else (_unlisted(chip, dims, SMALL),)
    warnings = []
    if chips > LARGEST_JOB.get(chip.kind, chips):
        warnings.append(
            f"{chips} chips are more than the {LARGEST_JOB[chip.kind]} of the largest job of "
            f"{chip.kind}"
        )
    if list(dims) != sorted(dims):
        warnings.append(
            f"shapes are written smallest dim first: {'x'.join(map(str, sorted(dims)))}"
        )
    return tuple(warnings)


def _unlisted(chip: Chip, dims: tuple[int, ...], known: tuple[tuple[int, ...], ...]) -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in known)
    shape = "x".join(map(str, dims))
    return f"{shape} is none of the shapes that the vendor lists for {chip.kind}: {shapes}"


def _rings(chip: Chip, dims: tuple[int, ...]) -> tuple[bool, ...]:
    if chip.torus == 2:
        return tuple(size == RING for size in dims)
    return (all(size % CUBE == 0 for size in dims),) * len(dims)


def propose(kind: str, chips: int) -> list[Topology]:
    """Topologies of one slice (or of full nodes) with so many chips, the most cubic first.

    Raises:
      InputError: for an unknown kind, or a number of chips that no shape has; it names near ones.
    """
    if kind not in CHIPS:
        raise InputError(f"there is no kind of chip {kind!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    shapes = [dims for dims in _shapes(chip) if math.prod(dims) == chips]
    if not shapes:
        sizes = sorted({math.prod(dims) for dims in _shapes(chip)})
        below = [str(size) for size in sizes if size < chips][-1:]
        above = [str(size) for size in sizes if size > chips][:1]
        raise InputError(
            f"no slice of {kind} has {chips} chips; the nearest have {' and '.join(below + above)}"
        )
    # The sum of the dims of one volume is least for a cube.
    shapes.sort(key=lambda dims: (sum(dims), dims))
    return [parse(f"{kind}:{'x'.join(map(str, dims))}") for dims in shapes]


def _shapes(chip: Chip) -> list[tuple[int, ...]]:
    """All shapes of a slice that `parse` takes without a warning, and nodes up to 1024."""
    if not chip.torus:
        parts = [(1, gpus) for gpus in (1, 2, 4)]
        return [*parts, *((nodes, chip.host) for nodes in range(1, 1025))]
    if chip.torus == 2:
        return list(FLAT)
    limit = LARGEST_JOB.get(chip.kind, POD[chip.kind])
    sides = range(CUBE, limit // CUBE**2 + 1, CUBE)
    cubes = [(a, b) for a, b in itertools.combinations_with_replacement(sides, 2) if a * b <= limit]
    return [
        *SMALL,
        *((a, b, c) for a, b in cubes for c in range(b, limit // (a * b) + 1, CUBE)),
    ]


def description(topology: Topology) -> dict[str, Any]:
    """Keyword arguments of `jax.experimental.topologies.get_topology_desc`.

    v4 shows a chip's two cores as two devices unless "megacore" is said; v5p is one device as it is
    and tpu7x is two. A GPU, which the compiler would ask its driver about, is described.

    Raises:
      ValueError: for `local`: its devices are `jax.devices()`.
    """
    chip = topology.chip
    if topology.kind == LOCAL or chip is None:
        raise ValueError("local devices are there already: jax.devices()")
    shape = "x".join(map(str, topology.dims))
    if not chip.torus:
        return {
            "platform": "cuda",
            "topology_name": chip.kind,
            "topology": f"1x{shape}",
            "target_config": gpus.target_config(chip),
        }
    arguments: dict[str, Any] = {
        "platform": "tpu",
        "topology_name": f"{chip.kind}:{shape}",
        "chips_per_host_bounds": _host(topology.dims),
        "num_slices": topology.slices,
        "wrap": (*topology.wrap, False)[:3],
    }
    if chip.kind == "v4":
        arguments["chip_config_name"] = "megacore"
    return arguments
