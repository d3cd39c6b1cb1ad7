"""All of the shared data in one mixture, as experiments/shared_data.py trains on it."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from flamingo_jax import logs

EXPERIMENT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "shared_data.py"
ROLES = {"m3w", "align", "ltip", "vtp"}


@pytest.fixture
def train(shared, tmp_path):
    """Trains a variant on the shared folder as a user does; a function that reads its logs."""

    def train(variant, *flags):
        command = ["train", f"--config={EXPERIMENT}:{variant}", f"--workdir={tmp_path}", *flags]
        subprocess.run(
            [sys.executable, "-m", "flamingo_jax", *command],
            cwd=EXPERIMENT.parents[1],
            env={**os.environ, "FLAMINGO_SHARED": str(shared)},
            check=True,
        )
        return lambda name: logs.read_rows(tmp_path / f"{name}.jsonl")

    return train


def losses(rows, kind, name):
    """A dataset's losses in the Flamingo stage, by step."""
    wanted = {"kind": kind, "stage": "flamingo"}
    return [row[f"{name}/loss"] for row in rows if wanted.items() <= row.items()]


@pytest.mark.slow
def test_every_role_trains(train):
    read = train("tiny", "--config.data.record_rows=True")
    metrics = read("metrics")
    assert {row["stage"] for row in metrics} == {"language", "contrastive", "flamingo"}
    for name in ROLES:
        assert np.isfinite(losses(metrics, "train", name)).all()
        assert np.isfinite(losses(metrics, "validation", name)).all()
    assert {row["dataset"] for row in read("rows") if row["stage"] == "flamingo"} == ROLES
    assert not read("rejects")


@pytest.mark.slow
def test_every_loss_goes_down(train):
    """Each dataset's mean over the last tenth of the steps is below that over the first."""
    flags = ("--config.stages=('flamingo',)", "--config.data.versions=1")  # random frozen models
    metrics = train("alone", *flags)("metrics")
    for name in ROLES:
        for kind in ("train", "validation"):
            found = losses(metrics, kind, name)
            part = max(len(found) // 10, 1)
            assert np.mean(found[-part:]) < np.mean(found[:part]), (name, kind)
