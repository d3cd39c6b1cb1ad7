"""Numbers as people read them: counts, durations, shares, and values with their unit."""

from __future__ import annotations

import datetime
import math

NOTHING = "\u2013"
"""What stands where there is no value (an en dash)."""


def count(number: float | None) -> str:
    """A count: 1,234 as it is, 2270000 as 2.27M, 80000000000 as 80.0B."""
    if number is None or not math.isfinite(number):
        return NOTHING
    if abs(number) < 10_000:
        return f"{number:,.0f}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:#.3g}".rstrip(".") + letter
    return f"{number:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A measured value with `digits` significant digits, without an exponent where it can be."""
    if value is None or not math.isfinite(value):
        return NOTHING if value is None or math.isnan(value) else str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= digits - 1:
        return f"{value:,.0f}"
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits - 1 - magnitude}f}"


def tick(value: float) -> str:
    """An axis label: as short as it can be without losing anything."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return count(value).replace(".00", "").replace(".0", "")
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def with_unit(value: float | None, unit: str) -> str:
    """A check's value: 93.1% for "%", 1.40 for nats, three digits otherwise."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if unit == "%":
        return f"{value:.1f}%"
    if unit.startswith("nat"):
        return f"{value:.2f}"
    return number(value)


def duration(seconds: float | None) -> str:
    """Seconds as 0.4 s, 51 s, 11 min 12 s, 4 h 03 min or 9 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def moment(unix: float | None) -> str:
    """A unix time as 2026-11-21 14:03 UTC, the same on every machine."""
    if unix is None or not math.isfinite(unix):
        return NOTHING
    try:
        when = datetime.datetime.fromtimestamp(unix, tz=datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return NOTHING
    return when.strftime("%Y-%m-%d %H:%M UTC")


def gigabytes(value: float | None) -> str:
    """Memory in GB, one digit after the point."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.1f} GB"


def plural(number_of: int, one: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number_of:,} {one if number_of == 1 else one + 's'}"
