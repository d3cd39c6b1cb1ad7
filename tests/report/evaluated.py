"""The folder of an evaluation on benchmarks, made in a moment: every file its page reads."""

import dataclasses
import json
import pathlib
import random
import shutil
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flamingo_jax.eval.protocol import presets

TAG = "</script><b>bold</b><!-- \"'& \ud800 \x1b[1m"  # what a page must show as text
CLASSES = ("red apple", "green pear", "blue boat", "grey stone", "white dog")
MORE = tuple(f"class {number}" for number in range(80))
WORDS = ("a dog runs", "two boats at sea", "a man with a hat", "an apple on a table", "a red bus")
FILES = ("results.json", "predictions.jsonl", "scores.jsonl", "queries.json", "times.json")


@dataclasses.dataclass(frozen=True)
class Made:
    """A benchmark as it is made up.

    Attributes:
      name, title, kind, metric, split, classes: see `flamingo_jax.eval.examples.Benchmark`.
      others: further figures.
      low, high: the figure with the fewest and the most shots.
      scored: are its references public?
    """

    name: str
    title: str
    kind: str
    metric: str
    split: str
    low: float = 50.0
    high: float = 80.0
    others: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    scored: bool = True


COCO = Made("coco", "COCO captions", "caption", "cider", "test", 72, 98, ("bleu4", "rouge_l"))
VQA = Made("vqav2", f"VQAv2 {TAG}", "answer", "vqa_accuracy", "val", 44, 52)
FRUIT = Made("custom", "Your own set", "choice", "top1", "queries", 40, 88, classes=CLASSES)
MANY = Made("imagenet", "ImageNet", "choice", "top1", "val", 40, 88, classes=MORE)
HIDDEN = Made("vizwiz", "VizWiz", "answer", "vqa_accuracy", "test", scored=False)
EVERY = (COCO, VQA, FRUIT, MANY, HIDDEN)


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: pathlib.Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_evaluation(
    folder: pathlib.Path,
    made: Sequence[Made] = EVERY,
    queries: int = 6,
    shots: Sequence[int] = (0, 4, 8),
    selections: Sequence[str] = ("random", "rices"),
    trials: int = 2,
    pictures: Sequence[pathlib.Path] = (),
) -> pathlib.Path:
    """Writes an evaluation; without `pictures` some are drawn, and every fifth query has none."""
    (folder / "report" / "pictures").mkdir(parents=True)
    (folder / "submissions").mkdir()
    chance = random.Random(0)
    protocol = dataclasses.replace(presets.FLAMINGO, shots=tuple(shots), seeds=tuple(range(trials)))
    asked, rows, scores, times, found = {}, [], [], {}, {}
    for one in made:
        asked[one.name] = {
            f"{one.name}-{n}": _query(folder, one, n, chance, pictures) for n in range(queries)
        }
        settings = []
        for count in shots:
            for selection in selections if count else ("random",):
                settings.append(_setting(one, count, selection, shots, trials, queries, chance))
                for trial in range(trials):
                    times[f"{one.name}, {count} shots ({selection}), trial {trial}"] = {
                        "queries": queries, "seconds": 30.5
                    }  # fmt: skip
                    place = {"benchmark": one.name, "shots": count, "selection": selection}
                    place["trial"] = trial
                    for key, query in asked[one.name].items():
                        row, score = _answer(one, key, query, count, queries, chance)
                        rows.append({**place, **row})
                        if one.scored:
                            scores.append({**place, "key": key, "figures": {one.metric: score}})
        found[one.name] = {
            "title": one.title, "kind": one.kind, "metric": one.metric, "split": one.split,
            "support": 2048, "queries": queries, "left_out": 3 if one is FRUIT else 0,
            "classes": list(one.classes), "files": [f"{one.name}/annotations.json"],
            "settings": settings,
        }  # fmt: skip
    model = {"path": "runs/openmoji", "stage": "flamingo", "step": 740, "dtype": "bfloat16"}
    write_json(folder / "results.json", {
        "format": 1, "model": model, "protocol": dataclasses.asdict(protocol),
        "request": {"split": "test", "limit": queries}, "benchmarks": found,
    })  # fmt: skip
    write_lines(folder / "predictions.jsonl", rows)
    write_lines(folder / "scores.jsonl", scores)
    write_json(folder / "queries.json", asked)
    write_json(folder / "times.json", times)
    if HIDDEN in made:
        write_json(folder / "submissions" / "vizwiz-4-random-0.json", [])
    return folder


