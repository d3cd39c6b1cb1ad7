"""Where a device's memory goes: arguments by kind, the largest buffers at the peak, what is over.

The compiler's own words are read: the entry's parameters (whose op_name is the argument's path),
`*live-range.txt` (what lives at the peak, by name) and, of what does not fit, its error and its
`*memory-usage-report.txt` (buffers by size and shape).
"""

from __future__ import annotations

import dataclasses
import re

from flamingo_jax.planning import hlo

KINDS: tuple[str, ...] = ("trainable", "moments", "frozen", "batch", "other")
"""What an argument is: `state.params`, `state.opt`, `frozen`, `batches`; `state.step` is other."""

ACTIVATIONS = "activations"
"""The kind of a buffer that is no argument: all that a step makes on its way."""

_KIND_OF_ROOT = {
    "state.params": "trainable",
    "state.opt": "moments",
    "frozen": "frozen",
    "batches": "batch",
}
_COPIES = ("copy-start", "dynamic-slice-start", "async-start")  # the last: as dumps write them
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One buffer of a device.

    Attributes:
      name: the instruction's, or "" where only its shape is told.
      dtype, dims: of its largest array.
      bytes: its size.
      kind: one of `KINDS` or `ACTIVATIONS`.
      room: the module that makes it, "" unknown.
      op_name: JAX's name, or the argument's path.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    bytes: int
    kind: str
    room: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """What the compiler says of a step that does not fit, in bytes; 0 = not told."""

    required: int
    available: int


def kind_of(path: str) -> str:
    """The kind of an argument: "state.opt[1][0].mu['xattn']…" → "moments"."""
    root = re.match(r"[a-z]+(?:\.[a-z]+)?", path)
    return _KIND_OF_ROOT.get(root[0] if root else "", "other")


def argument_bytes(module: hlo.Module) -> dict[str, int]:
    """{kind: bytes a device} of the arguments that the program reads, without layouts' padding.

    Those on the hosts are left out.
    """
    found: dict[str, int] = {kind: 0 for kind in KINDS}
    for argument in hlo.arguments(module):
        if not _on_host(argument.parts[0]):
            found[kind_of(argument.op_name)] += argument.bytes
    return found


def host_bytes(module: hlo.Module) -> dict[str, int]:
    """What a program has on the hosts, in bytes of one device.

    Returns:
      held: arguments that lie there; brought: what a step copies from there, each time it does.
      Both are 0 for a CPU, whose program has one memory.
    """
    given = hlo.arguments(module)
    held = sum(argument.bytes for argument in given if _on_host(argument.parts[0]))
    brought = 0
    for computation, one in module.instructions():
        if one.opcode not in _COPIES or not module.times[computation]:
            continue
        # (operands, result, …) or, of a copy, (result, operand, …): one of them is on the hosts.
        sides = sorted(one.parts[:2], key=_on_host)
        if len(sides) == 2 and _on_host(sides[1]) and not _on_host(sides[0]):
            size = sum(hlo.array_bytes(*array) for array in hlo.arrays_of(sides[0]))
            brought += size * module.times[computation]
    return {"held": held, "brought": brought}


def _on_host(kind: str) -> bool:
    """Whether a type, "bf16[2,8]{1,0:T(8,128)S(5)}", is in XLA's memory space of the hosts."""
    return "S(5)" in kind


