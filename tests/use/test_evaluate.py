"""The verb `evaluate`, from a checkpoint and files to results and a page."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.__main__ import main
from flamingo_jax.errors import EXIT_BAD_INPUT

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A set of questions about plain pictures."""
    folder = tmp_path_factory.mktemp("benchmarks")
    media = folder / "custom" / "media"
    media.mkdir(parents=True)
    for name, count in (("support", 6), ("queries", 5)):
        lines = []
        for number in range(count):
            colour = COLOURS[number % 3]
            Image.new("RGB", (32, 32), colour).save(media / f"{name}{number}.png")
            line = {"image": f"{name}{number}.png", "question": f"no. {number}?"}
            lines.append(json.dumps({**line, "answers": [colour]}))
        (folder / "custom" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def evaluate(workdir: pathlib.Path, checkpoint: pathlib.Path, root: pathlib.Path, *more: str):
    flags = ["--benchmarks=custom", f"--root={root}", "--config.shots=0,2", "--config.beams=2"]
    paths = [f"--checkpoint={checkpoint}", f"--workdir={workdir}"]
    code = main(["evaluate", *paths, *flags, "--config.selections=random,rices", *more])
    if code:
        return code, {}
    lines = (workdir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    asked = {(row["shots"], row["selection"], row["key"]) for row in rows}
    assert len(asked) == len(rows) == 15
    return code, json.loads((workdir / "results.json").read_text())


def test_from_files_to_a_page(tiny_workdir, root, tmp_path, capsys):
    code, results = evaluate(tmp_path / "a", tiny_workdir.path, root)
    assert code == 0 and "top-1" in capsys.readouterr().out
    entry = results["benchmarks"]["custom"]
    pairs = [(setting["shots"], setting["selection"]) for setting in entry["settings"]]
    assert pairs == [(0, "random"), (2, "random"), (2, "rices")]
    assert entry["queries"] == 5 and entry["support"] == 6
    page = (tmp_path / "a" / "report" / "index.html").read_text(encoding="utf-8")
    assert "no. 3?" in page and (tmp_path / "a/report/pictures/custom-000004.jpg").exists()
    # The most similar one stands last: a query's colour is its own.
    nearest = next(row for row in entry["settings"] if row["selection"] == "rices")["prompts"]
    assert [int(prompt["shots"][-1]) % 3 for prompt in nearest] == [0, 1, 2]

    before = (tmp_path / "a" / "predictions.jsonl").read_bytes()
    assert evaluate(tmp_path / "a", tiny_workdir.path, root) == (0, results)
    assert (tmp_path / "a" / "predictions.jsonl").read_bytes() == before, "nothing is asked again"

    code, _ = evaluate(tmp_path / "a", tiny_workdir.path, root, "--config.queries=3")
    assert code == EXIT_BAD_INPUT and "another evaluation" in capsys.readouterr().err


def test_one_sentence(tiny_workdir, root, tmp_path, capsys):
    cases = [
        (["--benchmarks=custom"], "needs --checkpoint=DIR"),
        ([f"--checkpoint={tiny_workdir.path}", "--workdir=x"], "--benchmarks=NAME"),
        (["--checkpoint=x", "--workdir=x", "--benchmarks=cocoa"], "no benchmark 'cocoa'"),
        (
            [f"--checkpoint={tiny_workdir.path}", f"--workdir={tmp_path}", "--benchmarks=coco"],
            "needs the folder coco/train2014",
        ),
    ]
    for flags, words in cases:
        assert main(["evaluate", *flags]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert words in said and len(said.splitlines()) == 1, said


def test_the_list(root, capsys):
    assert main(["evaluate", "--list", f"--root={root}"]) == 0
    listed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in listed.splitlines() if not line.startswith(" ")}
    assert lines["custom"].endswith(" found") and lines["vqav2"].endswith("not found")
    assert np.sum([line.endswith("not found") for line in lines.values()]) == len(lines) - 1