def _query(
    folder: pathlib.Path, one: Made, n: int, chance: random.Random, given: Sequence[pathlib.Path]
) -> dict[str, Any]:
    name = f"report/pictures/{one.name}-{n:06d}.jpg"
    if given:
        shutil.copy(given[n % len(given)], folder / name)
    elif n % 5 < 4:
        side = 64 if n % 5 else 256  # a clip's frames lie side by side
        Image.new("RGB", (side, 64), ("#c0392b", "#e67e22", "#27ae60")[n % 3]).save(folder / name)
    answer = chance.choice(("yes", "no", "two", "on the table"))
    right = one.classes[n % len(one.classes)] if one.classes else None
    question = "" if one.kind == "caption" or one.classes else f"What is seen here, number {n}?"
    references = {
        "caption": [f"{chance.choice(WORDS)} {n}" for _ in range(5)],
        "answer": [answer] * 7 + ["maybe"] * 2 + [f"other {n}"] if one.scored else [],
        "choice": [],
    }[one.kind]
    return {
        "picture": name if (folder / name).exists() else None,
        "question": question + (TAG if n == 1 and question else ""),
        "context": "A long hint that stands before. " * 12 if n == 2 else "",
        "references": references,
        "right": right,
        "label": right or "",
    }


def _answer(
    one: Made, key: str, query: dict[str, Any], shots: int, queries: int, chance: random.Random
) -> tuple[dict[str, Any], float]:
    good = chance.random() < 0.4 + shots / 60
    shown = [f"{one.name}-{chance.randrange(queries)}" for _ in range(shots)]
    row: dict[str, Any] = {"key": key, "shown": [*shown[:-1], "support-1"] if shown else []}
    if one.classes:
        answer = query["right"] if good else chance.choice(one.classes)
        scores = [-0.5 if c == answer else round(-1 - 9 * chance.random(), 3) for c in one.classes]
        return {**row, "answer": answer, "scores": scores}, 100.0 * (answer == query["right"])
    references = query["references"]
    answer = references[0] if good and references else chance.choice(WORDS)
    if key == "vqav2-0":
        answer = f"{answer}{TAG}"
    score = (130 if one.kind == "caption" else 100) * chance.random() if not good else 100.0
    return {**row, "answer": answer, "text": f" {answer}\n Output: more"}, score


def _setting(
    one: Made,
    count: int,
    selection: str,
    shots: Sequence[int],
    trials: int,
    queries: int,
    chance: random.Random,
) -> dict[str, Any]:
    place = list(shots).index(count) / max(len(shots) - 1, 1)
    middle = one.low + (one.high - one.low) * place**0.5 + (4 if selection == "rices" else 0)
    of_trials, over = [], {}
    for trial in range(trials):
        figures = {}
        for name in (one.metric, *one.others):
            value = (middle if name == one.metric else middle / 3) + 0.8 * trial
            figures[name] = {"value": value, "low": value - 2.5, "high": value + 2.5}
        why = {"unscored_because": "the split's references are not public"}
        of_trials.append(
            {"figures": figures, "scored": queries}
            if one.scored
            else {"figures": {}, "scored": 0, **why}
        )
    for name in of_trials[0]["figures"]:
        values = [trial["figures"][name]["value"] for trial in of_trials]
        std = 0.8 / 2**0.5 if trials == 2 else 0.8 if trials > 2 else None
        over[name] = {"mean": sum(values) / trials, "std": std, "trials": trials}
    text = "<BOS>" + "<image>Output: a <cat> sat<EOC>" * count + "<image>Output:"
    prompt = {"key": f"{one.name}-0", "shots": [f"{one.name}-1"] * count, "text": text}
    if one.classes:
        prompt["choices"] = list(one.classes[:3])
    return {
        "shots": count, "selection": selection, "trials": of_trials, "figures": over,
        "prompts": [prompt],
    }  # fmt: skip
