"""The least time that a step can take on a topology, from published peaks; what follows from it.

The floor is the longest of its products at the chip's peak, its collectives over all links at once
and what it reads from the hosts' memory, each perfectly overlapped with the others: no step is
faster. Bytes on the wire are those of
ring algorithms, which are also the least that any algorithm sends (Thakur et al. 2005, Optimization
of Collective Communication Operations in MPICH, §4; Austin et al. 2025, How to Scale Your Model,
part 3). `estimate` adds a compiler's cycles: a model that no measurement has calibrated.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping

from flamingo_jax.planning.chips import Chip
from flamingo_jax.planning.topology import Topology

LABEL = "compiler model, uncalibrated"
SECONDS_A_DAY = 86_400
OPS = (
    *("all-gather", "reduce-scatter", "all-reduce", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective of a partitioned program, as far as its bytes go.

    Attributes:
      op: one of `OPS`.
      axis: of the mesh, "fsdp", or axes joined by "+".
      bytes: of its result on one device.
      group: devices that take part together.
      inside: how many of a group are joined by fast links: of one slice or node; see `inside`.
      times: how often it runs in a step.
    """

    op: str
    axis: str
    bytes: int
    group: int
    inside: int
    times: int = 1


def inside(axis: str, mesh: Mapping[str, int], island: int) -> int:
    """How many of a collective's group are joined by fast links.

    Args:
      axis: the mesh axes that vary within the group, joined by "+".
      mesh: sizes of the mesh's axes, the slowest first (`Mesh.shape`); the devices of an island
        follow one another in it.
      island: its devices (`Topology.island`).
    """
    members = [0]
    stride = math.prod(mesh.values())
    for name, size in mesh.items():
        stride //= size
        if name in axis.split("+"):
            members = [first + i * stride for first in members for i in range(size)]
    return sum(place < island for place in members)


def wire_bytes(op: str, result: float, group: int) -> float:
    """Bytes that each of `group` devices sends, of a collective whose result has `result` bytes.

    With g devices: (g-1)/g of the result of an all-gather or all-to-all; twice that for an
    all-reduce, a reduce-scatter and an all-gather; g-1 times the result of a reduce-scatter, which
    is a g-th of what goes in; all of a permutation's and, less than one of g, of a broadcast's.

    Raises:
      ValueError: for an op that is none of `OPS`.
    """
    if op not in OPS:
        raise ValueError(f"there is no collective {op!r}; there are {', '.join(OPS)}")
    if group <= 1:
        return 0.0
    others = (group - 1) / group
    shares = {
        "all-gather": others,
        "all-to-all": others,
        "all-reduce": 2 * others,
        "reduce-scatter": group - 1.0,
        "collective-permute": 1.0,
        "collective-broadcast": others,
    }
    return result * shares[op]


