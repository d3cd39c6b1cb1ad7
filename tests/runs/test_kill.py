"""Killed and started again, a run is the one that was never killed: logs, parameters, moments."""

import dataclasses
import pathlib
import random
import signal
import subprocess
import time

import pytest

KILLED = -signal.SIGKILL
KILLS = 10


def flip_a_byte(folder: pathlib.Path) -> None:
    """Changes one bit in the middle of the largest file."""
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


LIVES = [
    ("metrics.jsonl:1", 0),  # before anything was saved, in the middle of a row
    ("save:2", 0),  # while step 6 is being written
    ("rows.jsonl:8", 3),  # in the middle of a step, when step 6 has long been written
]


@pytest.mark.slow
@pytest.mark.parametrize("lives", [LIVES[1:], LIVES])
def test_killed_at_several_moments(lives, trainer, undisturbed, same, folder):
    for die, at_least in lives:
        done = trainer.process(folder.path, die=die)
        assert done.code == KILLED, done.err
        begun = [row["step"] for row in folder.rows("events") if row["kind"] in ("start", "resume")]
        assert begun[-1] >= at_least, die
    assert trainer.process(folder.path).code == 0
    assert folder.rows("events", kind="resume")[-1]["step"] >= 6
    same(folder, undisturbed)


def test_stopped_and_killed_a_run_is_the_undisturbed_one(trainer, undisturbed, same, folder):
    done = trainer.process(folder.path, die="rows.jsonl:5:SIGTERM")
    assert done.code == 143
    last = done.err.splitlines()[-1]
    assert "saved at step 5 of 12" in last and "the same command goes on" in last
    assert "Traceback" not in done.err
    assert folder.meta()["step"] == 5
    assert [row["step"] for row in folder.rows("events", kind="preempted")] == [5]
    # In the middle of a row of step 10; steps 6 and 9 are written, or step 5 is the newest still.
    assert trainer.process(folder.path, die="rows.jsonl:5").code == KILLED
    assert trainer.process(folder.path).code == 0
    first, second = (row["step"] for row in folder.rows("events", kind="resume"))
    assert first == 5 and second in (5, 6, 9)
    same(folder, undisturbed)


@pytest.mark.slow
def test_a_flipped_byte_is_noticed(trainer, undisturbed, same, tmp_path):
    folder = undisturbed.copy(tmp_path / "run")
    flip_a_byte(folder.checkpoints() / "12" / "params")
    done = trainer.process(folder.path)
    assert done.code == 0
    [event] = folder.rows("events", kind="walk-back")
    for text in (event["text"], done.err):
        assert "step 12 is damaged" in text and "using step 9" in text
    assert event["stage"] == "flamingo" and event["step"] == 12
    assert folder.rows("events", kind="resume")[-1]["step"] == 9
    same(folder, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments(trainer, same, folder, tmp_path):
    """At least KILLS of all stages; where a run ends before, it is compared and another begins.

    tests/hosts/test_storm.py kills 20 times.

    Moments are spread over as long as a whole run took here: with a fixed bound, slower machines
    would kill each life before its first step.
    """
    flags = ("--config.train.steps=60", "--config.checkpoint.every=4")

    def started(run):
        """The process of a life that has just said it starts or resumes."""
        before = len(run.rows("events"))
        process = trainer.start(run.path, *flags, variant="stages")
        while process.poll() is None and len(run.rows("events")) == before:
            time.sleep(0.01)
        return process

    wanted, again = (dataclasses.replace(folder, path=tmp_path / n) for n in ("wanted", "again"))
    assert trainer.process(wanted.path, *flags, variant="stages").code == 0
    process, begin = started(again), time.monotonic()  # its programs are in the cache by now
    _, err = process.communicate()
    assert process.returncode == 0, err
    longest = time.monotonic() - begin
    same(again, wanted)
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        folder = dataclasses.replace(folder, path=tmp_path / f"run-{runs}")
        while True:
            process = started(folder)
            try:
                _, err = process.communicate(timeout=rng.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                _, err = process.communicate()
            if process.returncode != KILLED:
                assert process.returncode == 0, err
                break
            kills += 1
        same(folder, wanted)
