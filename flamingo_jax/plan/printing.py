"""A plan in the terminal, plain where there is none; and its row of a Markdown table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flamingo_jax.plan import measured
from flamingo_jax.planning import floor, summary
from flamingo_jax.planning.summary import gib
from flamingo_jax.planning.sweep import Result
from flamingo_jax.report import wording

LOG_COLUMNS = 110
"""Width where there is no terminal."""
BUFFERS = 8
WHOLE = 40  # letters of a first column that are never broken
SHOWN = 30
"""Candidates of a sweep in the terminal; the page and plan.json have all."""
STYLE = {summary.FITS: "bold green", summary.OVER: "bold red", summary.UNKNOWN: "bold yellow"}


def show(*parts: Any) -> None:
    """Prints lines and tables on stdout; in a log without the blanks that fill up lines."""
    width = None if sys.stdout.isatty() else LOG_COLUMNS
    out = Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)
    with out.capture() as capture:
        for part in parts:
            out.print(part)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    print("\n".join(lines), flush=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are words and whose others are figures."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, name in enumerate(head):
        widest = max((len(row[index]) for row in rows), default=0)
        least = min(widest, WHOLE) if index == 0 else None
        side = "left" if index < left else "right"
        made.add_column(name, justify=side, overflow="fold", min_width=least)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def tell(plan: dict[str, Any]) -> None:
    """Prints the whole plan."""
    parts: list[Any] = [Text(headline(plan), style=STYLE[plan["verdict"]]), where(plan)]
    if plan["error"]:
        parts.append(plan["error"])
    parts.append(table("Memory, a device", *memory_rows(plan)))
    parts += host_lines(plan)
    if plan["buffers"]:
        parts.append(table("Largest buffers", *buffer_rows(plan, BUFFERS), left=4))
    parts += flops_lines(plan)
    if plan["traffic"]:
        parts.append(table("Collectives, a device and step", *traffic_rows(plan), left=3))
    if plan["rates"]:
        parts += [table("A step", *rate_rows(plan)), *floor_lines(plan)]
    if plan["measured"]:
        rows = measured.beside(plan, plan["measured"])
        parts.append(table("Measured", measured.HEAD, rows, left=2))
    if plan["warnings"]:
        parts.append(Text("Warnings", style="bold"))
        parts += [f"  - {warning['text']}" for warning in plan["warnings"]]
    show(*parts)


def headline(plan: dict[str, Any]) -> str:
    """One line: fits or not, and how much of the memory."""
    memory = plan["memory"]
    size = memory["peak"] or memory["required"]
    of = f" of {gib(memory['capacity'])}" if memory["capacity"] else ""
    what = f"{gib(size)}{of} a device" if size else "memory not known"
    verdict = {summary.FITS: "FITS", summary.OVER: "DOES NOT FIT"}.get(plan["verdict"], "NOT KNOWN")
    return f"{plan['name']} on {plan['topology']}: {verdict}, {what}"


def where(plan: dict[str, Any]) -> str:
    """Chips, mesh, remat and batches."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in (plan["mesh"] or {}).items())
    rows = []
    for name, row in (plan["datasets"] or {}).items():
        rows.append(f"{name} {row['batch']} x {row['length']}")
    devices = f" ({plan['devices']} devices)" if plan["devices"] != plan["chips"] else ""
    given = ", features given" if plan["features"] else ""
    parts = plan["micro_batches"] or 1
    given += f"; in {parts} micro-batches" if parts > 1 else ""
    return (
        f"{plan['chips']} x {plan['chip']}{devices}, {wording.plural(plan['hosts'], 'host')}; "
        f"{mesh}; remat {plan['remat']}; stage {plan['stage']}: {', '.join(rows)}{given}"
    )


