"""Answers on disk, a line each: what was given before a kill is not asked again.

Lines are appended some queries at a time and flushed; a line that a kill cut short is dropped when
the file is opened again. Each process of a job writes a file of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, BinaryIO

from flamingo_jax.errors import InputError

FILE, FILES = "predictions.jsonl", "predictions*.jsonl"
"""Of the first process, and of all."""


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """What a query is asked under.

    Attributes:
      benchmark: its name.
      shots: how many.
      selection: how they are found: "random", or a way of `rices`.
      trial: its number, from 0.
    """

    benchmark: str
    shots: int
    selection: str
    trial: int

    def __str__(self) -> str:
        return f"{self.benchmark}, {self.shots} shots ({self.selection}), trial {self.trial}"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model said to a query.

    Attributes:
      key: of the query.
      answer: that counts: cleaned text, or the likeliest choice.
      text: as it was generated; "" for a choice.
      scores: log-likelihoods of the choices, nats; None for generated text.
      shots: keys of the examples that were shown, in their (first) order.
    """

    key: str
    answer: str
    text: str = ""
    scores: tuple[float, ...] | None = None
    shots: tuple[str, ...] = ()

    def line(self, setting: Setting) -> dict[str, Any]:
        """As it is written."""
        row = {**dataclasses.asdict(setting), "key": self.key, "answer": self.answer}
        row |= {"text": self.text} if self.scores is None else {"scores": self.scores}
        return {**row, "shown": self.shots}


class Predictions:
    """The predictions of an evaluation's folder."""

    def __init__(self, folder: pathlib.Path, process: int = 0):
        """Reads what is there; this process's file loses a line that is not whole.

        Raises:
          InputError: for a file that holds something else.
        """
        self._path = folder / (FILE if process == 0 else f"predictions-{process:05d}.jsonl")
        self._found: dict[Setting, dict[str, Prediction]] = {}
        for path in sorted(folder.glob(FILES)):
            whole = self._read(path)
            if path == self._path and whole < path.stat().st_size:
                os.truncate(path, whole)
        self._file: BinaryIO | None = None

    def of(self, setting: Setting) -> dict[str, Prediction]:
        """Those under a setting, by key."""
        return self._found.get(setting, {})

    def add(self, setting: Setting, found: Iterable[Prediction]) -> None:
        """Appends, and returns when it is on the disk."""
        if self._file is None:
            self._file = self._path.open("ab")
        own = self._found.setdefault(setting, {})
        lines = []
        for prediction in found:
            own[prediction.key] = prediction
            lines.append(json.dumps(prediction.line(setting), ensure_ascii=False) + "\n")
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: pathlib.Path) -> int:
        """Takes a file's lines in; how many bytes of it are whole lines."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                setting, prediction = _parsed(json.loads(line))
                self._found.setdefault(setting, {})[prediction.key] = prediction
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}, line {number} is no prediction ({error}); give another folder, or "
                    "remove the file"
                ) from error
        return whole


def _parsed(row: dict[str, Any]) -> tuple[Setting, Prediction]:
    setting = Setting(*(row[field.name] for field in dataclasses.fields(Setting)))
    scores = tuple(row["scores"]) if "scores" in row else None
    prediction = Prediction(
        row["key"], row["answer"], row.get("text", ""), scores, tuple(row["shown"])
    )
    return setting, prediction
