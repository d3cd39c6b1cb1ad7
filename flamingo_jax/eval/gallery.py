"""What a page shows of an evaluation's queries: small pictures, questions, references.

folder/queries.json          {benchmark: {key: what was asked}}
folder/report/pictures/…     small JPEG files of the first queries' media
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from flamingo_jax.data import prompt
from flamingo_jax.eval.asking import Trial
from flamingo_jax.eval.campaign import Request, trials
from flamingo_jax.eval.examples import Benchmark, Example
from flamingo_jax.workdir import write_atomically

SHOWN = 200
"""Queries of a benchmark that have a picture on the page."""

SIDE, FRAMES = 160, 4
"""Pixels of a picture's side; frames of a clip, side by side."""


def write(benchmarks: Sequence[Benchmark], request: Request, folder: pathlib.Path) -> None:
    """Writes the files above; pictures that are there already are kept.

    Args:
      benchmarks: as they were read.
      request: how they were asked.
      folder: of an evaluation whose queries are all answered.
    """
    found: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        rows = found.setdefault(benchmark.name, {})
        for trial in trials([benchmark], request):
            for query in trial.chosen.queries:
                if query.key not in rows:
                    number = len(rows)
                    picture = _picture(folder, trial, query, number) if number < SHOWN else None
                    rows[query.key] = _row(query, picture)
    text = json.dumps(found, ensure_ascii=False) + "\n"
    write_atomically(folder / "queries.json", text)


def _row(query: Example, picture: str | None) -> dict[str, Any]:
    right = None if query.right is None else query.choices[query.right]
    turns = " ".join(f"{question} {answer}" for question, answer in query.turns)
    return {
        "picture": picture,
        "question": query.question,
        "context": " ".join(part for part in (query.context, turns, query.ocr) if part),
        "references": list(query.answers),
        "right": right,
        "label": query.label,
    }


def _picture(folder: pathlib.Path, trial: Trial, query: Example, number: int) -> str | None:
    """The path of a small picture of what a query shows, below the folder; None without."""
    if query.medium is None:
        return None
    path = folder / "report" / "pictures" / f"{trial.benchmark.name}-{number:06d}.jpg"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        medium = trial.asker.medium(query)
        frames = prompt.read_medium(medium, SIDE, "pad", trial.protocol.frames, query.key)
        places = np.linspace(0, len(frames) - 1, min(len(frames), FRAMES)).round().astype(int)
        temporary = path.with_suffix(".tmp")
        strip = np.concatenate([*frames[places]], axis=1)
        Image.fromarray(strip).save(temporary, "JPEG", quality=80)
        temporary.replace(path)
    return path.relative_to(folder).as_posix()
