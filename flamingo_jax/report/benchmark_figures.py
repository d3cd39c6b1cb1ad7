"""Figures of benchmarks: ours by shots and selection, beside those that others published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flamingo_jax.eval import published
from flamingo_jax.eval.published import Published
from flamingo_jax.report import charts, wording
from flamingo_jax.report.benchmark_files import (
    Entry,
    Figure,
    Results,
    Setting,
    figure_title,
    points,
    selection_title,
)
from flamingo_jax.report.charts import Line
from flamingo_jax.report.laid import shown
from flamingo_jax.report.markup import Markup, join, left_out, table, tag

FAMILIES = ("Flamingo", "OpenFlamingo", "IDEFICS")
"""Of published models, a colour each."""
MOST_NOTE = 300  # letters of a reason that is shown


def overview(results: Results) -> Markup:
    """Each benchmark's own figure by shots, as papers print them."""
    shots = sorted({count for entry in results.entries for count in entry.shots})
    rows = []
    for entry in results.entries:
        for selection in entry.selections:
            found = [entry.find(count, selection) for count in shots]
            figures = [one and one.figures.get(entry.metric) for one in found]
            if any(figures) or selection == entry.selections[0]:
                rows.append([
                    tag("a", shown(entry.title), href=f"#benchmark-{entry.name}"),
                    figure_title(entry.metric), selection_title(selection),
                    *(_cell(figure, short=True) for figure in figures),
                ])  # fmt: skip
    return table(
        ["benchmark", "metric", "selection", *(wording.plural(count, "shot") for count in shots)],
        rows,
        class_="by-shots",
    )


def by_shots(entry: Entry, name: str) -> Markup:
    """Ours and the published figures with the same numbers of shots."""
    shots = entry.shots
    head = ["model", "selection", *(wording.plural(count, "shot") for count in shots), "source"]
    rows = []
    for selection in entry.selections:
        found = [entry.find(count, selection) for count in shots]
        cells = [_cell(one and one.figures.get(entry.metric)) for one in found]
        rows.append([tag("b", shown(name)), selection_title(selection), *cells, "this evaluation"])
    ours = len(rows)
    known = published.of(entry.name)
    for row in _models(one for one in known if one.shots in shots):
        first = row[0]
        by_count = {one.shots: one for one in row}
        variant = tag("span", first.variant, class_="unit") if first.variant else None
        cells = [points(by_count[n].value) if n in by_count else wording.NOTHING for n in shots]
        label = join(first.model, variant)
        rows.append([label, selection_title(first.selection), *cells, _source(row, entry)])
    tuned = [one for one in known if one.shots is None]
    return join(
        table(head, rows, class_="by-shots compared", ours=ours),
        tag("p", _compared(len(rows) > ours, tuned), class_="note"),
    )


def _compared(any_published: bool, tuned: Sequence[Published]) -> str:
    told = (
        "Published figures are those with the same numbers of shots; their prompts, support "
        "examples and decoding may differ."
        if any_published
        else "No figures with these numbers of shots are known."
    )
    for one in tuned:
        note = f"; {one.note}" if one.note else ""
        told += f" The best fine-tuned model had {points(one.value)} ({one.source}{note})."
    return told


def _models(found: Iterable[Published]) -> list[list[Published]]:
    """The figures of a row: one model's, its shots found in one way."""
    rows: dict[tuple[str, str, str], list[Published]] = {}
    for one in found:
        rows.setdefault((one.model, one.selection, one.variant), []).append(one)
    # Those without a selection are states of the art of their time: they come last.
    return sorted(rows.values(), key=lambda row: not row[0].selection)


def _source(row: Sequence[Published], entry: Entry) -> Markup:
    """Where a row is from, whether its split is another one, and what is to be known of it."""
    told = list(dict.fromkeys(one.source for one in row))
    if row[0].split and row[0].split != entry.split:
        told.append(f"split {row[0].split}")
    for note in dict.fromkeys(one.note for one in row if one.note):
        of = [one.shots for one in row if one.note == note]
        places = "" if len(of) == len(row) else f"{', '.join(map(str, of))} shots: "
        told.append(places + note)
    return tag("span", "; ".join(told), class_="unit")


