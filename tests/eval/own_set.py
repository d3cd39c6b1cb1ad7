"""A small set of one's own, and an evaluation of it with a stand-in for the model."""

import dataclasses
import json
import pathlib
from typing import Any

from flamingo_jax.eval import campaign
from flamingo_jax.eval.asking import ALL, Shard
from flamingo_jax.eval.examples import Benchmark
from flamingo_jax.eval.protocol import presets
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.asked import Oracle
from tests.eval.tasks.writing import lines

QUERIES, SUPPORT = 10, 9
ANSWERS = {"What is 3? Answer:": "жук", "What is 5? Answer:": "word5"}
FLAMINGO = dataclasses.replace(presets.FLAMINGO, shots=(0, 2), seeds=(0, 1))
REQUEST = campaign.Request(FLAMINGO, batch=1)


def own(folder: pathlib.Path, **more: Any) -> Benchmark:
    """A set of questions about nothing; `more`: fields of every line."""
    for file, letter, count in (("queries", "q", QUERIES), ("support", "s", SUPPORT)):
        rows: list[Any] = [
            {"id": f"{letter}{i}", "question": f"What is {i}?", "answers": [f"word{i}"] * 4, **more}
            for i in range(count)
        ]
        lines(folder / f"custom/{file}.jsonl", rows)
    (folder / "custom/media").mkdir(exist_ok=True)
    return benchmarks.load("custom", folder)


def choices(folder: pathlib.Path) -> Benchmark:
    """A set of questions with two choices, of which the second is right."""
    return own(folder, choices=["no", "yes"], answers=["yes"])


def of(read: Benchmark, request: campaign.Request) -> dict[str, Any]:
    """What tells an evaluation from others, as the verb writes it."""
    return {
        "model": {"digest": "a", "dtype": ""},
        "request": request.identity(),
        "benchmarks": {read.name: {"split": read.split, "queries": len(read.queries)}},
    }


def ask(
    read: Benchmark,
    request: campaign.Request,
    folder: pathlib.Path,
    model: Oracle | None = None,
    shard: Shard = ALL,
) -> Oracle:
    """Asks what is not answered yet."""
    model = model or Oracle(ANSWERS)
    campaign.open_folder(folder, of(read, request))
    campaign.ask_all(model, [read], request, folder, shard)
    return model


def concluded(read: Benchmark, request: campaign.Request, folder: pathlib.Path) -> bytes:
    """results.json's bytes."""
    campaign.conclude([read], request, folder, {"name": "oracle"})
    return (folder / "results.json").read_bytes()


def settings(results: bytes, name: str = "custom") -> Any:
    return json.loads(results)["benchmarks"][name]["settings"]
