"""Charts: points land where their values are, gaps and spikes stay, labels are round."""

import math
import re

import pytest

from flamingo_jax.report import charts, wording
from flamingo_jax.report.charts import Line


def points(chart: str, style: str, scale: str = "linear") -> list[tuple[str, float, float]]:
    plot = chart.split(f'data-scale="{scale}"')[1].split("</svg>")[0]
    way = re.search(rf'<path d="([^"]*)" class="{style}"', plot)
    assert way
    found = re.findall(r"([ML])([\d.-]+) ([\d.-]+)", way[1])
    return [(pen, float(x), float(y)) for pen, x, y in found]


def test_a_line_goes_through_its_points():
    chart = charts.line_chart("t", [Line("a", "a", [0, 5, 10], [0.0, 1.0, 4.0], "red")], zero=True)
    first, second, third = points(chart, "solid")
    assert [first[1], second[1], third[1]] == [0, 500, 1000]
    # The range is 0 to 4 and a margin of a twentieth above; y grows downwards.
    assert [p[2] for p in (first, second, third)] == pytest.approx([1000, 761.9, 47.6], abs=0.1)


def test_the_logarithmic_scale_spaces_decades_evenly():
    chart = charts.line_chart("t", [Line("a", "a", [0, 1, 2], [0.1, 1.0, 10.0], "red")], log=True)
    heights = [p[2] for p in points(chart, "solid", "log")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert 'data-scale="log" hidden' in chart


def test_a_value_that_is_not_finite_breaks_the_line():
    line = Line("a", "a", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 1.0, 2.0], "red")
    assert [p[0] for p in points(charts.line_chart("t", [line]), "solid")] == ["M", "L", "M", "L"]


def test_error_bars_stand_at_their_points_and_widen_the_range():
    low, high = [0.0, math.nan, 2.0], [4.0, math.nan, 3.0]
    line = Line("a", "a", [0, 5, 10], [1.0, 2.0, 2.5], "red", "marked", low, high)
    chart = charts.line_chart("t", [line], zero=True)
    [way] = re.findall(r'<path d="([^"]*)" class="error"', chart)
    ends = [tuple(map(float, bar)) for bar in re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", way)]
    # From 0 to 4 and a margin of a twentieth above; the point without an interval has no bar.
    assert ends == [(0, 1000, 47.6), (1000, 523.8, 285.7)]
    many = [float(value) for value in range(900)]
    assert charts.thin(Line("a", "a", many, many, "red", "solid", many, many)).low == ()


def test_thinning_keeps_ends_spikes_and_gaps():
    y = [math.sin(i / 50) for i in range(20_000)]
    y[7_777], y[12_345] = 9.0, math.nan
    thin = charts.thin(Line("a", "a", list(range(20_000)), y, "red"))
    assert len(thin.x) <= charts.POINTS + 2
    assert (thin.x[0], thin.x[-1]) == (0, 19_999)
    assert max(v for v in thin.y if math.isfinite(v)) == 9.0
    assert 12_345 in thin.x
    assert all(math.isnan(v) or v == y[int(x)] for x, v in zip(thin.x, thin.y, strict=True))


def test_the_running_mean_is_a_mean():
    y = [float(i % 2) for i in range(400)]
    smooth = charts.smoothed(y)
    assert len(smooth) == 400 and smooth[0] == y[0] and smooth[-1] == y[-1]
    assert all(abs(v - 0.5) < 0.03 for v in smooth[10:-10])
    y[200] = math.nan
    assert math.isfinite(charts.smoothed(y)[200])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.24, 6.9, [2, 4, 6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 250_000, [0, 50_000, 100_000, 150_000, 200_000, 250_000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_logarithmic_ticks():
    assert charts.log_ticks(-2, 2) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert charts.log_ticks(math.log10(0.6), math.log10(7)) == pytest.approx([1, 2, 5])
    assert len(charts.log_ticks(math.log10(1.01), math.log10(1.4))) >= 2


def test_a_chart_without_values_says_so_and_one_value_is_drawn():
    assert "No values yet." in charts.line_chart("t", [Line("a", "a", [], [], "red")])
    assert "No values yet." in charts.line_chart("t", [Line("a", "a", [1], [math.nan], "red")])
    single = charts.line_chart("t", [Line("a", "a", [3], [2.0], "red")])
    assert re.search(r'd="M500.0 500.0h0" class="solid"', single)


def test_bars_mark_value_control_and_chance():
    bar = charts.bar(50.0, 25.0, 10.0, 100.0)
    assert "left:0.00%;width:50.00%" in bar
    assert re.search(r'class="control" style="left:25.00%"', bar)
    assert re.search(r'class="chance" style="left:10.00%"', bar)
    below = charts.bar(-1.0, None, 0.0, 1.0)
    assert "left:0.00%;width:50.00%" in below and "control" not in below
    assert "fill" not in charts.bar(math.nan, None, None, 1.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.count(9_999), "9,999"), (wording.count(2_270_000), "2.27M"),
        (wording.count(999_999), "1.00M"), (wording.count(80e9), "80.0B"),
        (wording.count(100_000), "100k"), (wording.count(None), "–"),
        (wording.duration(0.44), "0.4 s"), (wording.duration(59.7), "1 min 00 s"),
        (wording.duration(672), "11 min 12 s"), (wording.duration(3599.8), "1 h 00 min"),
        (wording.duration(788_400), "9 d 3 h"), (wording.duration(math.nan), "–"),
        (wording.with_unit(93.06, "%"), "93.1%"), (wording.with_unit(1.4, "nats/token"), "1.40"),
        (wording.with_unit(None, "%"), "–"), (wording.number(1234.5), "1,234"),
        (wording.number(0.012345), "0.0123"), (wording.tick(1e-4), "1e-4"),
        (wording.tick(250_000), "250k"), (wording.tick(0.5), "0.5"),
        (wording.moment(0), "1970-01-01 00:00 UTC"), (wording.moment(1e30), "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(written: str, expected: str):
    assert written == expected
