"""Files for EvalAI, of splits whose references are not public.

- VQAv2: [{"question_id": 262148000, "answer": "down"}, …] (visualqa.org's format of results; its
  server wants every question of the split: ask all of "test-dev" or "test").
- VizWiz: [{"image": "VizWiz_test_00000000.jpg", "answer": "soda"}, …] (vizwiz.org's task 1).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from flamingo_jax.eval.examples import Example
from flamingo_jax.eval.predictions import Prediction, Setting
from flamingo_jax.workdir import write_atomically

IDS = {"vqav2": "question_id", "vizwiz": "image"}
"""What a line names its query by."""


def write(
    folder: pathlib.Path,
    entry: str,
    setting: Setting,
    queries: Sequence[Example],
    predictions: Sequence[Prediction],
) -> pathlib.Path | None:
    """Writes a setting's file below `folder`, if its benchmark has one; returns its path.

    Args:
      folder: of the evaluation.
      entry: of the benchmark (`Benchmark.entry`).
      setting: what was asked.
      queries: all of them.
      predictions: in their order.
    """
    name = IDS.get(entry)
    if name is None:
        return None
    lines = [
        {name: query.about[name], "answer": prediction.answer}
        for query, prediction in zip(queries, predictions, strict=True)
    ]
    parts = (setting.benchmark, setting.shots, setting.selection, setting.trial)
    path = folder / "submissions" / ("-".join(map(str, parts)) + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(lines, ensure_ascii=False) + "\n")
    return path