def memory_rows(plan: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: kind, compiled, analytic, share of what there is."""
    memory = plan["memory"]
    kinds, counted, most = memory["by_kind"], dict(memory["analytic"]), memory["capacity"]
    counted["other"] = counted.pop("counters", 0)
    rows = []
    for kind in kinds or counted:
        if kind == summary.PADDING and not kinds[kind]:
            continue
        size, own = kinds.get(kind), counted.get(kind)
        share = f"{size / most:.1%}" if most and size is not None else ""
        rows.append(
            [kind, "" if size is None else gib(size), "" if own is None else gib(own), share]
        )
    if size := memory["peak"] or memory["required"]:
        name = "at the peak" if memory["peak"] else "needed by the compiler's word"
        rows.append([name, gib(size), "", f"{size / most:.1%}" if most else ""])
    return ["", "compiled", "counted", f"of {gib(most)}" if most else "share"], rows


def host_lines(plan: dict[str, Any]) -> list[str]:
    """What lies on the hosts and what is brought from there, if anything is."""
    told = plan["host"]
    if not told:
        return []
    line = f"On the hosts: {gib(told['host'])} a host, {gib(told['device'])} of each device"
    if told["brought"]:
        line += f"; {gib(told['brought'])} brought to each device in a step"
    if seconds := (plan["floor"] or {}).get("host"):
        line += f", {seconds:.4g} s at the least"
    return [line]


def buffer_rows(plan: dict[str, Any], most: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the largest buffers; those alike are one row, with their number."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for one in plan["buffers"]:
        dims = "x".join(map(str, one["dims"]))
        key = (summary.buffer_name(one), one["kind"], one["dtype"], dims)
        alike.setdefault(key, []).append(one["bytes"])
    rows = [
        [*key, f"{len(sizes)} x" if len(sizes) > 1 else "", gib(max(sizes))]
        for key, sizes in list(alike.items())[:most]
    ]
    return ["what", "kind", "dtype", "dims", "", "bytes"], rows


def traffic_rows(plan: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of collectives by mesh axis and op."""
    rows = [
        [
            row["axis"],
            row["op"],
            "async" if row["asynchronous"] else "sync",
            gib(row["bytes"]),
            f"{row['times']:,}",
            str(row["group"]),
        ]
        for row in plan["traffic"]
    ]
    return ["axis", "op", "", "results", "times", "group"], rows


def flops_lines(plan: dict[str, Any]) -> list[str]:
    """FLOPs by the jaxpr against those counted from the config."""
    flops = plan["flops"]
    if flops["model"] is None:
        return []
    line = (
        f"FLOPs of a step: {si(flops['model'])} of the model, counted from the config "
        f"({si(flops['without_attention'])} without attention's products)"
    )
    lines = [line]
    if flops["hardware"]:
        once = flops["hardware"] - (flops["again"] or 0)
        lines.append(
            f"By the jaxpr {si(flops['hardware'])}, of which {si(flops['again'] or 0)} are "
            f"computed again; the others are {once / flops['model']:.2%} of the model's"
        )
    if kernels := flops["kernels"]:
        parts = ", ".join(f"{name} {si(size)}" for name, size in kernels.items())
        lines.append(f"Fused attention: {parts}; attention that has no fused form is plain")
    elif plan["attention"] == "fused":
        lines.append("Fused attention was asked for, and no call has a fused form here: all plain")
    if plan["moves"]:
        told = ", ".join(f"{kind} {gib(size)}" for kind, size in plan["moves"].items())
        lines.append(f"Collectives move, a device and step: {told}")
    return lines


def rate_rows(plan: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what a step takes at the floor and by the estimate."""
    rates = plan["rates"]
    rows = [
        ["seconds", *(f"{rate['seconds']:.4g}" for rate in rates.values())],
        ["MFU", *(_share(rate["mfu"]) for rate in rates.values())],
        ["MFU without attention", *(_share(r["mfu_without_attention"]) for r in rates.values())],
        ["tokens a second", *(wording.count(rate["tokens"]) for rate in rates.values())],
        ["images a second", *(wording.count(rate["images"]) for rate in rates.values())],
        [f"days for {plan['steps']:,} steps", *(f"{r['days']:.3g}" for r in rates.values())],
    ]
    return ["", *rates], rows


def _share(value: float | None) -> str:
    return wording.NOTHING if value is None else f"{value:.3f}"


def floor_lines(plan: dict[str, Any]) -> list[str]:
    """What the floor is made of, and what an estimate is."""
    parts = plan["floor"]
    lines = [
        f"Floor: products {parts['compute']:.4g} s at the peak, collectives {parts['links']:.4g} s "
        f"over all links ({parts['one_axis']:.4g} s over one axis's), network "
        f"{parts['network']:.4g} s; the longest counts: {parts['bound']}"
    ]
    if plan["estimate"]:
        lines.append(f"Estimate: {floor.LABEL}; collectives not overlapped")
    else:
        lines.append("No estimate: the compiler told no cycles, or their clock is not known")
    return lines


def si(value: float) -> str:
    """FLOPs with a decimal prefix: 2.42 PFLOP."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {letter}FLOP"
    return f"{value:.4g} FLOP"


def tell_sweep(results: Sequence[Result], overrides: Sequence[str]) -> None:
    """Prints the candidates, the best first and marked, and the overrides that make it."""
    tried = [one for one in results if one.plan is not None]
    parts: list[Any] = [table("Candidates", *sweep_rows(tried[:SHOWN]), left=2)]
    if len(tried) > SHOWN:
        parts.append(f"and {len(tried) - SHOWN} more, in plan.json")
    if spared := len(results) - len(tried):
        parts.append(f"{spared} more were not compiled: they cannot fit, or cannot be better")
    if results[0].score >= 0:
        parts.append(Text(f"Best: {results[0].candidate.name}", style="bold green"))
        parts.append("  " + (" ".join(overrides) or "the config as it is"))
    show(*parts, "")


def sweep_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of candidates; their MFU is that at the floor."""
    best = results[0].candidate if results and results[0].score >= 0 else None
    rows = []
    for one in results:
        plan = one.plan
        cells = ["", "", "", "", ""]
        verdict = one.spared
        if plan is not None:
            verdict = plan["verdict"]
            size = plan["memory"]["peak"] or plan["memory"]["required"]
            seconds, span = plan["floor"], plan["estimate"]
            took = plan["compiling"]["compile_seconds"]
            cells = [
                gib(size) if size else "",
                f"{one.score:.3f}" if one.score >= 0 and seconds else "",
                f"{seconds['seconds']:.4g}" if seconds else "",
                f"{span['least']:.3g} to {span['most']:.3g}" if span else "",
                f"{took:.0f}" if took else "",
            ]
        mark = "* " if one.candidate == best else "  "
        rows.append([mark + one.candidate.name, verdict, gib(one.state), *cells])
    head = ["candidate", "", "state", "peak", "MFU", "floor s", "estimate s", "compiled s"]
    return head, rows


MARKDOWN = (
    "experiment", "topology", "mesh r,f,t", "remat", "rows", "fits", "peak GiB", "state GiB",
    "model PFLOP", "hardware PFLOP", "floor s", "MFU at floor", "estimate s (uncalibrated)",
    "results moved GiB", "compiled in s, GB", "libtpu", "command",
)  # fmt: skip


def markdown(plan: dict[str, Any], head: bool = True) -> str:
    """The plan's row of experiments/PLANS.md, under its head."""
    rates, memory, flops = plan["rates"].get("floor", {}), plan["memory"], plan["flops"]
    span, took = plan["estimate"], plan["compiling"]
    size = memory["peak"] or memory["required"] or 0
    given = " (features)" if plan["features"] else ""
    mfu = f"{rates['mfu']:.3f} ({rates['mfu_without_attention']:.3f})" if rates else ""
    cells = [
        plan["config"] + given,
        plan["topology"],
        ",".join(map(str, (plan["mesh"] or {}).values())),
        str(plan["remat"]),
        " + ".join(str(row["batch"]) for row in (plan["datasets"] or {}).values()),
        plan["verdict"],
        f"{size / 2**30:.2f}",
        f"{sum(memory['analytic'].values()) / 2**30:.2f}",
        *(f"{value / 1e15:.4g}" if value else "" for value in (flops["model"], flops["hardware"])),
        f"{rates['seconds']:.4g}" if rates else "",
        mfu,
        f"{span['least']:.3g} to {span['most']:.3g}" if span else "",
        f"{sum(row['bytes'] for row in plan['traffic']) / 2**30:.3g}",
        f"{took['compile_seconds'] or 0:.0f}, {took['rss_gb'] or 0:.1f}",
        plan["versions"].get("libtpu", ""),
        f"`{plan['command']}`",
    ]
    lines = [MARKDOWN, tuple("---" for _ in MARKDOWN)] if head else []
    lines.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