def peak_buffers(live_ranges: str, module: hlo.Module, most: int = 20) -> list[Buffer]:
    """The largest buffers that live when most memory is taken, the largest first.

    Parameters of loops' bodies are left out: they stand for what the loop was given. So is what
    lies on the hosts.

    Args:
      live_ranges: the text of `*live-range.txt`.
      module: the same program, to tell what the buffers are.
      most: so many at most.
    """
    block = re.search(r"^ *Live ranges at \d+ \(peak\):\n((?:    .*\n?)*)", live_ranges, re.M)
    if block is None:
        return []
    by_name = {instruction.name: instruction for _, instruction in module.instructions()}
    given = {argument.name for argument in hlo.arguments(module)}
    found = []
    pattern = r"^ +([\w.\-]+)\{([\d,]*)\}: (\d+) bytes"
    for name, index, size in re.findall(pattern, block[1], re.M):
        instruction = by_name.get(name)
        if instruction is None:
            found.append(Buffer(name, "", (), int(size), ACTIVATIONS, "", ""))
            continue
        if instruction.opcode == "parameter" and name not in given:
            continue
        place = int(index.split(",")[0]) if index else 0
        whole = not index or place >= len(instruction.parts)
        parts = instruction.parts if whole else instruction.parts[place : place + 1]
        if not (len(parts) == 1 and _on_host(parts[0])):
            arrays = instruction.arrays if whole else hlo.arrays_of(parts[0])
            found.append(_buffer(module, instruction, arrays, int(size)))
    return sorted(found, key=lambda buffer: -buffer.bytes)[:most]


def argument_buffers(module: hlo.Module, most: int = 20) -> list[Buffer]:
    """The largest arguments, for programs whose live ranges are not at hand."""
    given = [one for one in hlo.arguments(module) if not _on_host(one.parts[0])]
    found = [_buffer(module, one, one.arrays, one.bytes) for one in given]
    return sorted(found, key=lambda buffer: -buffer.bytes)[:most]


def _buffer(
    module: hlo.Module,
    instruction: hlo.Instruction,
    arrays: tuple[tuple[str, tuple[int, ...]], ...],
    size: int,
) -> Buffer:
    dtype, dims = max(arrays, key=lambda a: hlo.array_bytes(*a), default=("", ()))
    argument = instruction.opcode == "parameter" and instruction.op_name
    kind = kind_of(instruction.op_name) if argument else ACTIVATIONS
    room = module.room(instruction)
    return Buffer(instruction.name, dtype, dims, size, kind, room, instruction.op_name)


def reported_buffers(report: str, most: int = 20) -> list[Buffer]:
    """The largest buffers of a `*memory-usage-report.txt`: sizes and shapes, no names.

    Of shapes that share a buffer one after another the largest stands for it. Only the default
    memory space (HBM) is read.
    """
    found = []
    space = report.split("\nMemory Space:", 1)[0]
    row = r"^ *[\d.]+[KMGT]?i?B\( *\d+%\); +([\d.]+)([KMGT]?)i?B; +\d+; +\d+; (.*)$"
    for number, unit, shapes in re.findall(row, space, re.M):
        arrays = hlo.arrays_of(shapes)
        dtype, dims = max(arrays, key=lambda a: hlo.array_bytes(*a), default=("", ()))
        size = int(float(number) * 2 ** _UNITS[unit])
        found.append(Buffer("", dtype, dims, size, ACTIVATIONS, "", ""))
    return sorted(found, key=lambda buffer: -buffer.bytes)[:most]


def assigned(report: str) -> int:
    """Bytes of HBM that a `*memory-usage-report.txt` has assigned in all; 0 if it does not say."""
    found = re.match(r"Memory Space: default.*\nTotal bytes: (\d+)", report)
    return int(found[1]) if found else 0


def out_of_memory(message: str) -> OutOfMemory | None:
    """Reads a compiler's error; None if it is not about memory.

    TPU: "E1000: CompileTimeHbmOom: … required for HLO temporaries (483.51G) exceeds available HBM
    (15.75G)", or of older texts "Used 20.1G of 15.75G hbm". Units are powers of 1024.
    """
    if not re.search(r"RESOURCE_EXHAUSTED|E1000|[Rr]an out of memory|Out of memory", message):
        return None
    size = r"([\d.]+)([KMGT]?)i?B?"
    told = re.search(rf"\({size}\) exceeds available HBM \({size}\)", message)
    told = told or re.search(rf"Used {size} of {size} hbm", message)
    if told is None:
        return OutOfMemory(0, 0)
    needed, unit, there, other = told.groups()
    return OutOfMemory(
        int(float(needed) * 2 ** _UNITS[unit]), int(float(there) * 2 ** _UNITS[other])
    )
