"""Reads an optimised HLO text: its loops, collectives, cycles and arguments, as facts of a step.

The text is that of `compiled.as_text()` or of a dump (`*.after_codegen.txt` of TPUs, which alone
has estimated cycles). Computations are weighted by how often a step runs them: a loop's body by
its trip count, nested loops by the product. A collective is counted once a channel: asynchronous
fusions repeat the same one at its start, at every step of its way and at its end.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from flamingo_jax.errors import InputError

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
"""Bits of an element; types beginning with f8 have 8."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,<=]*)\]")
_CALLEE = re.compile(r"\b(body|condition|calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ROOMS = re.compile(r"flamingo_jax/(?:model|train)/(\w+)\.py")
_SHARED_ROOMS = {
    *("attention", "flamingo", "fused", "layers", "losses", "masks", "parts", "positions"),
    *("segments", "step"),
}
"""Modules that run on others' behalf: the module that called them says more."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text.

    Attributes:
      name: without its %.
      opcode: "all-gather", "fusion", …
      arrays: (dtype, dims) of the result, several for a tuple.
      parts: the result's type, split at the outermost commas of a tuple.
      operands: names.
      rest: what follows the operands: attributes, metadata, backend config.
      root: whether it is its computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def op_name(self) -> str:
        """JAX's name of the operation: "jit(update)/transpose(jvp())/while/body/…"."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def bytes(self) -> int:
        """Of the result, without the padding of its layout."""
        return sum(array_bytes(dtype, dims) for dtype, dims in self.arrays)


@dataclasses.dataclass
class Module:
    """A parsed text.

    Attributes:
      entry: the name of the computation that a step runs.
      computations: {name: its instructions}, callees before their callers.
      times: {computation: how often a step runs it}.
      unknown_loops: names of loops whose trip count cannot be told; they count as one trip.
      frames: {stack frame: the module of flamingo_jax that it stands in}.
    """

    entry: str
    computations: dict[str, list[Instruction]]
    times: dict[str, int] = dataclasses.field(default_factory=dict)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    frames: dict[int, str] = dataclasses.field(default_factory=dict)

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of all."""
        for name, body in self.computations.items():
            yield from ((name, instruction) for instruction in body)

    def room(self, instruction: Instruction) -> str:
        """The part of the program an instruction belongs to: "xattn", "language", …; "" unknown.

        Told by the Python stack at which it was traced, or by its argument's path.
        """
        if found := re.match(r"(?:state\.params|frozen)\['(\w+)'\]", instruction.op_name):
            return found[1]
        if found := re.search(r"stack_frame_id=(\d+)", instruction.rest):
            return self.frames.get(int(found[1]), "")
        return ""


def array_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    """Bytes of an array without padding; 0 for what is no array of numbers (token, opaque)."""
    bits = BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
    return math.ceil(math.prod(dims) * bits / 8)


def arrays_of(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(dtype, dims) of every array in a type: "(f32[2,4]{1,0}, s32[])" → f32 (2, 4), s32 ()."""
    return tuple(
        (dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", text))
    )


def _balanced(text: str, start: int) -> int:
    """The index just behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "({[":
            depth += 1
        elif text[place] in ")}]":
            depth -= 1
            if not depth:
                return place + 1
    return len(text)


def _split(text: str) -> tuple[str, ...]:
    """Splits at commas outside all brackets."""
    parts, depth, begin = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "({[") - (sign in ")}]")
        if sign == "," and not depth:
            parts.append(text[begin:place])
            begin = place + 1
    return tuple(part.strip() for part in (*parts, text[begin:]) if part.strip())


def _instruction(line: str) -> Instruction | None:
    """Parses a line; None where it is none, whatever else it is."""
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    begin = head.end()
    end = _balanced(line, begin) if line[begin : begin + 1] == "(" else line.find(" ", begin)
    opcode = _OPCODE.match(line, max(end, begin))
    if opcode is None:
        return None
    kind = re.sub(r"/\*.*?\*/", "", line[begin:end])
    close = _balanced(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    parts = _split(kind[1:-1]) if kind.startswith("(") else (kind,)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside.strip(),)
    return Instruction(
        head[2], opcode[1], arrays_of(kind), parts, operands, line[close:], bool(head[1])
    )


def parse(text: str) -> Module:
    """Parses a text and weighs its computations.

    Raises:
      InputError: if it holds no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", None
    # A kernel's metadata is printed over several lines, of which the last looks like an end.
    for line in re.sub(r'\n(?="|\}\S)', "", text).splitlines():
        if line.startswith("}"):
            body = None
        elif header := _HEADER.match(line):
            body = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif body is not None and (instruction := _instruction(line)) is not None:
            body.append(instruction)
    if not computations.get(entry):
        raise InputError(
            "the compiler's text holds no ENTRY computation: it is no optimised HLO module, or was "
            "cut off; compile again with a dump folder"
        )
    module = Module(entry, computations, frames=_frames(text))
    _weigh(module)
    return module


def _frames(text: str) -> dict[int, str]:
    """Stack frame → the innermost telling module of flamingo_jax, from the text's four tables."""

    def table(title: str, pattern: str) -> dict[int, tuple[str, ...]]:
        block = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", block[1] if block else "", re.MULTILINE)
        return {int(row[0]): row[1:] for row in rows}

    files = {key: row[0] for key, row in table("FileNames", r'"(.*)"').items()}
    locations = table("FileLocations", r"\{file_name_id=(\d+)")
    stack = table("StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)")
    rooms: dict[int, str] = {}
    for frame, (location, above) in sorted(stack.items()):
        found = _ROOMS.search(files.get(int(locations.get(int(location), ("0",))[0]), ""))
        # A parent's number is printed one too high; 1 says that there is none.
        caller = rooms.get(int(above) - 1, "")
        here = found[1] if found else ""
        general = here in _SHARED_ROOMS and caller not in ("", *_SHARED_ROOMS)
        rooms[frame] = caller if not here or general else here
    return rooms


def _weigh(module: Module) -> None:
    """Fills in `times` and `unknown_loops`."""
    times = dict.fromkeys(module.computations, 0)
    times[module.entry] = 1
    for name in reversed(module.computations):
        if not times[name]:
            continue
        for instruction in module.computations[name]:
            trips = 1
            callees = [callee for _, callee in _CALLEE.findall(instruction.rest)]
            if instruction.opcode == "while":
                known = trip_count(module, name, instruction)
                if known is None:
                    module.unknown_loops.append(instruction.name)
                trips = 1 if known is None else known
            elif branches := _BRANCHES.search(instruction.rest):
                callees += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            for callee in callees:
                if callee in times:
                    times[callee] += times[name] * trips
    module.times = times


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a while loop runs; None where it cannot be told.

    XLA says so ("known_trip_count") or the condition compares the loop's counter, from 0 or what
    constant it begins with on, with a constant.
    """
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    body = module.computations.get(condition[1], []) if condition else []
    by_name = {instruction.name: instruction for instruction in body}
    root = next((instruction for instruction in body if instruction.root), None)
    if root is None:
        return None
    fused = re.search(r"calls=%?([\w.\-]+)", root.rest)
    inner = module.computations.get(fused[1], []) if fused else [root]
    compare = next((i for i in inner if i.opcode == "compare"), None)
    direction = re.search(r"direction=(\w+)", compare.rest) if compare else None
    bounds = [number for o in root.operands if (number := _constant(by_name, o)) is not None]
    if direction is None or len(bounds) != 1 or direction[1] not in ("LT", "LE", "GT", "GE"):
        return None
    bound = bounds[0] + (direction[1] in ("LE", "GE"))
    counters = [by_name[o] for o in root.operands if o in by_name and by_name[o].parts != ()]
    begin = next(
        (
            value
            for counter in counters
            if counter.opcode == "get-tuple-element"
            and (value := _initial(module, computation, loop, counter)) is not None
        ),
        0,
    )
    return max(bound - begin, 0)


def _constant(by_name: dict[str, Instruction], name: str) -> int | None:
    """The integer that a name stands for, through copies; None if it is no constant."""
    instruction = by_name.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = by_name.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    value = instruction.operands[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _initial(
    module: Module, computation: str, loop: Instruction, counter: Instruction
) -> int | None:
    """What a loop's counter begins with, if that is a constant."""
    index = re.search(r"index=(\d+)", counter.rest)
    by_name = {instruction.name: instruction for instruction in module.computations[computation]}
    state = by_name.get(loop.operands[0])
    if index is None or state is None or state.opcode != "tuple":
        return None
    place = int(index[1])
    return _constant(by_name, state.operands[place]) if place < len(state.operands) else None


def arguments(module: Module) -> list[Instruction]:
    """The entry's parameters: name, shape a device and, as op_name, the argument's path."""
    return [i for i in module.computations[module.entry] if i.opcode == "parameter"]


def estimated_cycles(module: Module) -> int:
    """Σ estimated cycles × times: the compiler's own model of a step on one core (TPU dumps only).

    Collectives have none and are not in it; instructions inside a fusion are in the fusion's.
    """
    fused = {
        name
        for _, instruction in module.instructions()
        if instruction.opcode == "fusion"
        for _, name in _CALLEE.findall(instruction.rest)
    }
    total = 0
    for name, body in module.computations.items():
        if name in fused or not module.times[name]:
            continue
        for instruction in body:
            if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.rest):
                total += int(found[1]) * module.times[name]
    return total


def windowed_loops(module: Module) -> list[str]:
    """Loops that permute a shard and multiply by it in each trip: a collective matmul.

    XLA names their bodies "windowed_dot_general_body…".
    """
    found = []
    for _, loop in module.instructions():
        body = re.search(r"\bbody=%?([\w.\-]+)", loop.rest) if loop.opcode == "while" else None
        if body is None:
            continue
        opcodes = {i.opcode for i in module.computations.get(body[1], [])}
        permutes = bool(opcodes & {"collective-permute", "collective-permute-start"})
        multiplies = bool(opcodes & {"dot", "convolution"})
        if "windowed_dot_general" in body[1] or (permutes and multiplies):
            found.append(loop.name)
    return found