def paths(transfer: Transfer) -> tuple[float, float]:
    """Bytes that a device sends at one run over fast links, and over the network between islands.

    A group within an island uses fast links alone. One that spans them does the best it can: each
    of `inside` members has its share of the result cross the network once, and the island passes it
    on. A permutation's pairs are taken to lie within an island where they can.
    """
    op, result, group = transfer.op, float(transfer.bytes), transfer.group
    inside = min(transfer.inside, group)
    outer = max(group // inside, 1)
    if outer == 1:
        return wire_bytes(op, result, group), 0.0
    if op == "reduce-scatter":
        return wire_bytes(op, result * outer, inside), wire_bytes(op, result, outer)
    if op == "all-to-all":
        return result * (inside - 1) / group, wire_bytes(op, result, outer)
    if op == "collective-permute":
        return (0.0, result) if inside == 1 else (result, 0.0)
    return wire_bytes(op, result, inside), wire_bytes(op, result / inside, outer)


@dataclasses.dataclass(frozen=True)
class Floor:
    """Seconds of a step's parts, each alone at its peak.

    Attributes:
      compute: products and convolutions.
      links: collectives over all of a chip's links at once.
      one_axis: the same over the links of a single axis of the torus: what a mesh axis laid along
        one axis of the chips gets. Equal to `links` behind a switch.
      network: between slices or nodes.
      host: what is brought from the hosts' memory; None where that rate is not known.
      by_axis: (mesh axis, op) → bytes that a chip sends.
    """

    compute: float
    links: float
    one_axis: float
    network: float
    host: float | None
    by_axis: dict[tuple[str, str], float]

    @property
    def seconds(self) -> float:
        """The least that a step can take."""
        return max(self.compute, self.links, self.network, self.host or 0.0)


def floor(
    flops_per_chip: float,
    transfers: Iterable[Transfer],
    topology: Topology,
    brought: int = 0,
) -> Floor | None:
    """The parts of a step's least time; None for devices whose peaks are not known.

    Args:
      flops_per_chip: hardware FLOPs of a chip: with what is computed again.
      transfers: the collectives of one device's program.
      topology: where it runs; a chip of two devices sends for both.
      brought: bytes that a device reads from its host's memory.
    """
    chip = topology.chip
    if chip is None:
        return None
    fast = network = 0.0
    by_axis: dict[tuple[str, str], float] = collections.defaultdict(float)
    for transfer in transfers:
        near, far = (part * transfer.times * chip.devices for part in paths(transfer))
        fast, network = fast + near, network + far
        by_axis[transfer.axis, transfer.op] += near + far
    every, one = usable_links(topology)
    return Floor(
        compute=flops_per_chip / chip.peak,
        links=_over(fast, every * chip.link_rate),
        one_axis=_over(fast, one * chip.link_rate),
        network=network / chip.network_rate,
        host=_from_host(brought, chip),
        by_axis=dict(by_axis),
    )


def _from_host(brought: int, chip: Chip) -> float | None:
    """Seconds that a chip's devices read so many bytes each from their host."""
    if not brought:
        return 0.0
    return None if chip.host_rate is None else brought * chip.devices / chip.host_rate


def _over(total: float, rate: float) -> float:
    """Seconds; a lone chip without links has nothing to send but to itself."""
    return total / rate if rate else 0.0


def usable_links(topology: Topology) -> tuple[int, int]:
    """Links that a chip can send over: along all axes, and along the one axis with the fewest.

    A chip has two neighbours along a ring and inside a line, one at a line's end and in a line of
    two, none along an axis of length 1. All axes are taken at their best, the single axis at its
    worst: the end of a line.
    """
    chip = topology.chip
    if chip is None:
        return 0, 0
    if not chip.torus:
        return chip.links, chip.links
    sides = [(size, ring) for size, ring in zip(topology.dims, topology.wrap, strict=True)]
    best = [min(size - 1, 2) for size, _ in sides]
    worst = [2 if ring else 1 for size, ring in sides if size > 1]
    return sum(best), min(worst, default=0)


def estimate(
    cycles: float, parts: Floor, chip: Chip, kernels: float = 0.0
) -> tuple[float, float] | None:
    """(least, most) seconds of a step as the compiler's cycles say: to be told with `LABEL`.

    Cycles leave out collectives and what comes from the hosts, which are added without any overlap:
    collectives over all links, and over one axis alone. They leave out Pallas kernels too, whose
    FLOPs a chip (`kernels`) are added at the peak.

    Returns:
      None where the clock of the cycles is not known.
    """
    if chip.clock is None:
        return None
    busy = cycles / chip.clock + kernels / chip.peak + parts.network + (parts.host or 0.0)
    return busy + parts.links, busy + parts.one_axis


def mfu(model_flops: float, seconds: float, chips: int, chip: Chip) -> float:
    """Share of the peak that a step's model FLOPs are (PaLM, Chowdhery et al. 2022, appendix B).

    Args:
      model_flops: of the whole step, over all chips (`analytic.work`).
      seconds: of the step.
      chips: how many.
      chip: of which kind.
    """
    return model_flops / (seconds * chips * chip.peak)


def days(seconds: float, steps: int) -> float:
    """Days that so many steps take, without saving, validation or restarts."""
    return seconds * steps / SECONDS_A_DAY
