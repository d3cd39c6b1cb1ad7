"""Histograms as HTML and inline SVG, in the form of the charts of charts.py; no script."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flamingo_jax.report import charts, wording
from flamingo_jax.report.charts import SIDE, color
from flamingo_jax.report.markup import Markup, tag

MOST_BINS = 32
FEWEST = 6  # so that one value alone is a bar, not a wall
TAIL = 0.98  # where values reach far beyond this quantile, the last bin takes all behind it
FAR = 2.0  # times that quantile


@dataclasses.dataclass(frozen=True)
class Bins:
    """Bins of one width for one or more series of integers.

    Attributes:
      first: the lowest value of the first bin.
      step: values in a bin.
      counts: {name: how many values of the series lie in each bin}; they add up to all values.
      open: does the last bin hold whatever is larger, too?
    """

    first: int
    step: int
    counts: dict[str, list[int]]
    open: bool

    @property
    def number(self) -> int:
        """How many bins there are."""
        return len(next(iter(self.counts.values())))

    def name(self, place: int) -> str:
        """A bin's values as text: "3", "20–29", "200 or more"."""
        low = self.first + place * self.step
        if self.open and place == self.number - 1:
            return f"{low:,} or more"
        return f"{low:,}" if self.step == 1 else f"{low:,}–{low + self.step - 1:,}"


def binned(series: Mapping[str, Sequence[int]]) -> Bins:
    """Bins of a round width for values that are not negative; there is at least one value."""
    ordered = sorted(value for values in series.values() for value in values)
    low, high = ordered[0], ordered[-1]
    far = ordered[min(int(TAIL * len(ordered)), len(ordered) - 1)]
    cut = far + 1 if high > FAR * max(far, 1) and high - low > MOST_BINS else high
    power = 10 ** math.floor(math.log10(max((cut - low) / MOST_BINS, 1)))
    step = next(
        power * m
        for m in (1, 2, 5, 10, 20)
        if (cut // (power * m) - low // (power * m)) < MOST_BINS
    )
    first = low // step * step
    if (cut - first) // step + 1 < FEWEST:
        first = max(first - 2 * step, 0)
    number = max((cut - first) // step + 1, FEWEST)
    counts = {name: [0] * number for name in series}
    for name, values in series.items():
        for value in values:
            counts[name][min((value - first) // step, number - 1)] += 1
    return Bins(first, step, counts, open=high >= first + number * step)


def histogram(
    title: str,
    series: Mapping[str, Sequence[int]],
    *,
    x_name: str,
    y_name: str = "documents",
    guide: tuple[float, str] | None = None,
    note: str = "",
) -> Markup:
    """How often values occur; bars of several series stand beside each other.

    Args:
      title: its heading.
      series: {name: its values}, integers from 0 on.
      x_name: what the values are.
      y_name: what is counted.
      guide: a vertical line at a value, and its label.
      note: a line under the chart.
    """
    head = tag("figcaption", tag("b", title), tag("span", y_name, class_="unit"))
    series = {name: values for name, values in series.items() if values}
    if not series:
        return tag("figure", head, tag("p", "No values.", class_="left-out"), class_="chart")
    bins = binned(series)
    body = tag("div", _plot(bins, guide), class_="plots guided" if guide else "plots")
    return tag(
        "figure",
        head,
        _key(list(series)),
        body,
        tag("p", x_name, class_="x-name"),
        tag("p", note, class_="note") if note else None,
        class_="chart histogram",
    )


def _key(names: list[str]) -> Markup | None:
    if len(names) < 2:
        return None
    marks = [
        tag("span", tag("i", class_="swatch", style=f"background:{color(index)}"), name)
        for index, name in enumerate(names)
    ]
    return tag("p", marks, class_="note histogram-key")


def _plot(bins: Bins, guide: tuple[float, str] | None) -> Markup:
    tallest = max(count for counts in bins.counts.values() for count in counts)
    top = tallest * 1.05
    right = bins.first + bins.number * bins.step
    height = [y for y in charts.ticks(0, top) if y == int(y)]
    drawn, labels = [], []
    for y in height:
        down = 1 - y / top
        drawn.append(tag("path", d=f"M0 {down * SIDE:.1f}H{SIDE}", class_="grid"))
        labels.append(tag("span", wording.tick(y), class_="y", style=f"top:{down:.2%}"))
    drawn += _bars(bins, top)

    def across(value: float) -> float:
        return (value - bins.first) / (right - bins.first)

    # A bin of one value is labelled in its middle, a wider one where it begins.
    shift = 0.5 if bins.step == 1 else 0.0
    end = right - 1 if bins.step == 1 else right
    found = charts.ticks(bins.first, end, 6) if end > bins.first else [bins.first]
    for x in found:
        if x == int(x):
            style = f"left:{across(x + shift):.2%}"
            labels.append(tag("span", wording.tick(x), class_="x", style=style))
    if guide is not None and bins.first <= guide[0] <= right:
        place = across(guide[0] + shift)
        drawn.append(tag("path", d=f"M{place * SIDE:.1f} 0V{SIDE}", class_="guide"))
        labels.append(tag("span", guide[1], class_="guide-x", style=f"left:{place:.2%}"))
    svg = tag(
        "svg",
        drawn,
        viewBox=f"0 0 {SIDE} {SIDE}",
        preserveAspectRatio="none",
        role="img",
        aria_label=", ".join(bins.counts),
    )
    return tag("div", svg, labels, class_="plot")


def _bars(bins: Bins, top: float) -> list[Markup]:
    wide = SIDE / bins.number
    each = wide * 0.88 / len(bins.counts)
    bars = []
    for index, (name, counts) in enumerate(bins.counts.items()):
        for place, count in enumerate(counts):
            if not count:
                continue
            told = f"{bins.name(place)}: {count:,}"
            bars.append(
                tag(
                    "rect",
                    tag("title", told if len(bins.counts) == 1 else f"{name} {told}"),
                    x=f"{place * wide + wide * 0.06 + index * each:.1f}",
                    y=f"{(1 - count / top) * SIDE:.1f}",
                    width=f"{each:.1f}",
                    height=f"{count / top * SIDE:.1f}",
                    style=f"fill:{color(index)}",
                    data_count=count,
                )
            )
    return bars
