"""Benchmarks in the middle of training: what is told, what is left alone, and what a kill costs."""

import json
import pathlib
import signal

import pytest

from flamingo_jax.__main__ import main
from tests.runs.conftest import Folder

FIGURES = ["colours/top1/0", "colours/top1/2_rices"]
EVALUATION = """
from flamingo_jax import config

def get_config():
    c = config.evaluation()
    c.benchmarks.colours = config.benchmark(name="custom", files={files!r})
    c.update(shots=(0, 2), selections=("rices",), seeds=(0,), batch=1)
    return c
"""


@pytest.fixture(scope="module")
def asked(trainer, once) -> Folder:
    """A finished run that was asked in between, in a process of its own."""

    def make(folder: pathlib.Path) -> None:
        done = trainer.process(folder, variant="asked")
        assert done.code == 0, done.err

    return Folder(once("asked", make))


def answers(folder: pathlib.Path) -> list[tuple[str, str, list[str]]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["key"], row["answer"], row["shown"]) for row in map(json.loads, lines)]


@pytest.mark.slow
def test_what_is_told_is_what_evaluate_tells_of_the_step(trainer, folder, tmp_path, one_device):
    steps = ("--config.train.steps=3", "--config.eval.every=2")
    assert trainer.here(folder.path, *steps, variant="asked") == 0
    rows = folder.rows("metrics", kind="evaluation")
    assert [row["step"] for row in rows] == [2, 3]  # the last, too
    pictures = trainer.experiment.parent / "pictures"
    files = {"queries": str(pictures.parent / "colours.jsonl"), "all.pictures": str(pictures)}
    (tmp_path / "evaluation.py").write_text(EVALUATION.format(files=files))
    checkpoint, after = folder.checkpoints() / "3", tmp_path / "after"
    argv = ["evaluate", f"--config={tmp_path}/evaluation.py", f"--checkpoint={checkpoint}"]
    assert main([*argv, f"--workdir={after}"]) == 0
    during = folder.path / "evaluations" / "00000003"
    assert answers(during) == answers(after)
    told = json.loads((after / "results.json").read_text())["benchmarks"]["colours"]["settings"]
    assert [rows[-1][name] for name in FIGURES] == [s["figures"]["top1"]["mean"] for s in told]
    assert (during / "report" / "index.html").is_file()
    page = (folder.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "../evaluations/00000003/report/index.html" in page


@pytest.mark.slow
def test_training_is_that_of_a_run_which_is_never_asked(asked, undisturbed):
    told = asked.rows("metrics", kind="evaluation")
    assert [row["step"] for row in told] == [5, 10, 12]
    others = [row for row in asked.rows("metrics") if row["kind"] != "evaluation"]
    assert others == undisturbed.rows("metrics")
    assert asked.meta()["fingerprints"] == undisturbed.meta()["fingerprints"]


@pytest.mark.slow
@pytest.mark.parametrize("die", ["add:3:SIGTERM", "add:3:SIGKILL"])
def test_stopped_or_killed_while_it_is_asked(die, trainer, asked, same, folder):
    done = trainer.process(folder.path, variant="asked", die=die)
    assert done.code == (143 if "TERM" in die else -signal.SIGKILL), done.err
    assert not folder.rows("metrics", kind="evaluation")
    kept = folder.path / "evaluations" / "00000005" / "predictions.jsonl"
    before = kept.read_bytes()
    assert before
    done = trainer.process(folder.path, variant="asked")
    assert done.code == 0, done.err
    assert folder.rows("events", kind="resume")[-1]["step"] == (5 if "TERM" in die else 3)
    assert kept.read_bytes().startswith(before)  # none is asked twice
    same(folder, asked)


def test_a_missing_file_is_told_before_the_first_step(trainer, folder, capsys):
    files = "(('queries','/nowhere.jsonl'),('all.pictures','.'))"
    missing = f"--config.eval.during.benchmarks.colours.files={files}"
    assert trainer.here(folder.path, missing, variant="asked") == 2
    assert "/nowhere.jsonl" in capsys.readouterr().err
    assert not folder.rows("metrics")


def test_no_benchmark_is_told_before_the_first_step(trainer, folder, capsys):
    assert trainer.here(folder.path, "--config.eval.every=5") == 2
    assert "config.eval.during.benchmarks is empty" in capsys.readouterr().err
    assert not folder.rows("metrics")
