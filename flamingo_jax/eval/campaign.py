"""An evaluation as a whole: benchmarks, numbers of shots, ways to find them, trials; and its files.

    folder/evaluation.json    what is evaluated, and how; another one in this folder is refused
    folder/predictions.jsonl  every answer, as it comes (`predictions`)
    folder/results.json       figures, intervals, spread; the first prompts' exact text
    folder/scores.jsonl       a line a prediction: what it is worth by each metric
    folder/times.json         seconds and queries of each setting
    folder/submissions/…      files for EvalAI

`results.json` depends on the answers alone: one of a run that was killed and went on is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flamingo_jax import progress
from flamingo_jax.errors import InputError
from flamingo_jax.eval import judge, rices, submissions
from flamingo_jax.eval.asking import ALL, Asking, Model, Shard, Trial
from flamingo_jax.eval.examples import Benchmark
from flamingo_jax.eval.metrics.intervals import spread
from flamingo_jax.eval.predictions import FILES as PREDICTIONS
from flamingo_jax.eval.predictions import Predictions, Setting
from flamingo_jax.eval.protocol import splits
from flamingo_jax.eval.protocol.presets import Protocol
from flamingo_jax.workdir import write_atomically

FORMAT = 1
PROMPTS = 3
"""Prompts whose exact text is told, of each setting."""

IDENTITY, RESULTS, TIMES = "evaluation.json", "results.json", "times.json"
SCORES = "scores.jsonl"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, and how.

    Attributes:
      protocol: texts, shots, seeds, decoding.
      selections: how shots are found, of `rices.SELECTIONS`.
      split: "test", or "validation" to make decisions by.
      limit: at most so many queries of a benchmark; 0 = all.
      batch: sequences run at once.
      keep_prefix: shots that all queries share are read once.
    """

    protocol: Protocol
    selections: tuple[str, ...] = (rices.RANDOM,)
    split: str = splits.TEST
    limit: int = 0
    batch: int = 32
    keep_prefix: bool = True

    def __post_init__(self):
        """Refuses another selection than there are."""
        for selection in self.selections:
            if selection not in rices.SELECTIONS:
                raise InputError(
                    f"there is no selection {selection!r}; {', '.join(rices.SELECTIONS)}"
                )

    def identity(self) -> dict[str, Any]:
        """What answers depend on."""
        found = dataclasses.asdict(self)
        del found["keep_prefix"]
        return json.loads(json.dumps(found))


