"""Queries for the page's script: what was asked, shown and answered, and what it was worth.

Each benchmark's data are one JSON object: `items` (what was asked, or shown as a shot), `settings`
with a row for each answer, and, for a classification, which class was taken for which. Rows and
items are lists in the order of `Item` and `Row`, because there are tens of thousands of them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from flamingo_jax.report import reading, wording
from flamingo_jax.report.benchmark_files import Entry, figure_title, lines, selection_title
from flamingo_jax.report.laid import shown

MOST_ROWS = 30_000  # on a page: some 8 MB of text
FEWEST_QUERIES = 50  # of a benchmark, however many there are
MOST_LETTERS = 1_000  # of a text that is shown
MOST_REFERENCES = 8
MOST_CLASSES = 60  # of a table of all classes by all classes
MOST_PAIRS = 40  # of confused classes, where there are more
TOP = 5  # likeliest choices that are shown

Item = list[Any]
"""[key, picture or None, question, context, references, right answer or None]"""
Row = list[Any]
"""[item, answer, score or None, generated text or "", likeliest choices, items of its shots]"""
SCORE = 2
Place = tuple[int, str, int]
"""Shots, selection, trial."""


@dataclasses.dataclass
class Collected:
    """What is gathered of one benchmark.

    Attributes:
      entry: its results.
      folder: of the evaluation.
      asked: {key: what `queries.json` says of it}.
      most: so many queries are kept for the page.
      items, index: what was asked or shown, and where it stands by its key.
      rows: by setting and key.
      confused: {setting: {key: (right class, given class)}}, of all queries.
      answered: the keys that have an answer.
    """

    entry: Entry
    folder: pathlib.Path
    asked: Mapping[str, Any]
    most: int
    items: list[Item] = dataclasses.field(default_factory=list)
    index: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: dict[Place, dict[str, Row]] = dataclasses.field(default_factory=dict)
    confused: dict[Place, dict[str, tuple[str, str]]] = dataclasses.field(default_factory=dict)
    answered: set[str] = dataclasses.field(default_factory=set)


def collect(
    folder: pathlib.Path, entries: Iterable[Entry], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """The data of each benchmark that has answers, {} without any; faults become `problems`.

    Args:
      folder: of the evaluation.
      entries: its benchmarks.
      problems: gets a line for each file that could not be read as a whole.
    """
    entries = list(entries)
    asked = reading.json_object(folder / "queries.json", problems)
    share = MOST_ROWS // max(len(entries), 1)
    found: dict[str, Collected] = {}
    for entry in entries:
        settings = sum(setting.trials for setting in entry.settings)
        most = max(share // max(settings, 1), FEWEST_QUERIES)
        known = asked.get(entry.name)
        of = Collected(entry, folder, known if isinstance(known, dict) else {}, most)
        for key in list(of.asked)[:most]:
            _item(of, key)
        found[entry.name] = of
    for of, place, key, line in _known(folder, "predictions*.jsonl", found, problems):
        _take(of, place, key, line)
    for of, place, key, line in _known(folder, "scores.jsonl", found, problems):
        row, figures = of.rows.get(place, {}).get(key), line.get("figures")
        if row is not None and isinstance(figures, dict):
            value = figures.get(of.entry.metric, next(iter(figures.values()), None))
            row[SCORE] = value if _is_finite(value) else None
    return {name: _data(of) for name, of in found.items() if of.rows}


def _is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value can stand in the page's data: a model may give a choice -Infinity."""
    return reading.is_number(value) and math.isfinite(value)


def _known(
    folder: pathlib.Path, pattern: str, found: Mapping[str, Collected], problems: list[str]
) -> Iterator[tuple[Collected, Place, str, dict[str, Any]]]:
    """The lines that are of a benchmark and setting here, and whose; others are counted."""
    strange = 0
    for line in lines(folder, pattern, problems):
        try:
            place = int(line["shots"]), str(line["selection"]), int(line["trial"])
            of, key = found[line["benchmark"]], str(line["key"])
        except (KeyError, TypeError, ValueError):
            strange += 1
        else:
            yield of, place, key, line
    if strange:
        told = wording.plural(strange, "line")
        problems.append(f"{pattern}: {told} of no benchmark and setting of results.json left out.")


