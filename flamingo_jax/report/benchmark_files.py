"""The files of an evaluation on benchmarks, read for its page.

    folder/results.json        figures by benchmark and setting, the first prompts (needed)
    folder/predictions*.jsonl  every answer, a line each
    folder/scores.jsonl        what each answer is worth by itself, a line each
    folder/queries.json        {benchmark: {key: what was asked, and the path of its picture}}
    folder/times*.json         {"coco, 4 shots (random), trial 0": {"seconds": …}}, one a process
    folder/submissions/…       files for EvalAI

All but the first may be missing: the page then says what it leaves out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.report import reading, wording

FORMAT = 1
RESULTS = "results.json"
TITLES = {
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "vqa_accuracy": "VQA accuracy",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "top1_top5": "mean of top-1 and top-5",
    "ivqa_accuracy": "iVQA accuracy",
    "wups": "WUPS",
    "wups_at_0.9": "WUPS@0.9",
    "ndcg": "NDCG",
    "roc_auc": "ROC AUC",
    "mwap": "mWAP",
}
"""Figures as people call them; another one goes by its own name."""
SELECTIONS = {
    "random": "random",
    "rices": "RICES",
    "rices_text": "RICES by text",
    "rices_both": "RICES by both",
}
"""How shots are found, as people call it."""


def figure_title(name: str) -> str:
    """A figure as people call it."""
    return TITLES.get(name, name)


def selection_title(name: str) -> str:
    """A way to find shots, as people call it."""
    return SELECTIONS.get(name, name)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric over a setting's trials, times 100.

    Attributes:
      mean: over the trials.
      std: over the trials; None of one.
      trials: how many.
      low, high: the mean ends of the trials' 95 % intervals over queries; None where a trial has
        none. Of several trials that is wider than the interval of their mean.
    """

    mean: float
    std: float | None
    trials: int
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """`70.1` to `72.3` with a dash; "" without one."""
        if self.low is None or self.high is None:
            return ""
        return f"{points(self.low)}{wording.NOTHING}{points(self.high)}"

    @property
    def spread(self) -> str:
        """`± 0.4`; "" of one trial."""
        return "" if self.std is None else f"± {points(self.std)}"


def points(value: float | None) -> str:
    """A figure as papers print it, one digit after the point."""
    return wording.NOTHING if value is None else f"{value:.1f}"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One of a setting's first prompts: its query, its shots' keys, its exact text, its choices."""

    key: str
    shots: tuple[str, ...]
    text: str
    choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A number of shots, and how they are found.

    Attributes:
      shots, selection: as the files name them.
      trials: how many.
      scored: how many queries of the first trial have a reference.
      unscored: why there is no figure, each reason once.
      figures: by name, the benchmark's own first.
      prompts: the first ones.
      seconds: what it took; None where nobody wrote it down.
    """

    shots: int
    selection: str
    trials: int
    scored: int
    unscored: tuple[str, ...]
    figures: Mapping[str, Figure]
    prompts: tuple[Prompt, ...]
    seconds: float | None = None

    @property
    def name(self) -> str:
        """As people call it: "4 shots, RICES"."""
        return f"{wording.plural(self.shots, 'shot')}, {selection_title(self.selection)}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One benchmark's results.

    Attributes:
      name: its key in the files.
      title, kind, metric, split, classes: see `eval.examples.Benchmark`.
      support, queries: how many examples shots were taken from, and were asked.
      left_out: how many were dropped because their clip is not there.
      files: what was read.
      settings: in the order they were asked.
    """

    name: str
    title: str
    kind: str
    metric: str
    split: str
    support: int
    queries: int
    left_out: int
    classes: tuple[str, ...]
    files: tuple[str, ...]
    settings: tuple[Setting, ...]

    @property
    def shots(self) -> list[int]:
        """The numbers of shots, each once."""
        return sorted({setting.shots for setting in self.settings})

    @property
    def selections(self) -> list[str]:
        """The ways to find them, each once."""
        return list(dict.fromkeys(setting.selection for setting in self.settings))

    def find(self, shots: int, selection: str) -> Setting | None:
        """The setting, if it was asked."""
        return next(
            (s for s in self.settings if (s.shots, s.selection) == (shots, selection)), None
        )


@dataclasses.dataclass(frozen=True)
class Results:
    """`results.json`: whom, how, which queries, and what came of it."""

    model: Mapping[str, Any]
    protocol: Mapping[str, Any]
    request: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """The model's: the end of its path."""
        return pathlib.PurePosixPath(str(self.model.get("path") or "")).name or "model"


