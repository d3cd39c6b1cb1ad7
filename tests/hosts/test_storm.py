"""Kills at random moments of one run under launch/local.py: nothing is lost, nothing is doubled."""

import random
import time

import pytest

from flamingo_jax import checkpoint, logs

pytestmark = [pytest.mark.slow, pytest.mark.multihost]
KILLS = 20
STEPS = 200
SECONDS = 300
FLAGS = (
    f"--config.train.steps={STEPS}",
    # To start is what a life costs: nothing is compiled for validation.
    "--config.train.datasets.named.validation=False",
    "--config.train.datasets.told.validation=False",
)
SAVES = ("--config.checkpoint.every=2", "--config.checkpoint.keep=2")
HARDY = ("--quick-failures=1000", "--grace=0.2")


def wait_for(happened, supervisor) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_twenty_random_kills(training):
    """One in four comes while the processes start, the others some saves after they have begun."""
    training.end(training.supervise("calm", 2, *FLAGS, *SAVES, devices=1))
    rng, run = random.Random(0), training.workdir("storm")
    supervisor = training.supervise("storm", 2, *FLAGS, *SAVES, devices=1, options=HARDY)

    def restarts() -> set[int]:
        return {before for _, before in training.children(supervisor).values()}

    def begun() -> int:
        return len([row for row in run.rows("events") if row["kind"] in ("start", "resume")])

    def saved() -> int:
        return max(checkpoint.list_steps(run.checkpoints()), default=0)

    for life in range(KILLS):
        wait_for(lambda n=life: restarts() == {n}, supervisor)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 4))
        else:
            before = begun()
            wait_for(lambda n=before: begun() > n, supervisor)
            step = saved() + 2 * rng.randrange(4)
            wait_for(lambda n=step: saved() >= n, supervisor)
            time.sleep(rng.uniform(0, 0.2))
        training.kill(supervisor, rng.randrange(2))
    [told] = training.end(supervisor)
    assert told.count("died of SIGKILL") >= KILLS
    assert len(run.rows("events", kind="resume")) >= KILLS // 2
    assert len(training.rows("calm")) == STEPS * 2 * 8
    training.assert_same("storm", "calm")
    for process in range(2):  # each has written down its own half
        part = logs.list_parts(run.path / "rows.jsonl")[process]
        assert len(logs.read_rows(part)) == STEPS * 2 * 4
