"""Checks in rows: runs that differ only in their seed are one column, its mean and its spread."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Sequence

from flamingo_jax.errors import InputError
from flamingo_jax.report import reading, wording
from flamingo_jax.report.reading import Check, Run

DASH = "\u2013"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of the same config, each with its seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> str:
        """The seeds as text: "0, 1, 2"."""
        return ", ".join(wording.NOTHING if r.seed is None else str(r.seed) for r in self.runs)

    @property
    def what(self) -> str:
        """What a mean of this group is of: "3 seeds", or "2 runs" where a seed occurs twice."""
        different = len({run.seed for run in self.runs}) == len(self.runs)
        return wording.plural(len(self.runs), "seed" if different else "run")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean, least and greatest of a figure, and of how many runs."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, unit: str, of: int | None = None) -> str:
        """The mean with its range, `85.2% (83.1 to 87.0)` with a dash; one value alone as it is.

        Where only some of the `of` runs have the figure, that is told.
        """
        if self.count == 0:
            return wording.NOTHING
        told = wording.with_unit(self.mean, unit)
        if self.count > 1:
            low, high = (wording.with_unit(v, unit) for v in (self.low, self.high))
            told += f" ({low.removesuffix('%')}{DASH}{high.removesuffix('%')})"
        return told if of in (None, self.count) else f"{told} [{self.count} of {of} runs]"


@dataclasses.dataclass(frozen=True)
class Row:
    """One check over all groups: for each group, the check of each of its runs (None = absent)."""

    first: Check
    checks: tuple[tuple[Check | None, ...], ...]

    def spread(self, group: int, field: str) -> Spread:
        """Of a field (value, control, chance) over the runs of a group."""
        return spread([getattr(c, field) for c in self.checks[group] if c is not None])

    @property
    def n(self) -> str:
        """How many questions a run's figure stands on: "150", or "148-150" with an en dash."""
        known = [c.n for group in self.checks for c in group if c is not None and c.n is not None]
        if not known:
            return wording.NOTHING
        low, high = min(known), max(known)
        return f"{low:,}" if low == high else f"{low:,}{DASH}{high:,}"


def spread(values: Sequence[float | None]) -> Spread:
    """The mean and range of the finite values."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Spread(math.nan, math.nan, math.nan, 0)
    return Spread(statistics.fmean(known), min(known), max(known), len(known))


def read_all(workdirs: Sequence[str | pathlib.Path]) -> list[Run]:
    """Reads several runs.

    Raises:
      InputError: if there is none, one is given twice, or one holds no run.
    """
    if not workdirs:
        raise InputError("no workdir is given; give one or more folders of runs")
    seen: set[pathlib.Path] = set()
    for workdir in workdirs:
        place = pathlib.Path(workdir).resolve()
        if place in seen:
            raise InputError(f"the workdir {str(workdir)!r} is given twice; give each run once")
        seen.add(place)
    return [reading.read(workdir) for workdir in workdirs]


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: as much of the end of its path as tells it from the others."""
    parts = [run.workdir.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run.workdir) for run in runs]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by their config without the seed; a run without a config stands alone."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        same = {key: value for key, value in run.config.items() if key != "seed"}
        identity = json.dumps(same, sort_keys=True) if same else str(run.workdir.resolve())
        members.setdefault(identity, []).append(run)
    firsts = [group[0] for group in members.values()]
    names = [run.name for run in firsts]
    if len(set(names)) < len(names):
        names = labels(firsts)
    return [Group(n, tuple(g)) for n, g in zip(names, members.values(), strict=True)]


def rows(groups: Sequence[Group]) -> list[Row]:
    """Every check of any run, in order of first appearance."""
    firsts: dict[tuple[str, str], Check] = {}
    tables: dict[str, dict[tuple[str, str], Check]] = {}
    for group in groups:
        for run in group.runs:
            own = {(check.task, check.key): check for check in run.checks}
            tables[str(run.workdir)] = own
            for place, check in own.items():
                firsts.setdefault(place, check)
    return [
        Row(first, tuple(tuple(tables[str(r.workdir)].get(place) for r in g.runs) for g in groups))
        for place, first in firsts.items()
    ]


def table(workdirs: Sequence[str | pathlib.Path], markdown: bool = False) -> str:
    """The checks of one or more runs as plain text, or as Markdown for a README.

    Columns: check, n, value, control, chance. Runs that differ only in their seed share the
    columns as mean (min-max); other runs get value and control columns of their own.

    Raises:
      InputError: if a workdir holds no run, or one is given twice.
    """
    groups = grouped(read_all(workdirs))
    found = rows(groups)
    if not found:
        told = ", ".join(repr(str(workdir)) for workdir in workdirs)
        return f"No checks yet: there is no results.json with checks in {told}.\n"
    head, body = cells(groups, found)
    return _markdown(head, body) if markdown else plain(head, body)


def cells(groups: Sequence[Group], found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of checks, as text."""
    head = ["check", "n"]
    for group in groups:
        prefix = f"{group.name}: " if len(groups) > 1 else ""
        mean = f", mean of {group.what} (min{DASH}max)" if len(group.runs) > 1 else ""
        head += [f"{prefix}value{mean}", f"{prefix}control"]
    head.append("chance")
    titles = [row.first.title for row in found]
    body = []
    for row in found:
        first = row.first
        title = first.title if titles.count(first.title) == 1 else f"{first.title} ({first.task})"
        if first.unit and first.unit != "%":
            title += f" [{first.unit}]"
        line = [title, row.n]
        for index, group in enumerate(groups):
            line.append(row.spread(index, "value").text(first.unit, len(group.runs)))
            control = row.spread(index, "control")
            name = f" {first.control_name}" if control.count and first.control_name else ""
            line.append(control.text(first.unit) + name)
        chances = spread([c.chance for group in row.checks for c in group if c is not None])
        # Chance belongs to the question, not the model: one figure, unless the runs differ in it.
        low, high = (wording.with_unit(c, first.unit) for c in (chances.low, chances.high))
        line.append(low if low == high else chances.text(first.unit))
        body.append([printable(cell) for cell in line])
    return head, body


def printable(text: str) -> str:
    """The text without control characters: a terminal obeys those."""
    return "".join(c if c.isprintable() else " " for c in text)


def plain(head: list[str], body: list[list[str]]) -> str:
    """A table of texts as it is printed, the second column to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [head, ["\u2500" * width for width in widths], *body]
    text = []
    for line in lines:
        padded = [line[0].ljust(widths[0]), line[1].rjust(widths[1])]
        padded += [cell.ljust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(padded).rstrip())
    return "\n".join(text) + "\n"


def _markdown(head: list[str], body: list[list[str]]) -> str:
    rule = ["---", "--:", *["---"] * (len(head) - 2)]
    escaped = [[_escaped(cell) for cell in line] for line in (head, *body)]
    lines = [escaped[0], rule, *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