def read(folder: pathlib.Path, problems: list[str]) -> Results:
    """Reads `results.json` and the times beside it; other files' faults become `problems`.

    Raises:
      InputError: if it is missing or is not what an evaluation writes.
    """
    path = folder / RESULTS
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{str(folder)!r} holds no {RESULTS}; give a folder that benchmarks were evaluated into"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from error
    return parse(raw, seconds(folder, problems), str(path))


def parse(
    raw: Any, times: Mapping[str, float] | None = None, where: str = "the results"
) -> Results:
    """What `results.json` holds.

    Args:
      raw: the JSON.
      times: seconds by the settings' names in `times.json`.
      where: what errors call it.

    Raises:
      InputError: if it is not what an evaluation writes, naming the benchmark.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("benchmarks"), Mapping):
        raise InputError(f"{where}: there is no 'benchmarks' in it; evaluate benchmarks first")
    if raw.get("format") != FORMAT:
        raise InputError(
            f"{where}: its format is {raw.get('format')!r}, and {FORMAT} is read; evaluate again"
        )
    entries = []
    for name, entry in raw["benchmarks"].items():
        try:
            entries.append(_entry(name, entry, times or {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the benchmark {name!r} is not as evaluations write it "
                f"({type(error).__name__}: {error}); evaluate again"
            ) from error
    model, protocol, request = (_mapping(raw.get(n)) for n in ("model", "protocol", "request"))
    return Results(model, protocol, request, tuple(entries))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entry(name: str, raw: Mapping[str, Any], times: Mapping[str, float]) -> Entry:
    return Entry(
        name=name,
        title=str(raw["title"]),
        kind=str(raw["kind"]),
        metric=str(raw["metric"]),
        split=str(raw["split"]),
        support=int(raw["support"]),
        queries=int(raw["queries"]),
        left_out=int(raw.get("left_out") or 0),
        classes=tuple(map(str, raw.get("classes") or ())),
        files=tuple(map(str, raw.get("files") or ())),
        settings=tuple(_setting(name, setting, times) for setting in raw["settings"]),
    )


def _setting(benchmark: str, raw: Mapping[str, Any], times: Mapping[str, float]) -> Setting:
    trials = raw["trials"]
    shots, selection = int(raw["shots"]), str(raw["selection"])
    names = [f"{benchmark}, {shots} shots ({selection}), trial {n}" for n in range(len(trials))]
    known = [times[name] for name in names if name in times]
    reasons = dict.fromkeys(str(t["unscored_because"]) for t in trials if "unscored_because" in t)
    figures = {}
    for name, over in raw["figures"].items():
        if (mean := _finite(over["mean"])) is not None:
            each = [trial["figures"][name] for trial in trials if name in trial["figures"]]
            low, high = (_mean([_finite(one.get(end)) for one in each]) for end in ("low", "high"))
            figures[name] = Figure(mean, _finite(over["std"]), int(over["trials"]), low, high)
    return Setting(
        shots=shots,
        selection=selection,
        trials=len(trials),
        scored=int(trials[0]["scored"]) if trials else 0,
        unscored=tuple(reasons),
        figures=figures,
        prompts=tuple(
            Prompt(
                str(prompt["key"]),
                tuple(map(str, prompt["shots"])),
                str(prompt["text"]),
                tuple(map(str, prompt.get("choices") or ())),
            )
            for prompt in raw.get("prompts") or ()
        ),
        seconds=sum(known) if known else None,
    )


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def seconds(folder: pathlib.Path, problems: list[str]) -> dict[str, float]:
    """Seconds of each setting; processes work side by side, so that the slowest one's count."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("times*.json")):
        rows = reading.json_object(path, problems)
        for name, row in rows.items():
            spent = row.get("seconds") if isinstance(row, dict) else None
            if reading.is_number(spent):
                found[name] = max(found.get(name, 0.0), float(spent))
    return found


def lines(folder: pathlib.Path, pattern: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of JSONL files, one at a time: a whole test set's log-likelihoods are gigabytes.

    What a kill left of a last line is no problem; other damaged lines are told when all are read.
    """
    for path in sorted(folder.glob(pattern)):
        damaged = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.strip() and line.endswith(b"\n"):
                    damaged += 1
        if damaged:
            problems.append(f"{path.name}: {wording.plural(damaged, 'damaged line')} left out.")
