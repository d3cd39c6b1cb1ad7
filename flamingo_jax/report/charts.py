"""Charts as HTML and inline SVG: drawn here, once for each scale; the script only shows and hides.

The SVG is stretched over its box (`preserveAspectRatio="none"`, strokes do not scale) and all text
is HTML placed over it in percent, so that letters keep their size on every screen.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from flamingo_jax.report import wording
from flamingo_jax.report.markup import Markup, data, join, tag

SIDE = 1000  # of the SVG's own coordinates
POINTS = 400  # a line of more is thinned
PALETTE = 8  # colours of the style sheet: --c0 … --c7
DEPTH = ((0x4C, 0x78, 0xD8), (0x1F, 0xA1, 0x87), (0xE0, 0x86, 0x2B))  # first to last layer


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: what the tooltip calls it.
      legend: the legend's entry that shows and hides it; lines may share one.
      x, y: the points; a y that is not finite breaks the line.
      color: a CSS colour.
      style: solid | dashed | marked (solid with a dot at every point) | points (dashed with dots) |
        faint (thin, with small dots) | faint-dashed | raw (faint, under its smooth line) | smooth
        (drawn, but told by no tooltip: it is no measured value).
      low, high: the ends of each point's error bar; () = none, and none of more than `POINTS`.
    """

    name: str
    legend: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    style: str = "solid"
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Guide:
    """A horizontal (`axis` "y") or vertical ("x") line with a label."""

    value: float
    text: str
    axis: str = "y"


def color(index: int) -> str:
    """The palette's colour of an index, over and over."""
    return f"var(--c{index % PALETTE})"


