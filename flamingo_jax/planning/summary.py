"""A plan: what a compiled step's facts (`compiling.compile_apart`) mean on a topology.

The compiler's own FLOPs and "optimal seconds" are nowhere in it: they take a loop's body once.
Every second is the floor's, which peaks bound, or an estimate under `floor.LABEL`.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import Any

from flamingo_jax.planning import floor, topology
from flamingo_jax.planning.chips import of_device
from flamingo_jax.planning.topology import LOCAL, Topology

FITS, OVER, UNKNOWN = "fits", "does not fit", "unknown"
ACTIVATIONS, PADDING = "activations", "layouts' padding"
CUT = ("time-out", "memory")
"""Outcomes of compiling that was ended by its bounds."""
TRAFFIC = ("weights", "gradients", "activations")
"""What a collective moves. Frozen and trained weights of one shape look the same."""

ABOUT = (
    *("device_kind", "devices", "mesh", "remat", "attention", "micro_batches", "datasets"),
    "steps",
)
"""What a plan tells of the step as it was asked for."""


def place(name: str, facts: dict[str, Any]) -> Topology:
    """The topology of this name; "local" is what the child that compiled has seen.

    Raises:
      InputError: for a name that there is not.
    """
    if name != LOCAL:
        return topology.parse(name)
    chip = of_device(facts.get("device_kind", ""))
    return Topology(LOCAL, (facts.get("devices", 1),), 1, (False,), 1, chip)


def capacity(where: Topology, facts: dict[str, Any]) -> int | None:
    """Bytes that a program may take on a device; None = not known.

    Simulated devices and those of a CPU share this machine's memory.
    """
    if where.chip is not None:
        return where.chip.memory
    if facts.get("device_kind", "").lower() != "cpu":
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // where.devices
    except (OSError, ValueError, AttributeError):
        return None


def summarise(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """The plan of one layout, as plan.json has it.

    Args:
      facts: what `compiling.compile_apart` has found.
      name: of the topology.

    Returns:
      verdict: `FITS`, `OVER` or `UNKNOWN`; outcome, error of the compiler; chip, chips, hosts,
      device_kind, devices, mesh, remat, attention, micro_batches, datasets, steps;
      work: {tokens, images} of a step;
      memory: {capacity, peak, required, by_kind, analytic}, in bytes a device; buffers;
      host: {device, host, brought}: bytes on the hosts of a device and of a host, and what a step
      brings to a device from there; None if there is nothing;
      flops: {model, without_attention, hardware, again, kernels: {name: FLOPs}}, a step over all
      chips;
      traffic: rows of (axis, op); moves: {what: bytes a device};
      floor: {seconds, compute, links, one_axis, network, host (if known), bound, wire} and
      estimate: {label, least, most}, in seconds, None where peaks or clock are not known;
      rates: {floor, estimate} → {seconds, mfu, mfu_without_attention, tokens, images, days};
      warnings: {kind, text}; compiling: {compile_seconds, trace_seconds, rss_gb}; versions.
    """
    where = place(name, facts)
    plan: dict[str, Any] = {
        "topology": name,
        "outcome": facts["outcome"],
        "error": facts["error"],
        "chip": where.chip.title if where.chip else facts.get("device_kind", ""),
        "chips": where.chips,
        "hosts": where.hosts,
        **{key: facts.get(key) for key in ABOUT},
        "work": {key: facts.get("work", {}).get(key) for key in ("tokens", "images")},
        "versions": facts.get("versions", {}),
        "memory": _memory(facts, capacity(where, facts)),
        "buffers": facts.get("buffers", []),
        "host": _host(facts, where),
        "flops": _flops(facts),
        "traffic": facts.get("traffic", []),
        "moves": _moves(facts),
        "compiling": {
            key: facts.get(key) for key in ("compile_seconds", "trace_seconds", "rss_gb")
        },
    }
    plan["verdict"] = _verdict(plan)
    plan |= _times(facts, plan, where)
    plan["warnings"] = _warnings(facts, plan, where)
    return plan


def _memory(facts: dict[str, Any], most: int | None) -> dict[str, Any]:
    """Bytes a device by kind; activations are what the peak has beyond the arguments."""
    told = facts.get("memory", {})
    peak, kinds = told.get("peak"), dict(facts.get("arguments", {}))
    if peak is not None and kinds:
        read = sum(kinds.values())
        held = max(told.get("argument", read), read)
        kinds |= {PADDING: held - read, ACTIVATIONS: max(peak - held, 0)}
    return {
        "capacity": facts.get("available") or most,
        "peak": peak,
        "required": facts.get("required") or None,
        "by_kind": kinds,
        "analytic": facts.get("state", {}),
    }


def _host(facts: dict[str, Any], where: Topology) -> dict[str, Any] | None:
    """What lies on the hosts; of a CPU's program, which has one memory, by the config's count."""
    told = facts.get("host") or {}
    held = told.get("held") or facts.get("offloaded", 0)
    if not held:
        return None
    each = held * where.devices // where.hosts
    return {"device": held, "host": each, "brought": told.get("brought") or None}


def _verdict(plan: dict[str, Any]) -> str:
    """From the compiler's outcome, or, where it was cut, from the memory it had assigned."""
    memory = plan["memory"]
    if plan["outcome"] == OVER:
        return OVER
    if memory["peak"] is None or plan["outcome"] == "failed":
        return UNKNOWN
    return OVER if memory["capacity"] and memory["peak"] > memory["capacity"] else FITS


