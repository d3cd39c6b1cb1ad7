"""The traffic of a compiled step: every collective with its mesh axes, and what is wrong with it.

A collective's devices are numbers in the mesh's own order (jit assigns partition i to the i-th
device of `mesh.devices.flat`), so that a mesh axis is a digit of the number.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flamingo_jax.planning import hlo

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WHOLE = "none"
"""The axis of a collective in which no axis varies: each device by itself."""

PREFIXES = {
    "resampler": ("resampler/",),
    "xattn": ("xattn/", "project/"),
    "language": ("language/", "embed/", "head/"),
    "nfnet": ("vision/",),
    "vit": ("vision/",),
    "vision": ("vision/",),
    "text": ("text/",),
    "embed": ("embed/",),
}
"""The first parts of the paths whose parameters a module of the model multiplies by."""

NOTABLE = 2**20
"""Bytes of a result from which on a collective can be worth a warning."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
      op: one of `OPS`.
      dtype: of the largest array of its result.
      dims: of that array, a device.
      bytes: of the whole result, a device, each time.
      times: how often a step runs it.
      group: devices that take part with one another.
      groups: how many such groups there are.
      axis: the mesh axes that vary within a group, "fsdp" or "replica+fsdp"; `WHOLE` if none does.
      asynchronous: whether something else can run meanwhile.
      room: the module it comes from ("xattn", "resampler", "language", "nfnet", …), "" unknown.
      weight: the path of the parameter that it moves or whose gradient it sums; "" for activations.
      backward: whether it belongs to a gradient.
      stack: whether the weight moved is a whole stack [L, …], not one layer of it.
      op_name: JAX's name.
    """

    op: str
    dtype: str
    dims: tuple[int, ...]
    bytes: int
    times: int
    group: int
    groups: int
    axis: str
    asynchronous: bool
    room: str
    weight: str
    backward: bool
    stack: bool
    op_name: str

    @property
    def total(self) -> int:
        """Bytes of all its results in a step, a device."""
        return self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter as collectives may show it: its global dims and whether it is trained."""

    path: str
    dims: tuple[int, ...]
    trained: bool


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something about a step's traffic that could be better.

    Attributes:
      kind: "gradient-all-reduce", "frozen-gradient", "stack-gather", "tensor-gather",
        "windowed-einsum", "unknown-loop" or "activation-fsdp".
      text: one sentence.
      bytes: a device and step that it concerns.
      count: how many instructions.
    """

    kind: str
    text: str
    bytes: int = 0
    count: int = 0


def groups_of(rest: str, devices: int) -> list[list[int]]:
    """The device groups of an instruction's attributes, in any of the notations.

    {{0,1},{2,3}} · [2,4]<=[8] · [4,2]<=[2,4]T(1,0) · mesh['a'=2,'b'=4] {'b'} · {} (all) ·
    source_target_pairs={{0,1},…} (of a permute: each pair is a group).
    """
    if pairs := re.search(r"source_target_pairs=(\{\{[\d,{} ]*\}\})", rest):
        return _explicit(pairs[1])
    if explicit := re.search(r"replica_groups=(\{\{[\d,{} ]*\}\})", rest):
        return _explicit(explicit[1])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, source = _ints(iota[1]), _ints(iota[2])
        order = _ints(iota[3]) if iota[3] else list(range(len(source)))
        ids = np.arange(math.prod(source)).reshape(source).transpose(order)
        return ids.reshape(-1, shape[-1] if len(shape) > 1 else math.prod(shape)).tolist()
    if named := re.search(r"replica_groups=\{?@?mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        return _named(named[1], named[2])
    return [list(range(devices))]


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _explicit(text: str) -> list[list[int]]:
    return [_ints(group) for group in re.findall(r"\{([\d, ]+)\}", text)]


def _named(axes: str, chosen: str) -> list[list[int]]:
    """Groups over some axes of a mesh; 'a':(m)n is the part of axis a that has m before it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    dims: list[int] = []
    taken: list[tuple[str, int, int]] = [
        (name, int(before or 1), int(size or sizes[name])) for name, before, size in wanted
    ]
    picked: list[int] = []
    for name, size in sizes.items():
        part = next((t for t in taken if t[0] == name), None)
        if part is None:
            dims.append(size)
            continue
        _, before, length = part
        picked.append(len(dims) + 1)
        dims += [before, length, size // (before * length)]
    ids = np.arange(math.prod(sizes.values())).reshape(dims)
    return (
        np.moveaxis(ids, picked, range(-len(picked), 0))
        .reshape(-1, math.prod(dims[p] for p in picked))
        .tolist()
    )


def axes_of(groups: Sequence[Sequence[int]], mesh: dict[str, int]) -> str:
    """The mesh axes that vary within the groups, joined by "+"; `WHOLE` if none does."""
    sizes = tuple(mesh.values())
    inside = [g for g in groups if max(g) < math.prod(sizes)]
    varies = np.zeros(len(sizes), bool)
    for group in inside:
        places = np.stack(np.unravel_index(np.asarray(group), sizes))
        varies |= (places != places[:, :1]).any(axis=1)
    return "+".join(name for name, does in zip(mesh, varies, strict=True) if does) or WHOLE


def read(
    module: hlo.Module, mesh: dict[str, int], weights: Iterable[Weight] = ()
) -> list[Collective]:
    """All collectives of a step.

    Those of one channel are one: turns of a loop that the compiler has peeled off add to its times,
    what an asynchronous one is written down as several times over does not.

    Args:
      module: the parsed text.
      mesh: {axis: size} in the mesh's order.
      weights: the model's parameters, to tell weights and gradients from activations.
    """
    known = sorted(weights, key=lambda weight: not weight.trained)
    asynchronous = _asynchronous(module)
    found: dict[Any, Collective] = {}
    plain: dict[Any, bool] = {}
    for computation, instruction in module.instructions():
        op = instruction.opcode.removesuffix("-start")
        if op not in OPS or not module.times[computation]:
            continue
        one = _collective(module, computation, instruction, mesh, known)
        apart = instruction.opcode.endswith("-start") or computation in asynchronous
        apart |= '"async_collective_fusion_config":{' in instruction.rest
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key = int(channel[1]) if channel else (computation, instruction.name)
        before = found.get(key)
        plain[key] = plain.get(key, True) and not apart
        if before is not None and plain[key]:
            one = dataclasses.replace(one, times=before.times + one.times)
        elif before is not None:
            # The same one: as often as the most frequent, in the form that moves least.
            best = min(before, one, key=lambda c: c.bytes)
            apart |= before.asynchronous
            one = dataclasses.replace(best, times=max(before.times, one.times))
        found[key] = dataclasses.replace(one, asynchronous=apart)
    return list(found.values())


def _asynchronous(module: hlo.Module) -> set[str]:
    """Computations that run beside others: wrapped by async-start or an asynchronous fusion."""
    found = set()
    for _, instruction in module.instructions():
        starts = instruction.opcode in ("async-start", "async-update", "async-done")
        callee = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
        if callee and (starts or callee[1].startswith("async_collective_fusion")):
            found.add(callee[1])
        elif callee and instruction.name.startswith(("async-collective-start", "async-collective")):
            found.add(callee[1])
    return found


def _collective(
    module: hlo.Module,
    computation: str,
    instruction: hlo.Instruction,
    mesh: dict[str, int],
    weights: list[Weight],
) -> Collective:
    op = instruction.opcode.removesuffix("-start")
    arrays = instruction.arrays
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = hlo.arrays_of(instruction.parts[1])  # (operands, results, contexts)
    op_name, rest = instruction.op_name, instruction.rest
    if slices := _scattered(module.computations[computation], instruction):
        op, arrays = "reduce-scatter", tuple(array for one in slices for array in one.arrays)
        caller = _caller(module, computation)
        if caller is not None and not op_name:
            op_name, rest = caller.op_name, rest + caller.rest
    named = dataclasses.replace(instruction, rest=rest)
    groups = groups_of(instruction.rest, math.prod(mesh.values()))
    dtype, dims = max(arrays, key=lambda a: hlo.array_bytes(*a), default=("opaque", ()))
    room = module.room(named)
    factors = {1, mesh.get("tensor", 1)} if op == "all-gather" else {1, *mesh.values()}
    # Several sums in one carry the first one's name alone: the others may come from anywhere, and
    # what comes from anywhere is taken for a gradient of what is trained.
    alone = room if len(arrays) == 1 else ""
    pool = weights if op == "all-gather" or alone in PREFIXES else [w for w in weights if w.trained]
    weight, stack = _weight(pool, alone, dims, sorted(factors))
    if not weight and op == "all-gather" and dims[:1] == (len(groups[0]),):
        weight = _by_count(pool, room, math.prod(dims))
    return Collective(
        op=op,
        dtype=dtype,
        dims=dims,
        bytes=sum(hlo.array_bytes(*array) for array in arrays),
        times=module.times[computation],
        group=len(groups[0]),
        groups=len(groups),
        axis=axes_of(groups, mesh),
        asynchronous=False,
        room=room,
        weight=weight,
        backward="transpose(" in op_name and "rematted_computation" not in op_name,
        stack=stack,
        op_name=op_name,
    )


def _caller(module: hlo.Module, computation: str) -> hlo.Instruction | None:
    """The instruction that calls a fused computation."""
    pattern = re.compile(rf"calls=%?{re.escape(computation)}\b(?![.\-])")
    return next((i for _, i in module.instructions() if pattern.search(i.rest)), None)


def _scattered(body: list[hlo.Instruction], instruction: hlo.Instruction) -> list[hlo.Instruction]:
    """The dynamic-slices that take this device's parts of an all-reduce in the same fusion.

    TPUs write a reduce-scatter so, of several arrays too; between the two there may be copies.
    Empty if anything takes the whole result.
    """
    same, slices = {instruction.name}, []
    for other in body if instruction.opcode == "all-reduce" else []:
        if not same & set(other.operands):
            continue
        if other.opcode in ("bitcast", "copy", "reshape", "transpose", "get-tuple-element"):
            same.add(other.name)
        elif other.opcode == "dynamic-slice" and other.operands[0] in same:
            slices.append(other)
        else:
            return []
    return slices


def _weight(
    weights: list[Weight], room: str, dims: tuple[int, ...], factors: Sequence[int]
) -> tuple[str, bool]:
    """(path, whole stack?) of the parameter that an array shows; ("", False) if none does.

    Dims match in any order (layouts permute them), without those of 1, and one of them may be a
    part of the parameter's, by one of `factors`. Of a stack [L, …] one layer matches too. An array
    of rank below 2 matches nothing: such parameters are small and not sharded.
    """
    shown = sorted(d for d in dims if d != 1)
    if len(shown) < 2:
        return "", False
    prefixes = PREFIXES.get(room, ())
    for weight in weights:
        if len(weight.dims) < 2 or math.prod(weight.dims) < math.prod(shown):
            continue
        if prefixes and not weight.path.startswith(prefixes):
            continue
        rank = len(weight.dims)
        stacked = rank > 2 and not weight.path.startswith("vision/nfnet/")
        for whole in (False, True) if stacked else (True,):
            own = [d for d in weight.dims[0 if whole else 1 :] if d != 1]
            for place, factor in itertools.product(range(len(own)), factors):
                part = [*own[:place], own[place] // factor, *own[place + 1 :]]
                if own[place] % factor == 0 and sorted(part) == shown:
                    return weight.path, stacked and whole and weight.dims[0] > 1
    return "", False


def _by_count(weights: list[Weight], room: str, count: int) -> str:
    """The path of the weight of so many elements, a layer's of a stack, of a room that is known.

    A gather over several axes has its shards one after another: [devices, …] of a shard's dims.
    """
    for weight in weights if count * 2 >= NOTABLE else ():
        layer = math.prod(weight.dims[1:] if len(weight.dims) > 2 else weight.dims)
        if layer == count and weight.path.startswith(PREFIXES.get(room, ("/",))):
            return weight.path
    return ""


def summary(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Rows {axis, op, asynchronous, count, times, bytes, group}, the most bytes first.

    `count` is of instructions, `times` of their executions in a step, `bytes` of results a device.
    """
    rows: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for one in found:
        key = (one.axis, one.op, one.asynchronous)
        empty = {"count": 0, "times": 0, "bytes": 0, "group": one.group}
        row = rows.setdefault(key, dict(zip(("axis", "op", "asynchronous"), key)) | empty)  # noqa: B905
        row["count"] += 1
        row["times"] += one.times
        row["bytes"] += one.total
    return sorted(rows.values(), key=lambda row: -row["bytes"])


def remarks(
    module: hlo.Module, found: Iterable[Collective], weights: Iterable[Weight] = ()
) -> list[Remark]:
    """What could be better, the most bytes first."""
    trained = {weight.path for weight in weights if weight.trained}
    kinds: dict[str, list[Collective]] = collections.defaultdict(list)
    for one in found:
        summed = one.op in ("all-reduce", "reduce-scatter") and one.axis != "tensor"
        if one.backward and summed and one.weight and one.weight not in trained:
            kinds["frozen-gradient"].append(one)
        if one.bytes < NOTABLE:
            continue
        over_fsdp = "fsdp" in one.axis.split("+")
        if one.op == "all-reduce" and over_fsdp and one.weight in trained:
            kinds["gradient-all-reduce"].append(one)
        if one.op == "all-reduce" and over_fsdp and not one.weight:
            kinds["activation-fsdp"].append(one)
        if one.op == "all-gather" and one.weight and one.stack:
            kinds["stack-gather"].append(one)
        if one.op == "all-gather" and one.weight and "tensor" in one.axis.split("+"):
            kinds["tensor-gather"].append(one)
    texts = {
        "frozen-gradient": "gradients of frozen weights are summed over devices",
        "gradient-all-reduce": "gradients are summed whole on every device where a reduce-scatter "
        "would move half as much",
        "activation-fsdp": "large results other than weights' gradients are summed over fsdp: the "
        "compiler multiplies by sharded weights rather than gather them",
        "tensor-gather": "weights are gathered over tensor too: every device computes whole "
        "layers, and the axis only holds shards",
        "stack-gather": "the weights of all layers are gathered at once, not layer by layer",
    }
    made = [
        Remark(kind, texts[kind], sum(one.total for one in those), len(those))
        for kind, those in kinds.items()
    ]
    if windowed := hlo.windowed_loops(module):
        text = "loops of permutes and partial products (windowed einsum) take the place of gathers"
        made.append(Remark("windowed-einsum", text, 0, len(windowed)))
    if module.unknown_loops:
        text = "loops whose trip count cannot be told count as one trip: bytes and cycles are low"
        made.append(Remark("unknown-loop", text, 0, len(module.unknown_loops)))
    return sorted(made, key=lambda remark: -remark.bytes)