def _cell(figure: Figure | None, short: bool = False) -> Markup | str:
    """The mean, its interval under it, and the spread over trials."""
    if figure is None:
        return wording.NOTHING
    return join(
        tag("b", points(figure.mean)),
        tag("span", f" {figure.spread}", class_="unit") if figure.spread else None,
        tag("span", figure.interval, class_="interval") if not short else None,
    )


def curve(entry: Entry, name: str) -> Markup | None:
    """The benchmark's own figure over shots: ours with error bars, published ones thin."""
    lines = []
    for place, selection in enumerate(entry.selections):
        found = [
            s for s in entry.settings if s.selection == selection and entry.metric in s.figures
        ]
        figures = [setting.figures[entry.metric] for setting in found]
        legend = f"{shown(name)}, {selection_title(selection)}"
        lines.append(
            Line(
                legend,
                legend,
                [setting.shots for setting in found],
                [figure.mean for figure in figures],
                charts.color((0, 7, 5, 3)[place % 4]),
                "marked",
                [math.nan if figure.low is None else figure.low for figure in figures],
                [math.nan if figure.high is None else figure.high for figure in figures],
            )
        )
    if not any(line.x for line in lines) or len(entry.shots) < 2:
        return None
    ours = len(lines)
    within = (one for one in published.of(entry.name) if one.shots is not None)
    for row in _models(one for one in within if one.selection and not one.variant):
        lines += _published(row, entry.shots[-1])
    return charts.line_chart(
        f"{shown(entry.title)} over shots",
        lines,
        x_name="shots",
        y_name=figure_title(entry.metric),
        x_ticks=entry.shots,
        note="Error bars: 95% over queries."
        + " Thin lines were published; dashed ones are by RICES." * (len(lines) > ours),
    )


def _published(row: Sequence[Published], most: int) -> list[Line]:
    """A published model's line as far as ours go."""
    row = sorted((p for p in row if (p.shots or 0) <= most), key=lambda p: p.shots or 0)
    if len(row) < 2:
        return []
    model, selection = row[0].model, row[0].selection
    family = model.split(" ")[0]
    way = "faint" if selection == "random" else "faint-dashed"
    told = model if selection == "random" else f"{model}, {selection_title(selection)}"
    place = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    color = charts.color((1, 2, 4, 6)[place])
    return [Line(told, family, [p.shots or 0 for p in row], [p.value for p in row], color, way)]


def every_figure(entry: Entry) -> Markup:
    """All figures of all settings: mean, interval, spread, queries, seconds."""
    names = list(dict.fromkeys(name for setting in entry.settings for name in setting.figures))
    if not names:
        return left_out("No figures: nothing could be scored.")
    rows = []
    for setting in entry.settings:
        cells = [_cell(setting.figures.get(name)) for name in names]
        told = wording.duration(setting.seconds)
        rows.append([setting.name, *cells, setting.trials, f"{setting.scored:,}", told])
    head = ["setting", *map(figure_title, names), "trials", "scored queries", "time"]
    note = (
        "Mean over trials, ± their standard deviation (other support examples, another order), and "
        "the 95% bootstrap interval over queries (of several trials the mean ends of theirs)."
    )
    return join(table(head, rows, class_="by-shots"), tag("p", note, class_="note"))


def notes(entry: Entry, request: Mapping[str, Any]) -> list[str]:
    """What was left out or not scored, and why."""
    told = []
    if entry.left_out:
        told.append(
            f"{wording.plural(entry.left_out, 'example')} left out: their clip is not there."
        )
    if str(request.get("split")) == "validation":
        told.append(
            "Queries are examples of the training split, to make decisions by: published figures "
            "are of other queries."
        )
    reasons: dict[str, list[Setting]] = {}
    for setting in entry.settings:
        for reason in setting.unscored:
            reasons.setdefault(reason, []).append(setting)
    for reason, of in reasons.items():
        where = "" if len(of) == len(entry.settings) else f" ({'; '.join(s.name for s in of)})"
        told.append(f"Not scored{where}: {shown(reason, MOST_NOTE)}.")
    partly = {s.scored for s in entry.settings if 0 < s.scored < entry.queries}
    for scored in sorted(partly):
        told.append(f"{scored:,} of {entry.queries:,} queries have a reference and are scored.")
    return told