def depth_color(index: int, of: int) -> str:
    """A colour for layer `index` of `of`, blue at the input to orange at the output."""
    place = index / max(of - 1, 1) * (len(DEPTH) - 1)
    low = min(int(place), len(DEPTH) - 2)
    mixed = (
        round(a + (b - a) * (place - low)) for a, b in zip(DEPTH[low], DEPTH[low + 1], strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str = "step",
    y_name: str = "",
    guides: Sequence[Guide] = (),
    zero: bool = False,
    log: bool = False,
    x_ticks: Sequence[float] | None = None,
    note: str = "",
) -> Markup:
    """A chart with hover, a legend that hides lines, and (`log`) a choice of scale.

    Args:
      title: its heading.
      lines: what is drawn; lines without a finite point are dropped.
      x_name: what the horizontal axis counts; also in the tooltip.
      y_name: what the vertical axis measures.
      guides: thresholds.
      zero: whether the vertical axis must include 0.
      log: whether a logarithmic scale is offered beside the linear one.
      x_ticks: where to label the horizontal axis; by default at round numbers.
      note: a line under the chart.

    Returns:
      A `figure`; one that says so when there is no finite point.
    """
    lines = [thin(line) for line in lines if any(map(math.isfinite, line.y))]
    head = tag("figcaption", tag("b", title), tag("span", y_name, class_="unit"))
    if not lines:
        return tag("figure", head, tag("p", "No values yet.", class_="left-out"), class_="chart")
    xs = [x for line in lines for x in line.x]
    drawn = (y for line in lines for y in (*line.y, *line.low, *line.high))
    ys = [y for y in drawn if math.isfinite(y)]
    ys += [guide.value for guide in guides if guide.axis == "y"]
    x_range = _widened(min(xs), max(xs), 0.0)
    linear = _widened(min([*ys, 0.0] if zero else ys), max([*ys, 0.0] if zero else ys), 0.05)
    positive = [y for y in ys if y > 0]
    scales = {"linear": linear}
    if log and positive and max(positive) > min(positive):
        scales["log"] = _widened(math.log10(min(positive)), math.log10(max(positive)), 0.05)
    plots = [
        _plot(scale, x_range, limits, lines, guides, x_ticks) for scale, limits in scales.items()
    ]
    if "log" in scales:
        button = tag("button", "log", type="button", aria_pressed="false", class_="scale-button")
        head = tag("figcaption", tag("b", title), tag("span", y_name, class_="unit"), button)
    room_for_label = any(guide.axis == "x" for guide in guides)
    facts = {"x": x_range, "scales": scales, "xName": x_name, "lines": _values(lines)}
    return tag(
        "figure",
        head,
        _legend(lines),
        tag(
            "div",
            plots,
            tag("div", class_="cursor", hidden=True),
            class_="plots guided" if room_for_label else "plots",
        ),
        tag("p", x_name, class_="x-name"),
        tag("p", note, class_="note") if note else None,
        data(facts, class_="chart-data"),
        class_="chart",
    )


def _values(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """What the tooltips tell: the values as they were logged."""
    return [
        {
            "name": line.name,
            "legend": line.legend,
            "color": line.color,
            "x": [_short(x) for x in line.x],
            "y": [_short(y) if math.isfinite(y) else None for y in line.y],
        }
        for line in lines
        if line.style != "smooth"
    ]


def smoothed(y: Sequence[float]) -> list[float]:
    """Running mean over about a twentieth of the values (fewer at the ends), nan left out."""
    finite = [math.isfinite(v) for v in y]
    sums = [0.0, *itertools.accumulate(v if ok else 0.0 for v, ok in zip(y, finite, strict=True))]
    counts = [0, *itertools.accumulate(map(int, finite))]
    means = []
    for index in range(len(y)):
        reach = min(len(y) // 40, index, len(y) - 1 - index)
        low, high = index - reach, index + reach + 1
        count = counts[high] - counts[low]
        means.append((sums[high] - sums[low]) / count if count else math.nan)
    return means


def thin(line: Line) -> Line:
    """About `POINTS` points: of each stretch the lowest, the highest, and one that is not finite.

    So neither a spike nor a gap is lost.
    """
    if len(line.x) <= POINTS:
        return line
    keep: set[int] = {0, len(line.x) - 1}
    stretches = POINTS // 2 - 1
    for number in range(stretches):
        start = len(line.x) * number // stretches
        stretch = range(start, len(line.x) * (number + 1) // stretches)
        finite = [i for i in stretch if math.isfinite(line.y[i])]
        if finite:
            keep |= {min(finite, key=line.y.__getitem__), max(finite, key=line.y.__getitem__)}
        if len(finite) < len(stretch):
            keep.add(next(i for i in stretch if not math.isfinite(line.y[i])))
    order = sorted(keep)
    x, y = [line.x[i] for i in order], [line.y[i] for i in order]
    return dataclasses.replace(line, x=x, y=y, low=(), high=())


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Labels of a logarithmic axis from 10^low to 10^high: decades, or 1, 2 and 5 of each."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1,), (1, 2, 5)):
        found = [
            10.0**d * m for d in decades for m in steps if low <= math.log10(10.0**d * m) <= high
        ]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return [value for value in ticks(10**low, 10**high, 4) if value > 0]


def bar(
    value: float | None,
    control: float | None,
    chance: float | None,
    top: float,
    whisker: tuple[float, float] | None = None,
) -> Markup:
    """A small bar from 0 to `top`: the value filled, control, chance and range as marks upon it."""
    known = [v for v in (value, control, chance) if v is not None and math.isfinite(v)]
    low, high = min([0.0, *known]), max([top, *known])
    span = (high - low) or 1.0
    parts = []
    if value is not None and math.isfinite(value):
        left, right = sorted(((0.0 - low) / span, (value - low) / span))
        style = f"left:{left:.2%};width:{right - left:.2%}"
        parts.append(tag("i", class_="fill", style=style))
    if whisker and whisker[1] > whisker[0]:
        left, right = ((end - low) / span for end in whisker)
        style = f"left:{left:.2%};width:{right - left:.2%}"
        parts.append(tag("i", class_="whisker", style=style))
    for name, mark in (("control", control), ("chance", chance)):
        if mark is not None and math.isfinite(mark):
            parts.append(tag("i", class_=name, style=f"left:{(mark - low) / span:.2%}"))
    return tag("span", parts, class_="bar", aria_hidden="true")


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range with a margin on both sides, never empty; one that starts at 0 keeps its 0."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * share
    return (low - margin if low else low), high + margin


def _short(value: float) -> float:
    """Five significant digits are enough to be read."""
    return float(f"{value:.5g}") if value != int(value) else int(value)


def _legend(lines: Sequence[Line]) -> Markup | None:
    entries = dict.fromkeys(line.legend for line in lines)
    buttons = [
        tag(
            "button",
            tag("i", style=f"background:{next(n.color for n in lines if n.legend == entry)}"),
            entry,
            type="button",
            aria_pressed="true",
            data_legend=entry,
        )
        for entry in entries
        if len(entries) > 1
    ]
    return tag("div", buttons, class_="legend") if buttons else None


def _plot(
    scale: str,
    x_range: tuple[float, float],
    limits: tuple[float, float],
    lines: Sequence[Line],
    guides: Sequence[Guide],
    x_ticks: Sequence[float] | None,
) -> Markup:
    """The grid, lines and labels of one scale."""

    def across(x: float) -> float:
        return (x - x_range[0]) / (x_range[1] - x_range[0])

    def down(y: float) -> float:
        if scale == "log":
            y = math.log10(y) if y > 0 else math.nan
        return 1 - (y - limits[0]) / (limits[1] - limits[0])

    horizontal = log_ticks(*limits) if scale == "log" else ticks(*limits)
    vertical = ticks(*x_range) if x_ticks is None else list(x_ticks)
    labels = [
        tag("span", wording.tick(y), class_="y", style=f"top:{down(y):.2%}") for y in horizontal
    ]
    labels += [
        tag("span", wording.tick(x), class_="x", style=f"left:{across(x):.2%}") for x in vertical
    ]
    drawn = [
        tag("path", d=f"M0 {down(y) * SIDE:.1f}H{SIDE}", class_="grid" if y else "grid zero")
        for y in horizontal
    ]
    for guide in guides:
        place = down(guide.value) if guide.axis == "y" else across(guide.value)
        if not 0 <= place <= 1:
            continue
        way = (
            f"M0 {place * SIDE:.1f}H{SIDE}"
            if guide.axis == "y"
            else f"M{place * SIDE:.1f} 0V{SIDE}"
        )
        drawn.append(tag("path", d=way, class_="guide"))
        style = f"top:{place:.2%}" if guide.axis == "y" else f"left:{place:.2%}"
        labels.append(tag("span", guide.text, class_=f"guide-{guide.axis}", style=style))
    for line in lines:
        places = [(across(x), down(y)) for x, y in zip(line.x, line.y, strict=True)]
        drawn += _paths(line, places)
        bars = "".join(
            f"M{across(x) * SIDE:.1f} {down(low) * SIDE:.1f}V{down(high) * SIDE:.1f}"
            for x, low, high in zip(line.x, line.low, line.high, strict=bool(line.low))
            if math.isfinite(down(low) - down(high))
        )
        if bars:
            style = f"stroke:{line.color}"
            drawn.append(tag("path", d=bars, class_="error", style=style, data_legend=line.legend))
    svg = tag(
        "svg",
        drawn,
        viewBox=f"0 0 {SIDE} {SIDE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=", ".join(dict.fromkeys(line.name for line in lines)),
    )
    return tag("div", svg, labels, class_="plot", data_scale=scale, hidden=scale == "log")


def _paths(line: Line, places: Sequence[tuple[float, float]]) -> list[Markup]:
    """The line itself and, for points, a dot at each (a stroke of no length with round ends)."""
    way, dots, pen_down = [], [], False
    for x, y in places:
        if not math.isfinite(y):
            pen_down = False
            continue
        point = f"{x * SIDE:.1f} {y * SIDE:.1f}"
        way.append(("L" if pen_down else "M") + point)
        dots.append(f"M{point}h0")
        pen_down = True
    if len(dots) == 1:
        way = dots
    style = f"stroke:{line.color}"
    paths = [tag("path", d="".join(way), class_=line.style, style=style, data_legend=line.legend)]
    if line.style in ("marked", "points", "faint", "faint-dashed"):
        size = "dots small" if line.style.startswith("faint") else "dots"
        paths.append(
            tag("path", d="".join(dots), class_=size, style=style, data_legend=line.legend)
        )
    return paths


def grid(*charts: Markup | None) -> Markup:
    """Charts beside each other, as many in a row as the screen is wide."""
    return tag("div", join(*charts), class_="charts")
