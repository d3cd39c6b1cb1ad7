"""Two processes that share a bucket and no folder: killed in a save, they go on as on a disk."""

import dataclasses
import os
import signal

import pytest

from flamingo_jax import storage

pytestmark = [pytest.mark.slow, pytest.mark.multihost]


def test_two_processes_train_in_a_bucket(training, bucket, tmp_path, monkeypatch):
    training.run("disk", 2)
    there = dataclasses.replace(training, folder=storage.to_path("gs://bucket/hosts"))
    started = there.start("two", 2)

    def kill(name: str) -> None:
        if name == "hosts/two/checkpoints/flamingo/6/commit_success.txt":
            for process in started:
                os.kill(process.pid, signal.SIGKILL)
            raise ConnectionError("nobody is there any more")

    bucket.before_write = kill
    there.end(*started, code=-signal.SIGKILL)
    bucket.before_write = lambda _: None

    monkeypatch.setenv("FLAMINGO_RUNS", str(tmp_path / "other machines"))
    there.end(*there.start("two", 2))
    bucket.download("hosts/two", training.folder / "bucket")
    events = training.workdir("bucket").rows("events", kind="resume")
    assert [row["step"] for row in events] == [3]
    training.assert_same("bucket", "disk")
    for process in (0, 1):
        log = training.folder / "bucket" / "logs" / f"process-{process}.log"
        assert "started again" in log.read_text()
    assert (training.folder / "bucket" / "rows-1.jsonl").stat().st_size > 0
