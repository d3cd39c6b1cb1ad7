"""Few-shot figures as Flamingo, OpenFlamingo and IDEFICS were published with, to stand beside ours.

They lie in `published.json` as the tables that they come from. They are other people's protocols:
where a split is known it is told, but prompts, support and decoding differ too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

FILE = pathlib.Path(__file__).with_name("published.json")


@dataclasses.dataclass(frozen=True)
class Published:
    """One figure of one model.

    Attributes:
      benchmark: a name of `tasks.benchmarks.ENTRIES`.
      model: as people call it: "Flamingo 80B"; "best before Flamingo" and "best fine-tuned" are the
        states of the art that Flamingo's tables stand beside.
      shots: how many; None = fine-tuned on the training split.
      selection: "random" or "rices"; "" of the states of the art.
      variant: what sets it apart from the model's other figures: "support of 5 a class".
      value: of the benchmark's own metric, times 100.
      source: the paper and table.
      split: the authors' split that was asked; "" where the source does not say.
      note: what is to be known of the figure, a contradiction in its source first of all.
    """

    benchmark: str
    model: str
    shots: int | None
    selection: str
    variant: str
    value: float
    source: str
    split: str = ""
    note: str = ""


def of(benchmark: str) -> list[Published]:
    """The figures of a benchmark, in the order of their tables; [] where none is known."""
    return [one for one in every() if one.benchmark == benchmark]


@functools.cache
def every() -> tuple[Published, ...]:
    """All figures."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(one for table in raw["tables"] for one in _figures(table, raw))


def _figures(table: dict[str, Any], raw: dict[str, Any]) -> list[Published]:
    """A table's figures; null stands where it has none, or one that is doubted."""
    found = []
    model = table["model"]
    splits = next((s for begin, s in raw["splits"].items() if model.startswith(begin)), {})
    for benchmark, values in table["values"].items():
        for shots, value in zip(table["shots"], values, strict=True):
            if value is not None:
                found.append(
                    Published(
                        benchmark=benchmark,
                        model=model,
                        shots=shots,
                        selection=table["selection"],
                        variant=table.get("variant", ""),
                        value=value,
                        source=table["source"],
                        split=splits.get(benchmark, ""),
                        note=_note(raw["notes"], model, benchmark, shots),
                    )
                )
    return found


def _note(notes: list[dict[str, Any]], model: str, benchmark: str, shots: int | None) -> str:
    return "; ".join(
        note["text"]
        for note in notes
        if model.startswith(note["model"])
        and benchmark == note["benchmark"]
        and note.get("shots", shots) == shots
    )
