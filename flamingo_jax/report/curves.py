"""A run's curves: losses, gates, what a shuffled picture costs, few-shot curves, speed."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable

from flamingo_jax.report.charts import (
    Guide,
    Line,
    color,
    depth_color,
    grid,
    line_chart,
    smoothed,
)
from flamingo_jax.report.markup import Markup
from flamingo_jax.report.reading import LOSS, SIGHT, Curve, Run, Task

SMOOTH_FROM = 60  # a curve of fewer points needs no running mean
LAYERS_NAMED = 12  # more layers than these get no legend entry each
RETRIEVAL = "/retrieval"
GATES = (("gate_attention/", "Gates of attention"), ("gate_dense/", "Gates of dense layers"))
CONTROL = re.compile(r"shuffl|control|chance|wrong|no picture|blind", re.IGNORECASE)


def losses(run: Run) -> Markup | None:
    """A chart for each stage with the training and validation loss of each dataset."""
    charts = []
    for stage in run.stages:
        keys = run.keys(stage, ending=LOSS) or run.keys(stage, ending="loss")
        lines: list[Line] = []
        for index, key in enumerate(keys):
            name = key.removesuffix(LOSS)
            lines += loss_lines(run, stage, key, name, name, color(index))
        if lines:
            charts.append(
                line_chart(
                    f"Stage {stage}", lines, y_name="loss, nats", log=True, note=_legend(lines)
                )
            )
        charts += _retrieval(run, stage)
    return grid(*charts) if charts else None


def _retrieval(run: Run, stage: str) -> list[Markup]:
    """Of a contrastive stage: the share of images whose own text is the nearest in the batch."""
    lines: list[Line] = []
    for index, key in enumerate(run.keys(stage, ending=RETRIEVAL)):
        name = key.removesuffix(RETRIEVAL)
        lines += loss_lines(run, stage, key, name, name, color(index))
    if not lines:
        return []
    title, note = f"Stage {stage}: retrieval", _legend(lines)
    return [line_chart(title, lines, y_name="share, in a batch", zero=True, note=note)]


def loss_lines(run: Run, stage: str, key: str, name: str, legend: str, shade: str) -> list[Line]:
    """The lines of one loss: logged values (faint under their mean if many), then validation."""
    lines = []
    x, y = run.series(stage, key, "train")
    if len(x) >= SMOOTH_FROM:
        lines.append(Line(name, legend, x, y, shade, "raw"))
        lines.append(Line(name, legend, x, smoothed(y), shade, "smooth"))
    elif x:
        lines.append(Line(name, legend, x, y, shade))
    x, y = run.series(stage, key, "validation")
    if x:
        lines.append(Line(f"{name}, validation", legend, x, y, shade, "points"))
    return lines


def _legend(lines: list[Line]) -> str:
    styles = {line.style for line in lines}
    words = ["Solid: training"]
    if "smooth" in styles:
        words[0] += " (running mean over the faint logged values)"
    if "points" in styles:
        words.append("dots: validation")
    return "; ".join(words) + "."


def optimiser(run: Run) -> Markup | None:
    """Gradient norm and learning rate of each stage."""
    charts = []
    for key, title, log in (("grad_norm", "Gradient norm", True), ("lr", "Learning rate", False)):
        lines = []
        for index, stage in enumerate(run.stages):
            x, y = run.series(stage, key, "train")
            if x:
                lines.append(Line(stage, stage, x, y, color(index)))
        if lines:
            charts.append(line_chart(title, lines, log=log, zero=not log))
    return grid(*charts) if charts else None


def layers(run: Run, stage: str, beginning: str) -> list[tuple[int, str]]:
    """(layer, metric) of the gates whose metrics begin so, in order of depth."""
    found = []
    for key in run.keys(stage, beginning=beginning):
        number = key.removeprefix(beginning)
        if number.isdecimal():
            found.append((int(number), key))
    return sorted(found)


def gates(run: Run) -> Markup | None:
    """|tanh| of the gates by layer over time, one chart a kind."""
    charts = []
    for stage in run.stages:
        for beginning, title in GATES:
            found = layers(run, stage, beginning)
            lines = []
            for index, (layer, key) in enumerate(found):
                x, y = run.series(stage, key, "train")
                if not x:
                    x, y = run.series(stage, key, "validation")
                few = len(found) <= LAYERS_NAMED
                name = f"layer {layer}"
                shade = depth_color(index, len(found))
                values = [abs(v) for v in y]
                lines.append(Line(name, name if few else "all layers", x, values, shade))
            if lines:
                note = "" if len(found) <= LAYERS_NAMED else "From blue (first) to orange (last)."
                charts.append(line_chart(title, lines, y_name="|tanh gate|", zero=True, note=note))
    return grid(*charts) if charts else None


def benchmarks(run: Run) -> list[Markup]:
    """A chart for each benchmark and figure asked for in the middle of training, a line for shots.

    Their metrics are NAME/FIGURE/SHOTS (flamingo_jax/periodic.py).
    """
    found: dict[str, list[Line]] = collections.defaultdict(list)
    for stage in run.stages:
        for key in run.keys(stage):
            x, y = run.series(stage, key, "evaluation")
            if x:
                title, _, shots = key.rpartition("/")
                count, _, how = shots.partition("_")
                name = f"{count} shots{how and f' ({how})'}"
                lines = found[title]
                lines.append(Line(name, name, x, y, color(len(lines)), "marked"))
    return [
        line_chart(f"{title.replace('/', ': ')}, while training", lines, zero=True)
        for title, lines in found.items()
    ]


def sight(run: Run) -> Markup | None:
    """What a shuffled picture costs beside the right one, with the alarm's threshold."""
    charts = []
    for stage in run.stages:
        lines = []
        for index, key in enumerate(run.keys(stage, ending=SIGHT)):
            name = key.removesuffix(SIGHT)
            x, y = run.series(stage, key, "validation")
            lines.append(Line(name, name, x, y, color(index), "marked"))
        if lines:
            guides = alarm_guides(run)
            charts.append(
                line_chart(
                    "Shuffled minus right picture",
                    lines,
                    y_name="nats a token",
                    guides=guides,
                    zero=True,
                )
            )
    return grid(*charts) if charts else None