def _flops(facts: dict[str, Any]) -> dict[str, Any]:
    work, counted = facts.get("work", {}), facts.get("flops", {})
    return {
        "model": work.get("model"),
        "without_attention": work.get("without_attention"),
        "hardware": counted.get("total"),
        "again": counted.get("again"),
        "kernels": counted.get("by_kernel", {}),
        "error": counted.get("error", ""),
    }


def _moves(facts: dict[str, Any]) -> dict[str, int]:
    """{one of `TRAFFIC`: bytes of results, a device and step}."""
    found = collections.Counter[str]()
    for one in facts.get("collectives", ()):
        summed = one["op"] in ("all-reduce", "reduce-scatter")
        kind = ("gradients" if summed else "weights") if one["weight"] else "activations"
        found[kind] += one["total"]
    return {kind: found[kind] for kind in TRAFFIC if found[kind]}


def _times(facts: dict[str, Any], plan: dict[str, Any], where: Topology) -> dict[str, Any]:
    """Floor, estimate and what follows from each; nothing for a step that cannot run."""
    empty: dict[str, Any] = {"floor": None, "estimate": None, "rates": {}}
    chip, hardware = where.chip, plan["flops"]["hardware"]
    if chip is None or not hardware or "collectives" not in facts or plan["verdict"] == OVER:
        return empty
    transfers = [
        floor.Transfer(
            op=one["op"],
            axis=one["axis"],
            bytes=one["bytes"],
            group=one["group"],
            inside=floor.inside(one["axis"], facts["mesh"], where.island),
            times=one["times"],
        )
        for one in facts["collectives"]
    ]
    brought = (plan["host"] or {}).get("brought") or 0
    parts = floor.floor(hardware / where.chips, transfers, where, brought)
    assert parts is not None  # the chip is known
    seconds = {"compute": parts.compute, "links": parts.links, "network": parts.network}
    seconds |= {} if parts.host is None else {"host": parts.host}
    found: dict[str, Any] = {
        "floor": {
            "seconds": parts.seconds,
            **seconds,
            "one_axis": parts.one_axis,
            "bound": max(seconds, key=lambda part: seconds[part]),
            "wire": [
                {"axis": axis, "op": op, "bytes": sent}
                for (axis, op), sent in sorted(parts.by_axis.items(), key=lambda row: -row[1])
            ],
        },
        "estimate": None,
        "rates": {"floor": rates(parts.seconds, facts, where)},
    }
    cycles = facts.get("cycles") or 0
    kernels = sum(plan["flops"]["kernels"].values()) / where.chips
    span = floor.estimate(cycles, parts, chip, kernels) if cycles else None
    # Cycles that fall short of the floor leave something out: loops of unknown length.
    if span is not None and span[0] >= parts.seconds:
        found["estimate"] = {"label": floor.LABEL, "least": span[0], "most": span[1]}
        found["rates"] |= {
            "estimate, least": rates(span[0], facts, where),
            "estimate, most": rates(span[1], facts, where),
        }
    return found


