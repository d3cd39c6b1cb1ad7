"""What a workdir is made for stays; who may write to it is one process; bad folders are refused."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from flamingo_jax import workdir
from flamingo_jax.errors import InputError
from flamingo_jax.logs import read_rows
from flamingo_jax.workdir import ABSENT, Change, Workdir, write_atomically

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = {
    "seed": 0,
    "model": {"width": 64, "resampler": {"depth": 2}},
    "stages": ["language", "flamingo"],
    "train": {"steps": 100, "optimizer": {"lr": 1e-4}, "datasets": {"pages": {"batch": 8}}},
    "eval": {"tasks": []},
}
IDENTITY = {
    "seed": 0,
    "model.width": 64,
    "model.resampler.depth": 2,
    "stages": ("language", "flamingo"),
    "tokenizer": "2f1c",
    "train.datasets.pages.batch": 8,
}


def text(**changes) -> str:
    return json.dumps({**CONFIG, **changes}, indent=1, sort_keys=True) + "\n"


@pytest.fixture
def run(tmp_path) -> Workdir:
    made = Workdir(tmp_path / "runs" / "one")
    made.create()
    return made


def test_a_new_workdir(run):
    run.check_writable()
    run.check_disk(1)
    assert run.open_or_create(text(), IDENTITY) == []
    assert (run.path / "config.json").read_text(encoding="utf-8") == text()
    assert run.open_or_create(text(), IDENTITY) == []
    assert sorted(entry.name for entry in run.path.iterdir()) == ["config.json", "identity.json"]
    assert run.checkpoints("flamingo") == run.path / "checkpoints" / "flamingo"


@pytest.mark.parametrize(
    ("field", "value", "old", "new"),
    [
        ("seed", 1, "0", "1"),
        ("model.resampler.depth", 6, "2", "6"),
        ("stages", ("flamingo",), '["language", "flamingo"]', '["flamingo"]'),
        ("tokenizer", "77aa", '"2f1c"', '"77aa"'),
        ("train.datasets.pages.batch", 16, "8", "16"),
        ("seed", 0.5, "0", "0.5"),
    ],
)
def test_the_identity_may_not_change(run, field, value, old, new):
    run.open_or_create(text(), IDENTITY)
    before = {entry.name: entry.read_bytes() for entry in run.path.iterdir()}
    with pytest.raises(InputError) as caught:
        run.open_or_create(text(seed=5), {**IDENTITY, field: value})
    message = str(caught.value)
    assert f"{field}={old} " in message and f" {new};" in message and str(run.path) in message
    assert "\n" not in message
    assert {entry.name: entry.read_bytes() for entry in run.path.iterdir()} == before


def test_the_rest_may_change_and_is_told(run):
    run.open_or_create(text(), IDENTITY)
    train = {
        "steps": 200,
        "optimizer": {"lr": 1e-4},
        "datasets": {"pairs": {"batch": 4}, "pages": {"batch": 8}},
    }
    identity = {**IDENTITY, "train.datasets.pairs.batch": 4}
    config = text(train=train, eval={"tasks": ["cifar10"]})
    assert run.open_or_create(config, identity) == [
        Change("eval.tasks", [], ["cifar10"]),
        Change("train.datasets.pairs.batch", ABSENT, 4),
        Change("train.steps", 100, 200),
    ]
    assert (run.path / "config.json").read_text(encoding="utf-8") == config
    with pytest.raises(InputError, match=r"pairs\.batch"):
        run.open_or_create(config, {**identity, "train.datasets.pairs.batch": 5})
    changes = run.open_or_create(text(), IDENTITY)  # a dataset that is left out again
    assert Change("train.datasets.pairs.batch", 4, ABSENT) in changes and len(changes) == 3


def test_a_kill_between_the_two_files(run):
    run.open_or_create(text(), IDENTITY)
    (run.path / "config.json").unlink()
    (run.path / "config.json.new").write_text('{"half')
    run.open_or_create(text(), IDENTITY)
    assert (run.path / "config.json").read_text() == text()
    with pytest.raises(InputError, match="seed"):
        run.open_or_create(text(), {**IDENTITY, "seed": 1})


@pytest.mark.parametrize("name", ["identity.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_unreadable_files(run, name, content):
    run.open_or_create(text(), IDENTITY)
    (run.path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        run.open_or_create(text(), IDENTITY)


def test_checkpoints_without_an_identity(run):
    (run.checkpoints("flamingo") / "100").mkdir(parents=True)
    with pytest.raises(InputError, match=r"identity\.json"):
        run.open_or_create(text(), IDENTITY)


def test_folders_that_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(InputError, match=r"file.* cannot be made"):
            Workdir(path).create()
    with pytest.raises(InputError, match="cannot be written"):
        Workdir(tmp_path / "gone").check_writable()
    with pytest.raises(InputError, match=r"s3://bucket/run.* is no address of a bucket"):
        Workdir("s3://bucket/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_of_somebody_else(run):
    run.path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        run.check_writable()


def test_too_little_disk(run):
    free = shutil.disk_usage(run.path).free
    with pytest.raises(InputError) as caught:
        run.check_disk(2 * free)
    assert f"needs {2 * free / 1e9:.2f} GB" in str(caught.value) and str(run.path) in str(
        caught.value
    )


HOLD = """
import sys, time
from flamingo_jax.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_in_one_workdir(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError) as caught, run.lock():
            pytest.fail("two processes hold the lock")
        message = str(caught.value)
        assert f"process {holder.pid} on {socket.gethostname()}" in message
        assert str(run.path) in message and "\n" not in message
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock():  # nothing stale is left
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            with run.lock():
                pytest.fail("held twice")
    with run.lock():
        pass


def test_the_lock_ends_with_an_error(run):
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError("training failed")
    with run.lock():
        pass


def test_events(run):
    run.event("start", "began")
    run.event("resume", "went on after step 3", "flamingo", 3)
    rows = read_rows(run.path / "events.jsonl")
    assert [row["kind"] for row in rows] == ["start", "resume"]
    assert rows[1]["stage"] == "flamingo" and rows[1]["step"] == 3 and rows[1]["time"] > 1e9


def test_logs_and_curves(run):
    with run.log("metrics") as log:
        log.append({"stage": "flamingo", "step": 1})
    assert read_rows(run.path / "metrics.jsonl") == [{"stage": "flamingo", "step": 1}]
    scalars = run.scalars("flamingo", 0)
    scalars.write({"step": 1, "loss": 1.0})
    scalars.close()
    assert len(list((run.path / "tensorboard" / "flamingo").iterdir())) == 1


def test_replacing_a_file(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "ein Löffel\n")
    write_atomically(path, "two\n")
    assert path.read_text() == "two\n" and [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "is_primary", lambda: False)
    other = Workdir(tmp_path / "none")
    other.create()
    other.check_writable()
    other.check_disk(10**18)
    with other.lock():
        assert other.open_or_create(text(), IDENTITY) == []
    assert not other.path.exists()
