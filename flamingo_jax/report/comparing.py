"""Several runs over each other: checks side by side, curves, and what their configs differ in."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.report import charts, curves, heading, reading, tables, wording
from flamingo_jax.report.charts import Line, color, grid, line_chart
from flamingo_jax.report.curves import GATES, measured_chart
from flamingo_jax.report.markup import Markup, document, join, left_out, section, table, tag
from flamingo_jax.report.page import bar_key, bar_top, title
from flamingo_jax.report.reading import LOSS, SIGHT, Curve, Run
from flamingo_jax.report.tables import Group


def render(runs: Sequence[Run]) -> Markup:
    """The whole document for two or more runs."""
    runs = list(runs)
    names = tables.labels(runs)
    groups = tables.grouped(runs)
    by_folder = {run.workdir: name for run, name in zip(runs, names, strict=True)}
    parts = [
        ("runs", "Runs", overview(runs, names)),
        ("checks", "Checks", checks(groups, by_folder)),
        ("losses", "Losses", losses(runs, names)),
        ("sight", "Gates and sight", sight(runs, names)),
        ("shots", "Few-shot curves", shots(runs, names)),
        ("config", "Config differences", differences(groups)),
    ]
    return document(
        f"{', '.join(names)}: compared",
        tag(
            "header",
            tag("p", "flamingo_jax report", class_="kicker"),
            tag("h1", wording.plural(len(runs), "run"), " compared"),
        ),
        heading.banner(runs, names),
        heading.problems(runs, names),
        tag("nav", [tag("a", name, href=f"#{key}") for key, name, _ in parts]),
        [section(key, name, body) for key, name, body in parts],
        heading.footer(runs),
    )


def overview(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """A row a run: the colour of its curves, its state, seed, commit and time."""
    rows = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        state = reading.state(run)
        swatch = tag("i", class_="swatch", style=f"background:{color(index)}")
        commit = heading.commit(run) or wording.NOTHING
        rows.append([
            join(swatch, name), run.name, tag("span", state.word, class_=f"state {state.word}"),
            wording.NOTHING if run.seed is None else run.seed, commit, heading.total_time(run),
        ])  # fmt: skip
    return table(["run", "name", "state", "seed", "commit", "time"], rows)


def checks(groups: Sequence[Group], names: Mapping[pathlib.Path, str]) -> Markup:
    """The checks of each group side by side, as mean and range where a group has several runs.

    Args:
      groups: runs that differ in their seed alone are in one.
      names: of the runs, by their workdirs.
    """
    found = tables.rows(groups)
    if not found:
        return left_out("No checks: none of the runs has a results.json with checks yet.")
    every = [c for row in found for group in row.checks for c in group if c is not None]
    _, texts = tables.cells(groups, found)
    rows = []
    for row, text in zip(found, texts, strict=True):
        line: list[Any] = [title(row.first)]
        for index in range(len(groups)):
            value, control = row.spread(index, "value"), row.spread(index, "control")
            shown, _, rest = text[2 + 2 * index].partition(" ")
            line.append(join(tag("b", shown), " ", tag("span", rest, class_="unit")))
            line.append(charts.bar(value.mean, control.mean, row.first.chance,
                                   bar_top(row.first, every), (value.low, value.high)))  # fmt: skip
            line.append(text[3 + 2 * index])
        rows.append([*line, text[-1], text[1]])
    parts = [
        table(_checks_head(groups), rows, class_="checks"),
        tag("p", *bar_key(), class_="note"),
    ]
    for group in groups:
        if len(group.runs) > 1:
            members = ", ".join(names[run.workdir] for run in group.runs)
            text = f"{group.name}: the runs {members} with the seeds {group.seeds}; "
            parts.append(tag("p", text, "the line on a bar is their range.", class_="note"))
    return join(*parts)


def _checks_head(groups: Sequence[Group]) -> list[Any]:
    head: list[Any] = ["check"]
    for group in groups:
        several = len(group.runs) > 1
        what = f"mean of {group.what} (min{tables.DASH}max)" if several else f"seed {group.seeds}"
        name = group.name if len(groups) > 1 else "value"
        head += [join(name, ", ", tag("span", what, class_="unit")), "", "control"]
    return [*head, "chance", "n"]


def losses(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """A chart for each stage and dataset with a line a run."""
    found = []
    for stage, key in _metrics(runs, LOSS) or _metrics(runs, "loss"):
        lines: list[Line] = []
        for index, run in enumerate(runs):
            lines += curves.loss_lines(run, stage, key, names[index], names[index], color(index))
        name = f"{stage}: {key.removesuffix(LOSS)}"
        found.append(line_chart(name, lines, y_name="loss, nats", log=True))
    if not found:
        return left_out("No curves: none of the runs has a metrics.jsonl with losses yet.")
    note = "Lines: training (running mean over the faint logged values if many); dots: validation."
    return join(tag("p", note, class_="note"), grid(*found))


def sight(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """What a shuffled picture costs in each run, and the largest gate over time."""
    found = []
    for stage, key in _metrics(runs, SIGHT):
        lines = [
            Line(name, name, *run.series(stage, key, "validation"), color(index), "marked")
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        heading_text = f"{key.removesuffix(SIGHT)}: shuffled minus right"
        guides = curves.alarm_guides(runs[0])
        found.append(
            line_chart(heading_text, lines, y_name="nats a token", guides=guides, zero=True)
        )
    for beginning, kind in GATES:
        lines = [
            Line(name, name, *_largest(run, beginning), color(index))
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        if any(line.x for line in lines):
            found.append(line_chart(f"{kind}: the largest", lines, y_name="|tanh gate|", zero=True))
    return grid(*found) if found else left_out("No gates: no Flamingo stage has logged a step yet.")


def shots(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """Each measured curve with the lines of every run that has it."""
    versions: dict[tuple[str, str], list[tuple[str, Curve, str | None]]] = {}
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for task in run.tasks:
            for curve in task.curves:
                versions.setdefault((task.name, curve.key), []).append((name, curve, color(index)))
    if not versions:
        return left_out("No curves: none of the runs has been evaluated yet.")
    return grid(*(measured_chart(found[0][1], found) for found in versions.values()))


def differences(groups: Sequence[Group]) -> Markup:
    """The config fields in which any two runs differ, a column a group."""
    rows = config_rows(groups)
    if not rows:
        return left_out("None: the configs are the same.")
    names = [
        group.name if len(group.runs) == 1 else f"{group.name} ({group.what})" for group in groups
    ]
    return table(["field", *names], rows, class_="config-differences")


def config_rows(groups: Sequence[Group]) -> list[list[str]]:
    """[field, value of each group] for every field that is not the same in all runs."""
    flat = [[_flat(run.config) for run in group.runs] for group in groups]
    fields = sorted({field for group in flat for run in group for field in run})
    rows = []
    for field in fields:
        values = [[run.get(field, "(absent)") for run in group] for group in flat]
        if len({value for group in values for value in group}) > 1:
            rows.append([field, *(", ".join(dict.fromkeys(group)) for group in values)])
    return rows


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def _metrics(runs: Sequence[Run], ending: str) -> list[tuple[str, str]]:
    """(stage, metric) of every run's metrics of that ending."""
    found: dict[tuple[str, str], None] = {}
    for run in runs:
        for stage in run.stages:
            found.update(((stage, key), None) for key in run.keys(stage, ending=ending))
    return list(found)


def _largest(run: Run, beginning: str) -> tuple[list[float], list[float]]:
    """(steps, the largest |tanh gate| of any layer) of the last stage that has gates."""
    largest: dict[float, float] = {}
    for stage in run.stages:
        for _, key in curves.layers(run, stage, beginning):
            for step, value in zip(*run.series(stage, key, "train"), strict=True):
                largest[step] = max(largest.get(step, 0.0), abs(value))
    return sorted(largest), [largest[step] for step in sorted(largest)]