def rates(seconds: float, facts: dict[str, Any], where: Topology) -> dict[str, float | None]:
    """What a step of so many seconds is: {seconds, mfu, …, tokens and images a second, days}."""
    work, chip = facts["work"], where.chip
    found: dict[str, float | None] = {
        "seconds": seconds,
        "mfu": None,
        "mfu_without_attention": None,
        "tokens": work["tokens"] / seconds,
        "images": work["images"] / seconds,
        "days": floor.days(seconds, facts["steps"]),
    }
    if chip is not None:
        for key, flops in (("mfu", "model"), ("mfu_without_attention", "without_attention")):
            found[key] = floor.mfu(work[flops], seconds, where.chips, chip)
    return found


def _warnings(facts: dict[str, Any], plan: dict[str, Any], where: Topology) -> list[dict[str, str]]:
    found = [{"kind": "topology", "text": text} for text in where.warnings]
    for one in facts.get("remarks", ()):
        size = f": {gib(one['bytes'])} a device and step" if one["bytes"] else ""
        places = f" ({one['count']} in the program)" if one["count"] else ""
        found.append({"kind": one["kind"], "text": f"{one['text']}{size}{places}"})
    for row in facts.get("whole", ()):
        what = "heads" if row["letter"] == "N" else f"dim {row['letter']}"
        text = (
            f"{what} of {row['size']} not split over {row['axis']}={row['ways']}, which does not "
            f"divide it: {gib(row['bytes'])} more a device; {_some(row['paths'])}"
        )
        found.append({"kind": "left-whole", "text": text})
    if plan["flops"]["error"]:
        found.append({"kind": "flops", "text": plan["flops"]["error"]})
    if plan["floor"] and facts.get("cycles") and where.chip and where.chip.clock:
        if plan["estimate"] is None:
            text = "the compiler's cycles are fewer than the floor: something has none; no estimate"
            found.append({"kind": "cycles", "text": text})
    if plan["estimate"] and plan["flops"]["kernels"]:
        text = (
            "the compiler tells no cycles of fused kernels: the estimate has their FLOPs at the "
            "peak, which attention over short sequences does not reach"
        )
        found.append({"kind": "kernels", "text": text})
    if plan["host"] and where.chip and where.chip.host_rate is None:
        text = "the rate from a host's memory to this chip is not published: no floor of it"
        found.append({"kind": "host", "text": text})
    if plan["outcome"] in CUT:
        text = f"{plan['error']}: what is told here is what the compiler had said by then"
        found.append({"kind": "cut", "text": text})
    if not plan["traffic"] and where.devices > 1 and plan["verdict"] == FITS:
        found.append({"kind": "traffic", "text": "the compiler told no traffic: no floor of it"})
    found += _idle(facts)
    return found


def _idle(facts: dict[str, Any]) -> list[dict[str, str]]:
    """Pictures that are too few to keep a tensor group's devices busy."""
    mesh, rows = facts.get("mesh") or {}, (facts.get("datasets") or {}).values()
    tensor, shards = mesh.get("tensor", 1), mesh.get("replica", 1) * mesh.get("fsdp", 1)
    each = sum(row["batch"] * row["media"] * row["frames"] for row in rows) // shards
    idle = 1 - each / (-(-each // tensor) * tensor) if each else 0.0
    if not idle:
        return []
    text = (
        f"there are {each} pictures for each group of {tensor} devices: {idle:.0%} of the "
        "encoder's work is padding"
    )
    return [{"kind": "idle", "text": text}]


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    return ", ".join(paths[:2]) + more


def gib(size: float) -> str:
    """Bytes in GiB, MiB or KiB (powers of 1024)."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return (
                f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"
            )
    return f"{size:.0f} B"


def buffer_name(buffer: dict[str, Any]) -> str:
    """What a buffer is: the argument's path, or the module and the end of JAX's name."""
    if buffer["kind"] != ACTIVATIONS:
        return buffer["op_name"] or buffer["name"]
    end = "/".join(buffer["op_name"].split("/")[-2:])
    return " ".join(part for part in (buffer["room"], end or buffer["name"]) if part) or "unnamed"


def score(plan: dict[str, Any]) -> float:
    """What candidates are ordered by: the MFU at the floor, or the share that is not recomputed."""
    if plan["floor"] is not None:
        return plan["rates"]["floor"]["mfu"]
    model, hardware = plan["flops"]["model"], plan["flops"]["hardware"]
    return model / hardware if model and hardware else 0.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of each compilation.

    Attributes:
      seconds: after so long it is ended.
      memory: and once it holds so many GB (10⁹ bytes); 0 = no bound.
    """

    seconds: float = 3_600.0
    memory: float = 0.0
