"""The plan as a page: memory by kind, buffers, collectives, the floor, the sweep's scatter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from flamingo_jax.plan import measured, printing
from flamingo_jax.planning import candidates, floor, summary
from flamingo_jax.planning.summary import gib
from flamingo_jax.planning.sweep import Result
from flamingo_jax.report import charts, wording
from flamingo_jax.report.markup import Child, Markup, document, join, left_out, section, table, tag

GIB = 2**30
STATE = {summary.FITS: "finished", summary.OVER: "preempted", summary.UNKNOWN: "unfinished"}
"""Which of the style sheet's states a verdict looks like."""


def render(plan: dict[str, Any], results: Sequence[Result] = ()) -> Markup:
    """The whole document; `results` are a sweep's."""
    parts = [
        ("sweep", "Sweep", sweep(results, plan)) if results else None,
        ("memory", "Memory", memory(plan)),
        ("buffers", "Largest buffers", buffers(plan)),
        ("time", "A step's time", times(plan)),
        ("flops", "FLOPs", tag("ul", [tag("li", t) for t in printing.flops_lines(plan)])),
        ("traffic", "Collectives", traffic(plan)),
        ("measured", "Measured steps", measurements(plan)),
        ("asked", "What was asked", asked(plan)),
    ]
    known = [part for part in parts if part is not None]
    nav = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in known])
    return document(
        f"{plan['name']} on {plan['topology']}: plan",
        header(plan),
        warnings(plan),
        nav,
        [section(key, title, body) for key, title, body in known],
        tag("footer", tag("p", "Nothing here was measured unless it says so.")),
    )


def header(plan: dict[str, Any]) -> Markup:
    """Name, verdict, and the few figures that tell plans apart."""
    size = plan["memory"]["peak"] or plan["memory"]["required"]
    most, rates = plan["memory"]["capacity"], plan["rates"].get("floor")
    known: list[tuple[str, Child]] = [
        ("devices", f"{plan['chips']} x {plan['chip']}"),
        ("mesh", ", ".join(f"{axis} {n}" for axis, n in (plan["mesh"] or {}).items())),
        ("remat", plan["remat"]),
    ]
    if size:
        known.append(("memory a device", gib(size) + (f" of {gib(most)}" if most else "")))
    if rates:
        known.append(("a step, at least", wording_seconds(rates["seconds"])))
        known.append(("MFU, at most", f"{rates['mfu']:.1%}"))
        known.append((f"{plan['steps']:,} steps, at least", f"{rates['days']:.3g} days"))
    versions = plan["versions"].items()
    known.append(("versions", ", ".join(f"{k}\u00a0{v}" for k, v in versions)))
    return tag(
        "header",
        tag("p", "flamingo_jax plan", class_="kicker"),
        tag(
            "h1",
            f"{plan['name']} on {plan['topology']}",
            " ",
            tag("span", plan["verdict"], class_=f"state {STATE[plan['verdict']]}"),
        ),
        tag("p", plan["error"], class_="note") if plan["error"] else None,
        tag("pre", plan["command"], class_="command"),
        tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in known], class_="facts"),
    )


def wording_seconds(value: float) -> str:
    """A step's seconds with three digits, short ones in ms."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def warnings(plan: dict[str, Any]) -> Markup | None:
    """What could be better, where nobody can overlook it."""
    told = [tag("li", warning["text"]) for warning in plan["warnings"]]
    return tag("div", tag("ul", told), class_="problems") if told else None


def _bars(rows: Sequence[tuple[str, float, Child]], top: float, head: list[Child]) -> Markup:
    """A table whose second column is a bar from 0 to `top`."""
    cells: list[list[Child]] = [
        [name, charts.bar(value, None, None, top), text] for name, value, text in rows
    ]
    return table(head, cells, class_="numbers")


def memory(plan: dict[str, Any]) -> Markup:
    """Bars by kind against the device's memory, and what the config's own count says."""
    told = plan["memory"]
    kinds, counted, most = told["by_kind"], dict(told["analytic"]), told["capacity"]
    counted["other"] = counted.pop("counters", 0)
    size = told["peak"] or told["required"] or 0
    top = max(most or 0, size) or sum(counted.values()) or 1
    rows: list[list[Child]] = []
    for kind in kinds or counted:
        value, own = kinds.get(kind), counted.get(kind)
        rows.append([
            kind, charts.bar(value if value is not None else own, None, None, top),
            wording.NOTHING if value is None else gib(value),
            wording.NOTHING if own is None else gib(own),
            f"{(value or own or 0) / top:.1%}",
        ])  # fmt: skip
    if size:
        name = "at the peak" if told["peak"] else "needed, by the compiler's word"
        bar = charts.bar(size, most, None, top)
        rows.append([tag("b", name), bar, tag("b", gib(size)), "", f"{size / top:.1%}"])
    share = f"of {gib(top)}"
    head: list[Child] = ["a device", "", "compiled", "counted from the config", share]
    note = (
        "Activations are what the peak has beyond the arguments; layouts' padding is what the "
        "compiler's tiles add to these."
    )
    if most:
        note += f" The mark is the memory there is for a program: {gib(most)}."
    hosts = [tag("p", f"{line}.") for line in printing.host_lines(plan)]
    return join(table(head, rows, class_="numbers"), *hosts, tag("p", note, class_="note"))


def buffers(plan: dict[str, Any]) -> Markup:
    """The largest ones by name."""
    if not plan["buffers"]:
        return left_out("The compiler told no buffers.")
    head, rows = printing.buffer_rows(plan, len(plan["buffers"]))
    return table(list(head), [list(row) for row in rows])


def times(plan: dict[str, Any]) -> Markup:
    """The floor's parts as bars, and what follows of floor and estimate."""
    if not plan["rates"]:
        return left_out("None: it cannot run, or these devices' peaks are not known.")
    parts = plan["floor"]
    top = max(parts.get(key, 0) for key in ("compute", "links", "one_axis", "network", "host")) or 1
    bars = [
        (title, parts[key], wording_seconds(parts[key]))
        for key, title in (
            ("compute", "products at the chip's peak"),
            ("links", "collectives over all links"),
            ("one_axis", "collectives over one axis's links"),
            ("network", "network between slices or nodes"),
            ("host", "from the hosts' memory"),
        )
        if key in parts
    ]
    head, rows = printing.rate_rows(plan)
    note = f"The floor is the longest of its parts: {parts['bound']}. "
    if plan["estimate"]:
        note += f"The estimate is a {floor.LABEL}; its collectives are not overlapped."
    return join(
        _bars(bars, top, ["at the least", "", "seconds"]),
        table(list(head), [list(row) for row in rows], class_="numbers"),
        tag("p", note, class_="note"),
    )