def alarm_guides(run: Run) -> list[Guide]:
    """The alarm's threshold and the step it watches from; none where it is off."""
    step, nats = run.field("alarm", "step"), run.field("alarm", "nats")
    if not step or nats is None:
        return []
    return [
        Guide(nats, f"alarm below {nats:g}"),
        Guide(float(step), f"from step {step:,}", axis="x"),
    ]


def measured(task: Task) -> list[Markup]:
    """The task's own curves, such as accuracy by number of shots."""
    return [measured_chart(curve, [("", curve, None)]) for curve in task.curves]


def measured_chart(curve: Curve, versions: list[tuple[str, Curve, str | None]]) -> Markup:
    """One measured curve: of one run, or of several over each other.

    Args:
      curve: whose title and axes are used.
      versions: (run's name, its curve, its colour); without a colour each series has its own.
        A series named as a control is dashed.
    """
    lines = []
    for run_name, version, shade in versions:
        for index, (name, y) in enumerate(version.series):
            length = min(len(version.x), len(y))
            full = f"{run_name}: {name}" if run_name else name
            style = "dashed" if CONTROL.search(name) else "marked"
            legend = run_name or name
            lines.append(
                Line(full, legend, version.x[:length], y[:length], shade or color(index), style)
            )
    steps = sorted({x for _, version, _ in versions for x in version.x})
    marks = steps if len(steps) <= 8 else None
    return line_chart(
        curve.title, lines, x_name=curve.x_name, y_name=curve.y_name, zero=True, x_ticks=marks
    )


def speed(run: Run) -> Markup | None:
    """Rates and resident memory over the minutes of training."""
    charts = []
    for key, title, unit in (
        ("tokens_per_second", "Tokens a second", "tokens/s"),
        ("images_per_second", "Images a second", "images/s"),
        ("rss_gb", "Resident memory", "GB"),
    ):
        lines = _over_time(run, key, lambda value: value > 0)
        if lines:
            charts.append(line_chart(title, lines, x_name="minutes", y_name=unit, zero=True))
    return grid(*charts) if charts else None


def _over_time(run: Run, key: str, keep: Callable[[float], bool]) -> list[Line]:
    """A line a stage over the minutes spent training, breaks between calls not counted."""
    minutes = 0.0
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in run.speed:
        seconds, value = row.get("seconds"), row.get(key)
        minutes += seconds / 60 if isinstance(seconds, int | float) else 0.0
        if isinstance(value, int | float) and keep(value):
            x, y = points.setdefault(str(row.get("stage")), ([], []))
            x.append(minutes)
            y.append(float(value))
    order = [*run.stages, *(stage for stage in points if stage not in run.stages)]
    return [
        Line(stage, stage, *points[stage], color(index))
        for index, stage in enumerate(order)
        if stage in points
    ]