def open_folder(folder: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Makes the folder, or makes sure that it is of the same evaluation.

    Raises:
      InputError: if it is of another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / IDENTITY, json.loads(json.dumps(identity))
    # Looked for first: another process of the job may be writing both, this one last.
    answered = any(folder.glob(PREDICTIONS))
    if not path.exists():
        if answered:
            raise InputError(f"{folder} holds predictions of unknown origin; give another folder")
        write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no evaluation's ({error}); give another folder") from error
    difference = _difference(found, wanted)
    if difference is not None:
        name, old, new = difference
        raise InputError(
            f"{folder} is of another evaluation: {name} was {old!r} and is {new!r}; "
            "give another folder"
        )


def _difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field, in alphabetical order, that two values do not have in common: "a.b"."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (name or "all of it", old, new)
    for field in sorted({*old, *new}):
        found = _difference(old.get(field), new.get(field), f"{name}.{field}" if name else field)
        if found is not None:
            return found
    return None


def ask_all(
    model: Model,
    benchmarks: Sequence[Benchmark],
    request: Request,
    folder: pathlib.Path,
    shard: Shard = ALL,
    features: pathlib.Path | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Asks what is not answered yet; whether nothing is left.

    Args:
      model: what is asked.
      benchmarks: as they were read.
      request: how.
      folder: of `open_folder`.
      shard: this process's part of the queries.
      features: where RICES keeps its own; None = below the folder.
      go_on: asked before each block of queries; False ends it.

    Raises:
      InputError: for media that cannot be read, or too few examples to show.
    """
    predictions = Predictions(folder, shard.index)
    times = _Times(folder, shard.index)
    features = features or folder / "features"
    for trial, setting in _settings(benchmarks, request):
        finder = rices.Finder(model, trial.asker.medium, features, shard.index / shard.count)
        begin, known = time.monotonic(), len(predictions.of(setting))
        blocks = trial.blocks(shard, request.batch)
        with progress.bar(str(setting), sum(map(len, blocks)), unit="queries") as bar:
            ask = Asking(model, trial, setting, predictions, finder, request.batch)
            for done, block in zip(itertools.accumulate(map(len, blocks)), blocks, strict=True):
                if not go_on():
                    return False
                ask.block(block, request.keep_prefix)
                bar.advance(done)
        times.add(setting, len(predictions.of(setting)) - known, time.monotonic() - begin)
    return True


def conclude(
    benchmarks: Sequence[Benchmark],
    request: Request,
    folder: pathlib.Path,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Judges the answers that are in the folder; writes `results.json`, scores and submissions.

    Raises:
      InputError: if a query has no answer.
    """
    predictions = Predictions(folder)
    found: dict[str, Any] = {}
    scores: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        found[benchmark.name], each = _entry(benchmark, request, predictions, folder)
        scores += each
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in scores)
    write_atomically(folder / SCORES, "".join(lines))
    results = {
        "format": FORMAT,
        "model": dict(about),
        "protocol": dataclasses.asdict(request.protocol),
        "request": {"split": request.split, "limit": request.limit},
        "benchmarks": found,
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULTS, text)
    return json.loads(text)


def _settings(benchmarks: Sequence[Benchmark], request: Request) -> Iterator[tuple[Trial, Setting]]:
    """What is asked, in order."""
    for trial in trials(benchmarks, request):
        for shots, selection in pairs(trial.benchmark, request):
            yield trial, trial.setting(shots, selection)


def trials(benchmarks: Sequence[Benchmark], request: Request) -> Iterator[Trial]:
    """Each benchmark's trials, their examples chosen."""
    for benchmark in benchmarks:
        for number in range(len(request.protocol.seeds)):
            yield Trial(benchmark, request.protocol, number, request.split, request.limit)


def pairs(benchmark: Benchmark, request: Request) -> list[tuple[int, str]]:
    """(shots, selection) of a benchmark: without support there are no shots, and nothing to find.

    Raises:
      InputError: if shots alone are asked of a benchmark without support.
    """
    shots = request.protocol.shots
    if not benchmark.support:
        shots = tuple(count for count in shots if count == 0)
        if not shots:
            raise InputError(
                f"{benchmark.title} has no examples to show: ask it with 0 shots among --shots"
            )
    found = []
    for count in shots:
        found += [(count, s) for s in (request.selections if count else (rices.RANDOM,))]
    return found


def _entry(
    benchmark: Benchmark, request: Request, predictions: Predictions, folder: pathlib.Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A benchmark's part of the results, and what each of its predictions is worth."""
    every = list(trials([benchmark], request))
    settings, scores = [], []
    for shots, selection in pairs(benchmark, request):
        of_trials = []
        for trial in every:
            setting, queries = trial.setting(shots, selection), trial.chosen.queries
            known = predictions.of(setting)
            missing = [query.key for query in queries if query.key not in known]
            if missing:
                raise InputError(f"{setting}: {missing[0]!r} and others have no answer yet")
            given = [known[query.key] for query in queries]
            submissions.write(folder, benchmark.entry, setting, queries, given)
            judged, each = _judged(benchmark, queries, given)
            of_trials.append(judged)
            scores += [{**dataclasses.asdict(setting), **score} for score in each]
        settings.append(
            {
                "shots": shots,
                "selection": selection,
                "trials": of_trials,
                **_over_trials(of_trials),
                "prompts": _first_prompts(every[0], shots, predictions, selection),
            }
        )
    entry = {
        "title": benchmark.title,
        "kind": benchmark.kind,
        "metric": benchmark.metric,
        "split": benchmark.split,
        "support": len(every[0].chosen.support),
        "queries": len(every[0].chosen.queries),
        "left_out": benchmark.left_out,
        "classes": list(benchmark.classes),
        "files": list(benchmark.files),
        "settings": settings,
    }
    return entry, scores


def _judged(
    benchmark: Benchmark, queries: Sequence[Any], given: Sequence[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        found = judge.judge(benchmark, queries, given)
    except InputError as error:
        return {"figures": {}, "scored": 0, "unscored_because": str(error)}, []
    figures = {
        figure.name: {"value": figure.value, "low": figure.low, "high": figure.high}
        for figure in found.figures
    }
    why = {} if figures else {"unscored_because": "the split's references are not public"}
    scores = []
    for place, key in enumerate(found.keys):
        worth = {one.name: one.each[place] for one in found.figures if one.each}
        if worth:
            scores.append({"key": key, "figures": worth})
    return {"figures": figures, "scored": len(found.keys), **why}, scores


def _over_trials(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each figure over trials; None for the deviation of one."""
    found = {}
    for name in dict.fromkeys(name for one in judged for name in one["figures"]):
        values = [one["figures"][name]["value"] for one in judged if name in one["figures"]]
        over = spread(values)
        std = None if math.isnan(over.std) else over.std
        found[name] = {"mean": over.mean, "std": std, "trials": over.trials}
    return {"figures": found}


def _first_prompts(
    trial: Trial, shots: int, predictions: Predictions, selection: str
) -> list[dict[str, Any]]:
    """The first queries' prompts as text, from the shots that they were shown."""
    known = predictions.of(trial.setting(shots, selection))
    found = []
    for query in trial.chosen.queries[:PROMPTS]:
        prompt = trial.asker.again(query, known[query.key].shots, bool(shots))
        choices = [str(choice) for choice in prompt.choices[:PROMPTS]]
        one = {"key": query.key, "shots": list(prompt.shots), "text": prompt.shown()}
        found.append({**one, **({"choices": choices} if choices else {})})
    return found


class _Times:
    """Seconds and queries of each setting, over all lives of an evaluation."""

    def __init__(self, folder: pathlib.Path, process: int):
        self._path = folder / (TIMES if process == 0 else f"times-{process:05d}.json")
        self._rows: dict[str, dict[str, float]] = {}
        if self._path.exists():
            self._rows = json.loads(self._path.read_text(encoding="utf-8"))

    def add(self, setting: Setting, queries: int, seconds: float) -> None:
        if queries:
            row = self._rows.setdefault(str(setting), {"queries": 0, "seconds": 0.0})
            row["queries"] += queries
            row["seconds"] += seconds
            write_atomically(self._path, json.dumps(self._rows, indent=1) + "\n")