def traffic(plan: dict[str, Any]) -> Markup:
    """By mesh axis and op."""
    if not plan["traffic"]:
        return left_out("No collectives.")
    head, rows = printing.traffic_rows(plan)
    top = plan["traffic"][0]["bytes"] or 1
    cells: list[list[Child]] = [
        [*row, charts.bar(one["bytes"], None, None, top)]
        for row, one in zip(rows, plan["traffic"], strict=True)
    ]
    wire: Markup | None = None
    if plan["floor"]:
        wire = table(
            ["axis", "op", "bytes that a chip sends"],
            [[row["axis"], row["op"], gib(row["bytes"])] for row in plan["floor"]["wire"]],
            class_="numbers",
        )
        wire = tag("details", tag("summary", "Bytes on the wire"), wire)
    note = "Results of a device in a step; a loop's count as often as it turns."
    return join(table([*head, ""], cells, class_="numbers"), tag("p", note, class_="note"), wire)


def measurements(plan: dict[str, Any]) -> Markup:
    """Steps of real runs beside floor and estimate."""
    if not plan["measured"]:
        return left_out("None: give --measured=RUN, or --workdir of a run that has trained.")
    rows = measured.beside(plan, plan["measured"])
    return table(list(measured.HEAD), [list(row) for row in rows])


def asked(plan: dict[str, Any]) -> Markup:
    """The config's file, stage, datasets and overrides."""
    rows: list[list[Child]] = [
        ["config", plan["config"]],
        ["stage", plan["stage"]],
        ["vision", "features given" if plan["features"] else "pixels"],
    ]
    rows += [["override", f"{key}={value}"] for key, value in plan["overrides"].items()]
    for name, row in (plan["datasets"] or {}).items():
        told = ", ".join(f"{key} {value}" for key, value in row.items())
        rows.append([f"dataset {name}", told])
    return table(["", ""], rows)


def sweep(results: Sequence[Result], plan: dict[str, Any]) -> Markup:
    """Memory against MFU at the floor, and the table of candidates."""
    tried = [one for one in results if one.plan is not None]
    head, rows = printing.sweep_rows(tried)
    spared = [[one.candidate.name, gib(one.state), one.spared] for one in results if one.spared]
    return join(
        _scatter(tried),
        tag("p", "Best: ", tag("code", plan["best"]["flags"] or "the config as it is"))
        if plan["best"]
        else left_out("No candidate fits."),
        table(list(head), [list(row) for row in rows], class_="numbers"),
        tag(
            "details",
            tag("summary", f"{len(spared)} candidates that were not compiled"),
            table(["candidate", "state", "why"], [list(row) for row in spared]),
        )
        if spared
        else None,
    )


def _scatter(tried: Sequence[Result]) -> Markup | None:
    """A dot a candidate: memory at the peak, and MFU at the floor or what bounds it."""
    lines, most, floors = [], None, False
    for one in tried:
        plan = one.plan
        size = plan["memory"]["peak"] or plan["memory"]["required"] if plan else None
        mfu = one.score if one.score >= 0 else one.bound
        if plan is None or not size or not math.isfinite(mfu):
            continue
        most, floors = plan["memory"]["capacity"], floors or plan["floor"] is not None
        fits = one.score >= 0
        legend = f"remat {one.candidate.remat}" if fits else "does not fit"
        shade = charts.color(candidates.REMAT.index(one.candidate.remat) if fits else 7)
        name = one.candidate.name
        lines.append(charts.Line(name, legend, [size / GIB], [mfu], shade, "marked"))
    if not lines:
        return None
    return charts.line_chart(
        "Candidates",
        lines,
        x_name="GiB a device at the peak",
        y_name="MFU at the floor" if floors else "share of FLOPs not computed again",
        guides=[charts.Guide(most / GIB, gib(most), "x")] if most else [],
        note="What does not fit stands at the MFU that its FLOPs alone would allow.",
    )


def to_json(plan: dict[str, Any]) -> str:
    """plan.json."""
    return json.dumps(plan, indent=1, allow_nan=False) + "\n"
