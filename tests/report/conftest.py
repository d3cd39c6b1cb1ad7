"""A workdir as a run would leave it, made in a moment: every file the report reads, no model."""

import json
import math
import pathlib
import random
from typing import Any

import pytest
from PIL import Image, ImageDraw

from flamingo_jax import config as configs

TIME = 1_795_000_000.0  # the unix time of the fake run's start
STEPS = {"language": 600, "contrastive": 300, "flamingo": 740}
DATASETS = {
    "language": ("text",),
    "contrastive": ("names",),
    "flamingo": ("pages", "alts", "descriptions", "clips"),
}
NAMES = ("woman firefighter: dark skin tone", "red apple", "waving hand", "flag: Chile", "snowman")
COLORS = ("#c0392b", "#e67e22", "#27ae60", "#2980b9", "#8e44ad")
LAYERS = 4
TAG = "<script>alert('x')</script>"  # what a page must show as text


def config(seed: int = 0, **overrides: Any) -> dict[str, Any]:
    c: Any = configs.base()
    c.name = "openmoji"
    c.seed = seed
    c.stages = tuple(STEPS)
    for stage, steps in STEPS.items():
        settings = configs.stage_settings(c, stage)
        settings.steps = steps
        for name in DATASETS[stage]:
            settings.datasets[name] = configs.dataset(source=f"openmoji:{name}")
    c.eval.tasks = ("openmoji",)
    c.model.resampler.latents = 8
    for field, value in overrides.items():
        configs.override(c, field, value)
    return json.loads(configs.to_json(c))


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics(chance: random.Random, until: dict[str, int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage, steps in until.items():
        for step in range(10, steps + 1, 5):
            row: dict[str, Any] = {"stage": stage, "step": step, "kind": "train"}
            for index, name in enumerate(DATASETS[stage]):
                loss = 0.6 + 0.25 * index + (6.2 - index) * math.exp(-step / 90)
                row[f"{name}/loss"] = loss * chance.uniform(0.9, 1.1)
                row[f"{name}/tokens"] = 900
                if stage == "contrastive":
                    row[f"{name}/retrieval"] = 1 - math.exp(-step / 120)
            row["grad_norm"] = chance.lognormvariate(0, 0.4) * 20 / (1 + step / 20)
            row["lr"] = 1e-3 * min(step / 60, 1)
            if stage == "flamingo":
                for layer in range(LAYERS):
                    opened = 0.7 * layer / LAYERS * (1 - math.exp(-step / 150))
                    row[f"gate_attention/{layer}"] = opened
                    row[f"gate_dense/{layer}"] = opened * 0.6
            rows.append(row)
            if step % 100 == 0:
                rows.append(validation(chance, stage, step, row))
    return rows


def validation(
    chance: random.Random, stage: str, step: int, train: dict[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": stage, "step": step, "kind": "validation"}
    for index, name in enumerate(DATASETS[stage]):
        row[f"{name}/loss"] = train[f"{name}/loss"] * 1.08 + 0.05
        if stage == "contrastive":
            row[f"{name}/retrieval"] = train[f"{name}/retrieval"] * 0.95
        if stage == "flamingo":
            open_eyes = 1 / (1 + math.exp((200 - step) / 40))
            row[f"{name}/shuffled_minus_right"] = (1.3 - 0.3 * index) * open_eyes
    return row


def speeds(chance: random.Random, until: dict[str, int]) -> list[dict[str, Any]]:
    rows, time = [], TIME
    for number, (stage, steps) in enumerate(until.items()):
        for step in range(10, steps + 1, 10):
            seconds = chance.uniform(2.2, 2.8)
            time += seconds
            rate = 10 / seconds
            rows.append({
                "stage": stage, "step": step, "time": time, "seconds": seconds,
                "steps_per_second": rate, "tokens_per_second": rate * 2048,
                "images_per_second": rate * (0, 128, 140)[number],
                "model_tflops": 0.1 * rate, "data_wait_seconds": 0.02 * seconds,
                "rss_gb": 1.1 + 0.8 * number + step / 5000,
            })  # fmt: skip
    return rows


def events(until: dict[str, int], alarm: bool) -> list[dict[str, Any]]:
    rows = []
    for number, (stage, steps) in enumerate(until.items()):
        start = TIME + 160 * number
        rows.append({"time": start, "stage": stage, "step": 0, "kind": "start", "text": "from 0"})
        if stage == "flamingo":
            rows.append({
                "time": start + 70, "stage": stage, "step": 300, "kind": "resume",
                "text": "goes on from checkpoints/flamingo/300",
            })  # fmt: skip
            if alarm:
                rows.append({
                    "time": start + 80, "stage": stage, "step": 300, "kind": "alarm",
                    "text": f"a shuffled picture costs 0.02 nats a token on alts {TAG}",
                })  # fmt: skip
        if steps == STEPS[stage]:
            rows.append(
                {"time": start + 150, "stage": stage, "step": steps, "kind": "finish", "text": ""}
            )
    return rows


def facts(seed: int, until: dict[str, int]) -> dict[str, Any]:
    parts = {"vision": 1_990_000, "language": 2_360_000, "resampler": 412_000, "xattn": 1_850_000}
    trained = {
        "language": {"language"},
        "contrastive": {"vision"},
        "flamingo": {"resampler", "xattn"},
    }
    return {
        "command": f"python -m flamingo_jax train --config=experiments/openmoji.py --workdir={TAG}",
        "versions": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "grain": "0.2.18"},
        "git": {"commit": "0123456789abcdef0123", "dirty": True},
        "devices": 8, "platform": "cpu",
        "mesh": {"replica": 1, "fsdp": 1, "tensor": 1}, "seed": seed,
        "parameters": [
            {"part": part, "count": count, "trainable": part in trained[stage], "stage": stage}
            for stage in STEPS for part, count in parts.items()
            if stage == "flamingo" or part in trained[stage]
        ],
        "stages": [
            {"stage": stage, "steps": steps, "seconds": steps / 4, "compile_seconds": 4.5}
            for stage, steps in until.items() if steps == STEPS[stage]
        ],
        "probe": {"matmul_gflops": 231.0}, "peak_rss_gb": 3.1,
        "attribution": ["Pictures: OpenMoji, CC BY-SA 4.0, https://openmoji.org"],
    }  # fmt: skip


def draw(folder: pathlib.Path, name: str, index: int, side: int = 72) -> str:
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    box = (side // 8, side // 8, side * 7 // 8, side * 7 // 8)
    shapes = (pen.ellipse, pen.rectangle, lambda b, **k: pen.pieslice(b, 30, 330, **k))
    shapes[index % 3](box, fill=COLORS[index % 5], outline="#222222", width=2)
    image.save(folder / "samples" / name)
    return f"samples/{name}"


def page(folder: pathlib.Path) -> dict[str, Any]:
    tokens, media, mask = ["<BOS>", "Three", " pictures", ":"], [0] * 4, [0, 1, 1, 1]
    texts = ("a woman fire fighter", f"then a red apple {TAG}", "and a hand that waves")
    for medium, text in enumerate(texts, start=1):
        pieces = ["<image>", *(" " + word for word in text.split(" ")), ".", "<EOC>"]
        tokens += pieces
        media += [medium] * len(pieces)
        mask += [0] + [1] * (len(pieces) - 1)
    images = [draw(folder, f"page-{index}.png", index) for index in range(len(texts))]
    return {"tokens": tokens, "media_of_token": media, "loss_mask": mask, "images": images}


def results(folder: pathlib.Path, seed: int, better: float) -> dict[str, Any]:
    checks = [
        ("combinations/16", "combinations: right one of 16 names", "%", 150, 93.0, 8.7, 6.3),
        ("combinations/family", "combinations: within their family", "%", 150, 52.7, 8.0, 8.2),
        (
            "combinations/sight",
            "combinations: shuffled minus right",
            "nats/token",
            150,
            1.4,
            None,
            0.0,
        ),
        ("concepts/color", "unseen concepts: first colour", "%", 140, 61.4, 21.4, 22.0),
        ("clips/motion", f"clips: which motion {TAG}", "%", 60, 25.0, 15.0, None),
    ]
    samples = []
    for group in ("unseen combinations", "unseen concepts"):
        for index in range(10):
            truth = NAMES[index % 5]
            right = index % 4 != 3
            samples.append({
                "group": group, "truth": truth, "correct": right,
                "image": draw(folder, f"{group[7:]}-{index}.png", index),
                "generated": truth if right else f"{NAMES[(index + 1) % 5]} {TAG}",
            })  # fmt: skip
    shots = {
        "key": "shots", "title": "Right of 16 names, by shots", "x": [0, 2, 4, 8],
        "x_name": "shots", "y_name": "%",
        "series": [
            {"name": "right picture", "y": [60.0, 52.0, 50.0, 58.0]},
            {"name": "shuffled picture", "y": [6.0, 7.0, 5.0, 8.0]},
        ],
    }  # fmt: skip
    task = {
        "title": "OpenMoji, held out", "split": "test", "seed": seed, "seconds": 51.0,
        "checks": [
            {"key": key, "title": title, "unit": unit, "n": n,
             "value": value + better * (1 if unit == "%" else 0.02),
             "control": control, "control_name": "shuffled", "chance": chance}
            for key, title, unit, n, value, control, chance in checks
        ],
        "curves": [shots], "samples": samples, "page": page(folder),
    }  # fmt: skip
    return {"tasks": {"openmoji": task}}


def make_run(
    folder: pathlib.Path,
    seed: int = 0,
    *,
    better: float = 0.0,
    flamingo_steps: int = STEPS["flamingo"],
    alarm: bool = False,
    **overrides: Any,
) -> pathlib.Path:
    """Writes a run: finished, or stopped at `flamingo_steps`; `better` is added to its figures."""
    (folder / "samples").mkdir(parents=True)
    chance = random.Random(seed)
    until = STEPS | {"flamingo": flamingo_steps}
    write_json(folder / "config.json", config(seed, **overrides))
    write_json(folder / "run.json", facts(seed, until))
    write_rows(folder / "metrics.jsonl", metrics(chance, until))
    write_rows(folder / "speed.jsonl", speeds(chance, until))
    write_rows(folder / "events.jsonl", events(until, alarm))
    if flamingo_steps == STEPS["flamingo"]:
        write_json(folder / "results.json", results(folder, seed, better))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run; not to be written to except by the report itself."""
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def fake_run():
    """`make_run` itself, for runs with settings of their own."""
    return make_run
