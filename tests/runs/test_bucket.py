"""A run in a bucket is the run on a disk: trained, killed, gone on with elsewhere, read."""

import os
import signal
import warnings

import numpy as np
import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax import load
from flamingo_jax.shapes import flatten_paths

ADDRESS = "gs://bucket/runs/one"
STEP = "runs/one/checkpoints/flamingo"


def committed(name: str) -> bool:
    return name == f"{STEP}/6/commit_success.txt"


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, trainer, undisturbed, same, folder, capsys):
    done = trainer.process(ADDRESS)
    assert done.code == 0, done.err
    same(type(folder)(bucket.download("runs/one", folder.path)), undisturbed)
    for name in ("config.json", "identity.json", "run.json", "finished", "report/index.html"):
        assert (folder.path / name).exists(), name
    assert not (folder.path / "lease.json").exists()
    assert sorted(os.listdir(folder.checkpoints())) == ["12", "6", "9"]
    read(bucket, undisturbed, capsys)


@pytest.mark.slow
def test_a_rehearsal_leaves_nothing(bucket, trainer):
    done = trainer.process(ADDRESS, "--check")
    assert done.code == 0 and "check passed" in done.out, done.err
    assert not bucket.names() and bucket.reads


@pytest.mark.slow
def test_killed_in_a_save_and_gone_on_with_elsewhere(
    bucket, trainer, undisturbed, same, folder, tmp_path, monkeypatch
):
    process = trainer.start(ADDRESS)

    def kill(name: str) -> None:
        if committed(name):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            raise ConnectionError("nobody is there any more")

    bucket.before_write = kill
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    bucket.before_write = lambda _: None
    assert bucket.names(f"{STEP}/6/") and f"{STEP}/3/commit_success.txt" in bucket.names()
    rows = bucket.text("runs/one/rows.jsonl").splitlines()
    assert len(rows) >= 6 * 16, "rows up to a step are there before it is saved"

    monkeypatch.setenv("FLAMINGO_RUNS", str(tmp_path / "another machine"))
    done = trainer.process(ADDRESS)
    assert done.code == 0, done.err
    folder = type(folder)(bucket.download("runs/one", folder.path))
    assert [row["step"] for row in folder.rows("events", kind="resume")] == [3]
    assert not folder.rows("events", kind="walk-back")
    same(folder, undisturbed)
    log = (folder.path / "logs" / "process-0.log").read_text()
    assert "started again" in log and "ended" in log


def read(bucket, undisturbed, capsys) -> None:
    """The verbs that read, at the address."""
    bucket.reads.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, wanted = load(ADDRESS), load(undisturbed.path)
    assert not [name for name in bucket.reads if "/opt/" in name]
    params = flatten_paths(wanted.params)
    for path, leaf in flatten_paths(loaded.params).items():
        assert np.array_equal(np.asarray(leaf), np.asarray(params[path])), path
    assert load(f"{ADDRESS}/checkpoints/flamingo/9").about["step"] == 9

    capsys.readouterr()
    assert cli.main(["inspect", ADDRESS]) == 0
    assert "stage flamingo: steps 6, 9, 12" in capsys.readouterr().out
    bucket.remove("runs/one/report/index.html")
    assert cli.main(["report", ADDRESS]) == 0
    assert "report " in capsys.readouterr().out
    assert bucket.find("runs/one/report/index.html")


@pytest.mark.parametrize(
    ("address", "said"),
    [("gs://nobody/run", "there is no such bucket"), ("gs://bucket", "is a whole bucket")],
)
def test_no_such_bucket(address, said, bucket, trainer, capsys):
    assert trainer.here(address) == 2
    assert said in capsys.readouterr().err
