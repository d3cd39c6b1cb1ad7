"""The page of one run: a section for each thing that was measured, in the order it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from flamingo_jax.report import (
    attention,
    charts,
    costs,
    curves,
    heading,
    pictures,
    reading,
    wording,
)
from flamingo_jax.report.markup import Markup, document, join, left_out, section, table, tag
from flamingo_jax.report.reading import Check, Run

MOST_EVENTS = 200


def render(run: Run) -> Markup:
    """The whole document."""
    parts = [
        ("checks", "Checks", checks(run)),
        ("losses", "Losses", losses(run)),
        ("sight", "Gates and sight", sight(run)),
        ("shots", "Few-shot curves", shots(run)),
        ("pictures", "Held-out pictures", samples(run)),
        ("page", "Page and mask", pages(run)),
        ("parameters", "Parameters", costs.parameters(run)),
        ("speed", "Speed and memory", costs.speed(run)),
        ("events", "Events", events(run)),
        ("config", "Config", config(run)),
    ]
    nav = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in parts])
    return document(
        f"{run.name}: report",
        heading.header(run),
        heading.banner([run]),
        heading.problems([run]),
        nav,
        [section(key, title, body) for key, title, body in parts],
        heading.footer([run]),
    )


def checks(run: Run) -> Markup:
    """Every figure beside its control and chance, with a small bar."""
    if not run.checks:
        return left_out("No checks: results.json is not there yet; it comes with the evaluation.")
    parts = []
    for task in run.tasks:
        if task.checks:
            told = [
                task.split and f"{task.split} split",
                f"seed {task.seed}" if task.seed is not None else "",
                wording.duration(task.seconds) if task.seconds else "",
            ]
            parts.append(
                tag(
                    "h3", task.title, " ", tag("span", ", ".join(filter(None, told)), class_="unit")
                )
            )
            parts.append(checks_table(list(task.checks)))
    parts.append(tag("p", *bar_key(), class_="note"))
    return join(*parts)


def bar_key() -> list[Markup | str]:
    """What the marks of a bar mean."""
    return [
        tag("i", class_="key-fill"), "value, ", tag("i", class_="key-control"),
        "control (as named in its column), ",
        tag("i", class_="key-chance"), "chance.",
    ]  # fmt: skip


def checks_table(found: list[Check]) -> Markup:
    """One task's checks."""
    rows = []
    for check in found:
        control = wording.with_unit(check.control, check.unit)
        rows.append([
            title(check),
            tag("b", wording.with_unit(check.value, check.unit)),
            charts.bar(check.value, check.control, check.chance, bar_top(check, found)),
            join(control, " ", tag("span", check.control_name, class_="unit"))
            if check.control is not None else control,
            wording.with_unit(check.chance, check.unit),
            wording.NOTHING if check.n is None else f"{check.n:,}",
        ])  # fmt: skip
    head = ["check", "value", "", "control", "chance", "n"]
    return table(head, rows, class_="checks")


def title(check: Check) -> Markup:
    """A check's title with its unit, where the figure does not carry it."""
    unit = check.unit if check.unit and check.unit != "%" else None
    return join(check.title, " ", tag("span", unit, class_="unit") if unit else None)


def bar_top(check: Check, among: Sequence[Check]) -> float:
    """The right end of a check's bar: 100%, or the largest figure of its unit."""
    if check.unit == "%":
        return 100.0
    values = [v for c in among if c.unit == check.unit for v in (c.value, c.control, c.chance)]
    return max((v for v in values if v is not None and math.isfinite(v)), default=1.0)


def losses(run: Run) -> Markup:
    """Loss by dataset and stage; gradient norm and learning rate under them."""
    found = curves.losses(run)
    if found is None:
        return left_out("No curves: metrics.jsonl is not there yet, or holds no row.")
    more = curves.optimiser(run)
    return join(
        found,
        tag("details", tag("summary", "Gradient norm and learning rate"), more) if more else None,
    )


def sight(run: Run) -> Markup:
    """Gates over time, and what a shuffled picture costs."""
    found = [curves.sight(run), curves.gates(run)]
    if not any(found):
        return left_out("No gates: the Flamingo stage has not logged a step yet.")
    note = (
        "At step 0 every gate is closed and the language model sees nothing. "
        "A model that looks pays for a wrong picture: shuffled minus right rises above 0."
    )
    return join(tag("p", note, class_="note"), *found)


def shots(run: Run) -> Markup:
    """Few-shot curves and whatever else the tasks measured as a curve."""
    found = [chart for task in run.tasks for chart in curves.measured(task)]
    found += curves.benchmarks(run)
    if not found:
        return left_out("No curves: they come with the evaluation, in results.json.")
    pages = run.evaluations
    links = [
        join(" ", tag("a", f"step {step:,}", href=f"../{path}/report/index.html"))
        for step, path in pages
    ]
    note = tag("p", "Benchmarks in the middle of training, query by query:", *links, class_="note")
    return join(charts.grid(*found), note if links else None)


def samples(run: Run) -> Markup:
    """The gallery."""
    found = pictures.gallery(run)
    return found or left_out("No pictures: they come with the evaluation, in results.json.")


def pages(run: Run) -> Markup:
    """The drawn page of each task that recorded one."""
    found = [attention.drawing(run, task.page) for task in run.tasks if task.page]
    return join(*found) if found else left_out("No page: results.json holds none yet.")


def events(run: Run) -> Markup:
    """What happened and when; resumptions counted."""
    if not run.events:
        return left_out("No events: events.jsonl is not there yet.")
    resumed = [event for event in run.events if event.get("kind") == "resume"]
    note = "Never interrupted."
    if resumed:
        places = ", ".join(f"{e.get('stage')} step {e.get('step')}" for e in resumed[:10])
        note = f"Resumed {wording.plural(len(resumed), 'time')}: {places}."
    rows = [
        [
            wording.moment(event["time"] if reading.is_number(event.get("time")) else None),
            event.get("stage") or "",
            f"{event['step']:,}" if reading.is_number(event.get("step")) else "",
            tag("span", event.get("kind", ""), class_=f"tag {event.get('kind', '')}"),
            event.get("text") or "",
        ]
        for event in run.events[-MOST_EVENTS:]
    ]
    if len(run.events) > MOST_EVENTS:
        note += f" The last {MOST_EVENTS} of {len(run.events):,} events are shown."
    return join(
        tag("p", note, class_="note"),
        table(["time", "stage", "step", "event", "text"], rows, class_="events"),
    )


def config(run: Run) -> Markup:
    """The resolved config, folded away."""
    if not run.config:
        return left_out("No config: config.json is not there.")
    text = json.dumps(run.config, indent=1, sort_keys=True, ensure_ascii=False)
    return tag("details", tag("summary", "config.json, as resolved"), tag("pre", text))
