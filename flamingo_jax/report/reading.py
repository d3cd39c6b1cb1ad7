"""Reading a run: all that the report shows, from a workdir's files, whatever of them is missing."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any, TypeGuard

from flamingo_jax.errors import InputError
from flamingo_jax.report import wording

FILES = ("config.json", "run.json", "metrics.jsonl", "speed.jsonl", "events.jsonl", "results.json")
LOSS = "/loss"
SIGHT = "/shuffled_minus_right"


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure beside its control and chance, in `unit` ("%", "nats/token" or "")."""

    task: str
    key: str
    title: str
    unit: str
    n: int | None
    value: float | None
    control: float | None
    control_name: str
    chance: float | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """A measured curve, such as accuracy by shots; each series is (name, values at `x`)."""

    key: str
    title: str
    x: tuple[float, ...]
    x_name: str
    y_name: str
    series: tuple[tuple[str, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture with what the model said of it; `image` is relative to the workdir."""

    group: str
    image: str
    truth: str
    generated: str
    correct: bool


@dataclasses.dataclass(frozen=True)
class Page:
    """One page as the model sees it; `media_of_token` counts from 1, 0 = none."""

    tokens: tuple[str, ...]
    media_of_token: tuple[int, ...]
    loss_mask: tuple[int, ...]
    images: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task of results.json measured."""

    name: str
    title: str
    split: str
    seed: int | None
    seconds: float | None
    checks: tuple[Check, ...]
    curves: tuple[Curve, ...]
    samples: tuple[Sample, ...]
    page: Page | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir's files, parsed; what is missing is empty, what is damaged is in `problems`."""

    workdir: pathlib.Path
    config: dict[str, Any]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    speed: list[dict[str, Any]]
    events: list[dict[str, Any]]
    tasks: tuple[Task, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The config's name, or else the folder's."""
        return str(self.config.get("name") or self.workdir.resolve().name)

    @property
    def seed(self) -> int | None:
        """The run's seed, from run.json or the config."""
        return self.facts.get("seed", self.config.get("seed"))

    @property
    def stages(self) -> list[str]:
        """The stages in the order they are trained."""
        named = [*(self.field("stages") or ()), *(row.get("stage") for row in self.rows)]
        named += [row.get("stage") for row in self.listed("stages")]
        return list(dict.fromkeys(str(stage) for stage in named if stage))

    @property
    def checks(self) -> list[Check]:
        """Every check of every task, in order."""
        return [check for task in self.tasks for check in task.checks]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The alarms among the events; where the events are gone, those among the metrics."""
        noted = [event for event in self.events if event.get("kind") == "alarm"]
        return noted or [row for row in self.rows if row.get("kind") == "alarm"]

    @property
    def evaluations(self) -> list[tuple[int, str]]:
        """(step, folder below the run's) of the evaluations in the middle of training."""
        pages = sorted(self.workdir.glob("evaluations/*/report/index.html"))
        folders = [page.parents[1] for page in pages if page.parents[1].name.isdecimal()]
        return [(int(f.name), f.relative_to(self.workdir).as_posix()) for f in folders]

    def field(self, *path: str) -> Any:
        """A field of the config by its path; None where the config has none."""
        node: Any = self.config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def listed(self, key: str) -> list[dict[str, Any]]:
        """The objects of a list in run.json; empty where there is none."""
        found = self.facts.get(key)
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    def settings(self, stage: str) -> dict[str, Any]:
        """The config's subtree of a stage; empty when there is no config."""
        found = self.field("train") if stage == "flamingo" else self.field("pretrain", stage)
        return found if isinstance(found, dict) else {}

    @functools.cached_property
    def _columns(self) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
        """The metrics by (stage, kind), then by key, then by step."""
        columns: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
        for row in self.rows:
            place = (str(row.get("stage")), str(row.get("kind")))
            table = columns.setdefault(place, collections.defaultdict(dict))
            for key, value in row.items():
                if key not in ("stage", "kind", "step"):
                    table[key][row["step"]] = (
                        value  # where a step was logged twice, the later holds
                    )
        return columns

    def keys(self, stage: str, ending: str = "", beginning: str = "") -> list[str]:
        """The stage's metrics of that beginning and ending, in order of first appearance."""
        names: dict[str, None] = {}
        for (where, _), table in self._columns.items():
            if where == stage:
                names.update(dict.fromkeys(table))
        return [k for k in names if k.endswith(ending) and k.startswith(beginning)]

    def series(self, stage: str, key: str, kind: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a metric in the rows of a kind ("train", "validation")."""
        pairs = self._columns.get((stage, kind), {}).get(key, {})
        steps = sorted(pairs)
        return [float(step) for step in steps], [_number(pairs[step]) for step in steps]


@dataclasses.dataclass(frozen=True)
class State:
    """How far a run has come: `word` is finished, trained, evaluated, unfinished or preempted."""

    word: str
    text: str


def read(workdir: str | pathlib.Path) -> Run:
    """Reads a run; missing files leave their part empty, damaged ones are told in `problems`.

    Raises:
      InputError: if there is no such folder, or none of a run's files is in it.
    """
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(workdir)!r}; give the --workdir of a run")
    if not any((folder / name).is_file() for name in FILES):
        raise InputError(
            f"{str(workdir)!r} holds no run (none of {', '.join(FILES)}); "
            "give the --workdir of a run that has started"
        )
    problems: list[str] = []
    config = json_object(folder / "config.json", problems)
    facts = json_object(folder / "run.json", problems)
    results = json_object(folder / "results.json", problems)
    tasks = []
    stored = results.get("tasks")
    for name, raw in (stored if isinstance(stored, dict) else {}).items():
        try:
            tasks.append(_task(str(name), raw))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            problems.append(
                f"results.json: the task {name!r} is left out, it is not as a run writes it "
                f"({type(error).__name__}: {error})."
            )
    return Run(
        workdir=folder,
        config=config,
        facts=facts,
        rows=[
            row
            for row in _rows(folder / "metrics.jsonl", problems)
            if isinstance(row.get("step"), int)
        ],
        speed=_rows(folder / "speed.jsonl", problems),
        events=_rows(folder / "events.jsonl", problems),
        tasks=tuple(tasks),
        problems=tuple(problems),
    )


def state(run: Run) -> State:
    """Whether the run is finished, by its finish events and the config's number of steps."""
    if not run.rows and not run.events:
        if run.tasks:
            return State("evaluated", "evaluation of a checkpoint")
        return State("unfinished", "no step has been logged yet")
    missing = [stage for stage in run.stages if not _finished(run, stage)]
    if not missing:
        wanted = set(run.field("eval", "tasks") or ())
        absent = sorted(wanted - {task.name for task in run.tasks})
        if absent:
            return State("trained", f"not yet evaluated: {', '.join(absent)}")
        return State("finished", "finished")
    stage = missing[0]
    last = max((r["step"] for r in run.rows if r.get("stage") == stage), default=0)
    steps = run.settings(stage).get("steps")
    where = f"stage {stage}, step {last:,}" + (f" of {steps:,}" if steps else "")
    if run.events and run.events[-1].get("kind") == "preempted":
        return State("preempted", f"{where}; the same command goes on")
    return State("unfinished", where)


def _finished(run: Run, stage: str) -> bool:
    """A finish event of the stage, or its last row, at the config's last step.

    That step may have been raised since; the event may have been lost to a kill.
    """
    steps = run.settings(stage).get("steps")
    if steps and any(r.get("stage") == stage and r["step"] >= steps for r in run.rows):
        return True
    for event in run.events:
        if event.get("kind") == "finish" and event.get("stage") in (stage, "", None):
            step = event.get("step")
            if event.get("stage") != stage or step is None or not steps or step >= steps:
                return True
    return False


def json_object(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, and a line if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is left out, it cannot be read ({error}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is left out, it holds no JSON object.")
        return {}
    return value


def _rows(path: pathlib.Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a torn last line is what a killed run leaves, and no problem."""
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        problems.append(f"{path.name} is left out, it cannot be read ({error}).")
        return []
    rows, damaged = [], 0
    while lines and not lines[-1].strip():
        lines.pop()
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip() and index < len(lines) - 1:
            damaged += 1
    if damaged:
        problems.append(f"{path.name}: {wording.plural(damaged, 'damaged line')} left out.")
    return rows


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """A float; what is no number is nan, so that a curve breaks there."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is no place on an axis")
    return number


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _task(name: str, raw: dict[str, Any]) -> Task:
    return Task(
        name=name,
        title=str(raw.get("title") or name),
        split=str(raw.get("split", "")),
        seed=raw.get("seed"),
        seconds=_optional(raw.get("seconds")),
        checks=tuple(_check(name, row) for row in raw.get("checks") or ()),
        curves=tuple(_curve(row) for row in raw.get("curves") or ()),
        samples=tuple(_sample(row) for row in raw.get("samples") or ()),
        page=_page(raw["page"]) if raw.get("page") else None,
    )


def _check(task: str, row: dict[str, Any]) -> Check:
    return Check(
        task=task,
        key=str(row["key"]),
        title=str(row.get("title") or row["key"]),
        unit=str(row.get("unit") or ""),
        n=None if row.get("n") is None else int(row["n"]),
        value=_optional(row.get("value")),
        control=_optional(row.get("control")),
        control_name=str(row.get("control_name") or ""),
        chance=_optional(row.get("chance")),
    )


def _curve(row: dict[str, Any]) -> Curve:
    return Curve(
        key=str(row["key"]),
        title=str(row.get("title") or row["key"]),
        x=tuple(_finite(x) for x in row["x"]),
        x_name=str(row.get("x_name") or ""),
        y_name=str(row.get("y_name") or ""),
        series=tuple((str(s["name"]), tuple(_number(y) for y in s["y"])) for s in row["series"]),
    )


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        group=str(row.get("group") or ""),
        image=str(row.get("image") or ""),
        truth=str(row.get("truth", "")),
        generated=str(row.get("generated", "")),
        correct=bool(row.get("correct")),
    )


def _page(row: dict[str, Any]) -> Page:
    return Page(
        tokens=tuple(str(token) for token in row["tokens"]),
        media_of_token=tuple(int(medium) for medium in row["media_of_token"]),
        loss_mask=tuple(int(bit) for bit in row["loss_mask"]),
        images=tuple(str(image) for image in row["images"]),
    )
