"""The tests' experiment on one process, on two, and stopped by a signal to one of two."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flamingo_jax import logs
from flamingo_jax.checkpoint import list_steps

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600
pytestmark = [pytest.mark.slow, pytest.mark.multihost]


class Runs:
    """Starts trainings of one experiment, of 4 devices in all."""

    def __init__(self, experiment: pathlib.Path, folder: pathlib.Path, address):
        self.experiment, self.folder, self.address = experiment, folder, address

    def start(self, name: str, count: int) -> list[subprocess.Popen[str]]:
        address = self.address()
        environ = {**os.environ, "JAX_NUM_CPU_DEVICES": str(4 // count)}
        command = [sys.executable, "-m", "flamingo_jax", "train", f"--config={self.experiment}"]
        job = [f"--workdir={self.folder / name}", f"--coordinator={address}"]
        pipe = subprocess.PIPE
        return [
            subprocess.Popen(
                [*command, *job, f"--processes={count}", f"--process={process}"],
                **{"stdout": pipe, "stderr": pipe, "text": True, "cwd": ROOT, "env": environ},
            )
            for process in range(count)
        ]

    def end(self, started: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
        """Waits for all; what each has said."""
        try:
            told = [process.communicate(timeout=SECONDS)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        for process, text in zip(started, told, strict=True):
            assert process.returncode == code, text
        return told

    def metrics(self, name: str) -> list[dict]:
        return logs.read_rows(self.folder / name / "metrics.jsonl")

    def steps(self, name: str) -> list[int]:
        return list_steps(self.folder / name / "checkpoints" / "flamingo")

    def fingerprints(self, name: str) -> dict:
        folder = self.folder / name / "checkpoints" / "flamingo" / str(self.steps(name)[-1])
        return json.loads((folder / "meta" / "metadata").read_text())["fingerprints"]


@pytest.fixture(scope="module")
def runs(experiment, addresses, tmp_path_factory) -> Runs:
    made = Runs(experiment, tmp_path_factory.mktemp("runs"), addresses)
    made.end(made.start("one", 1))
    made.end(made.start("two", 2))
    return made


def test_two_processes_train_as_one(runs):
    one, two = runs.metrics("one"), runs.metrics("two")
    assert [row["step"] for row in one] == [row["step"] for row in two] and one
    for row, other in zip(one, two, strict=True):
        losses = [key for key in row if "loss" in key]
        assert losses
        for key in losses:
            np.testing.assert_allclose(other[key], row[key], rtol=1e-6, err_msg=key)


def test_a_signal_to_one_saves_one_step_and_the_run_goes_on(runs):
    log = runs.folder / "stopped/logs/process-1.log"
    started = runs.start("stopped", 2)
    deadline = time.monotonic() + SECONDS
    while not (log.exists() and "stage flamingo" in log.read_text()):
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    first, second = runs.end(started, 143)
    saved = runs.steps("stopped")[-1]
    assert saved < runs.steps("two")[-1]
    assert f"saved at step {saved} of" in first and "saved at" not in second
    for process in range(2):
        log = (runs.folder / f"stopped/logs/process-{process}.log").read_text()
        assert f"saved at step {saved} of" in log
    runs.end(runs.start("stopped", 2))
    assert runs.metrics("stopped") == runs.metrics("two")
    assert runs.fingerprints("stopped") == runs.fingerprints("two")