def _take(of: Collected, place: Place, key: str, line: Mapping[str, Any]) -> None:
    """Keeps an answer for the page, if its query is; counts it, if there are classes."""
    answer, asked = str(line.get("answer", "")), _asked(of, key)
    of.answered.add(key)
    right = asked.get("label") or asked.get("right")
    if of.entry.classes and right:
        of.confused.setdefault(place, {})[key] = (str(right), answer)
    if key not in of.index:
        if of.asked or len(of.index) >= of.most:
            return
        _item(of, key)  # without queries.json: the first ones that were answered
    text, shots = str(line.get("text") or ""), line.get("shown")
    of.rows.setdefault(place, {})[key] = [
        of.index[key],
        shown(answer, MOST_LETTERS),
        None,  # its score comes from another file
        "" if text.strip() == answer.strip() else shown(text, MOST_LETTERS),
        _likeliest(line.get("scores"), asked.get("choices") or of.entry.classes),
        [str(shot) for shot in shots] if isinstance(shots, list) else [],
    ]


def _asked(of: Collected, key: str) -> Mapping[str, Any]:
    asked = of.asked.get(key)
    return asked if isinstance(asked, dict) else {}


def _item(of: Collected, key: str) -> int:
    """The place of what was asked or shown, made if need be."""
    if key not in of.index:
        asked = _asked(of, key)
        right = asked.get("right") or asked.get("label")
        of.index[key] = len(of.items)
        of.items.append([
            shown(key, 200),
            picture(of.folder, asked.get("picture")),
            *(shown(str(asked.get(part) or ""), MOST_LETTERS) for part in ("question", "context")),
            references(asked.get("references") or ()),
            shown(str(right), MOST_LETTERS) if right else None,
        ])  # fmt: skip
    return of.index[key]


def picture(folder: pathlib.Path, name: Any) -> str | None:
    """Where the page finds a picture of the evaluation; None if it is absent or elsewhere."""
    if not isinstance(name, str) or not name:
        return None
    path = folder / name
    try:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            return None
    except (OSError, ValueError):
        return None
    relative = pathlib.PurePath(os.path.relpath(path, folder / "report"))
    return urllib.parse.quote(relative.as_posix())


def references(given: Iterable[Any]) -> list[str]:
    """References, each once, with how often people gave it; the most common ones first."""
    counts = collections.Counter(str(one).strip() for one in given)
    told = [
        shown(one, MOST_LETTERS) + (f" ×{count}" if count > 1 else "")
        for one, count in counts.most_common(MOST_REFERENCES)
        if one
    ]
    more = len(counts) - MOST_REFERENCES
    return [*told, f"and {more} more"] if more > 0 else told


def _likeliest(scores: Any, names: Any) -> list[list[Any]]:
    """[name, log-likelihood in nats] of the likeliest choices; [] where their names are unknown."""
    if not isinstance(scores, list) or len(scores) != len(names):
        return []
    known = [(float(s), str(n)) for s, n in zip(scores, names, strict=True) if _is_finite(s)]
    best = sorted(known, key=lambda pair: -pair[0])[:TOP]
    return [[shown(name, 200), round(score, 2)] for score, name in best]


def _data(of: Collected) -> dict[str, Any]:
    """A benchmark's data as the script reads them."""
    settings = []
    known = {(s.shots, s.selection): s for s in of.entry.settings}
    order = {setting: place for place, setting in enumerate(known)}
    places = sorted({*of.rows, *of.confused}, key=lambda p: (order.get(p[:2], len(order)), p))
    for place in places:
        shots, selection, trial = place
        name = f"{wording.plural(shots, 'shot')}, {selection_title(selection)}"
        if (shots, selection) in known and known[shots, selection].trials > 1:
            name += f", trial {trial}"
        rows = sorted(of.rows.get(place, {}).values(), key=lambda row: row[0])
        # Items of shots come after the queries', so that the queries' order is that of the file.
        shots_of = [[*row[:5], [_item(of, key) for key in row[5]]] for row in rows]
        settings.append({"name": name, "rows": shots_of, **_confusion(of, place)})
    return {
        "figure": figure_title(of.entry.metric),
        "items": of.items,
        "settings": settings,
        "answered": len(of.answered),
        "kept": len({row[0] for rows in of.rows.values() for row in rows.values()}),
    }


def _confusion(of: Collected, place: Place) -> dict[str, Any]:
    """Which class was taken for which: all of them, or the most confused pairs of many classes."""
    if place not in of.confused:
        return {}
    counts = collections.Counter(of.confused[place].values())
    classes = list(of.entry.classes)
    if len(classes) > MOST_CLASSES:
        wrong = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]
        return {"pairs": [[*map(shown, pair), count] for pair, count in wrong[:MOST_PAIRS]]}
    index = {name: number for number, name in enumerate(classes)}
    cells = [
        [index[right], index.get(given, len(classes)), count]
        for (right, given), count in sorted(counts.items())
        if right in index
    ]
    other = ["another answer"] if any(cell[1] == len(classes) for cell in cells) else []
    return {"classes": [shown(name, 60) for name in classes] + other, "cells": cells}
