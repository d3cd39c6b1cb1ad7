"""Head and foot of a page: name, state, command and facts; alarms; attributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_jax.report import costs, reading, wording
from flamingo_jax.report.markup import Markup, tag
from flamingo_jax.report.reading import Run


def header(run: Run) -> Markup:
    """Name, state, command, and the few figures that tell runs apart."""
    state = reading.state(run)
    facts = run.facts
    return tag(
        "header",
        tag("p", "flamingo_jax report", class_="kicker"),
        tag("h1", run.name, " ", tag("span", state.word, class_=f"state {state.word}")),
        tag("p", state.text, class_="note") if state.text != state.word else None,
        tag("pre", facts["command"], class_="command") if facts.get("command") else None,
        tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in _facts(run)], class_="facts"),
    )


def _facts(run: Run) -> list[tuple[str, Any]]:
    facts = run.facts
    found: list[tuple[str, Any]] = []
    times = [row["time"] for row in (*run.events, *run.speed) if reading.is_number(row.get("time"))]
    if times:
        found.append(("started", wording.moment(min(times))))
        found.append(("updated", wording.moment(max(times))))
    if costs.stage_seconds(run):
        found.append(("time", total_time(run)))
    if costs.memory(run) is not None:
        found.append(("peak memory", wording.gigabytes(costs.memory(run))))
    if run.seed is not None:
        found.append(("seed", run.seed))
    if facts.get("devices"):
        devices = facts["devices"]
        devices = ", ".join(map(str, devices)) if isinstance(devices, list) else str(devices)
        found.append(("devices", f"{devices} {facts.get('platform', '')}".strip()))
    mesh = facts.get("mesh")
    if isinstance(mesh, dict) and mesh:
        found.append(("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.items())))
    if commit(run):
        found.append(("commit", commit(run)))
    versions = facts.get("versions")
    if isinstance(versions, dict) and versions:
        found.append(("versions", ", ".join(f"{k}\u00a0{v}" for k, v in versions.items())))
    return found


def commit(run: Run) -> str:
    """The commit the run was started from, and whether there were changes upon it."""
    git = run.facts.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return ""
    return str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")


def total_time(run: Run) -> str:
    """Training and evaluation together."""
    seconds = costs.stage_seconds(run)
    return wording.duration(sum(seconds.values()) if seconds else None)


def alarm_lines(run: Run) -> list[str]:
    """A line for each stage with alarms: the last one, how many, and whether it passed."""
    last: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for alarm in run.alarms:
        stage = str(alarm.get("stage"))
        last[stage], counts[stage] = alarm, counts.get(stage, 0) + 1
    lines = []
    for stage, alarm in last.items():
        text = str(alarm.get("text") or "a shuffled picture costs nothing")
        line = f"stage {stage}, step {alarm.get('step')}: {text}"
        if counts[stage] > 1:
            line += f" (the last of {counts[stage]} alarms)"
        if _passed(run, alarm):
            line += "; later in the run it did cost more"
        lines.append(line)
    return lines


def _passed(run: Run, alarm: dict[str, Any]) -> bool:
    """Whether a validation after the alarm found what the alarm missed."""
    stage, step, limit = str(alarm.get("stage")), alarm.get("step"), run.field("alarm", "nats")
    if not reading.is_number(step) or not reading.is_number(limit):
        return False
    for key in run.keys(stage, ending=reading.SIGHT):
        steps, gains = run.series(stage, key, "validation")
        if any(at > step and gain >= limit for at, gain in zip(steps, gains, strict=True)):
            return True
    return False


def banner(runs: Sequence[Run], names: Sequence[str] = ("",)) -> Markup | None:
    """The alarms, where nobody can overlook them; `names` tell several runs apart."""
    told = [
        tag("p", tag("b", "Alarm"), f" {name}, {line}" if name else f" {line}")
        for run, name in zip(runs, names, strict=True)
        for line in alarm_lines(run)
    ]
    return tag("div", told, class_="alarm", role="alert") if told else None


def problems(runs: Sequence[Run], names: Sequence[str] = ("",)) -> Markup | None:
    """Files that could not be read as a whole."""
    told = [
        tag("li", f"{name}: {text}" if name else text)
        for run, name in zip(runs, names, strict=True)
        for text in run.problems
    ]
    return tag("div", tag("ul", told), class_="problems") if told else None


def footer(runs: Sequence[Run]) -> Markup:
    """Attributions, each once."""
    lines = dict.fromkeys(str(line) for run in runs for line in run.facts.get("attribution") or [])
    return tag("footer", [tag("p", line) for line in lines])
