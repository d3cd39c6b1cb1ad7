"""`train` from its flags to its folder: lengths, changes, alarms, accounts, what it refuses."""

import json
import pathlib
import shutil
import tempfile
import time

import pytest

from flamingo_jax.checkpoint import load_frozen, load_params
from flamingo_jax.fingerprint import tree_leaves
from flamingo_jax.workdir import Workdir


@pytest.mark.slow
def test_check_leaves_nothing(trainer, tmp_path, one_device, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert trainer.here(tmp_path / "run", "--check") == 0
    assert "check passed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not any((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("nats", "alarms"),
    [
        pytest.param(0.1, True, marks=pytest.mark.slow),
        pytest.param(-0.1, False, marks=pytest.mark.slow),
    ],
)
def test_the_plateau_alarm(nats, alarms, trainer, folder, tmp_path, one_device, capsys):
    """Pictures all alike teach nothing: a shuffled one costs exactly as much as the right one."""
    alike = trainer.beside(tmp_path / "alike", alike=True)
    flags = ("--config.train.steps=3", "--config.alarm.step=2", f"--config.alarm.nats={nats}")
    flags += ("--config.data.augment.flip=0", "--config.data.augment.brightness=0")
    flags += ("--config.data.augment.contrast=0", "--config.data.augment.saturation=0")
    assert alike.here(folder.path, *flags, "--config.data.augment.hue=0") == 0
    measured = folder.rows("metrics", kind="validation")
    assert [row["step"] for row in measured] == [2, 3]
    for row in measured:
        assert row["named/shuffled_minus_right"] == row["told/shuffled_minus_right"] == 0
    wanted = [2, 3] if alarms else []
    assert [row["step"] for row in folder.rows("metrics", kind="alarm")] == wanted
    assert [row["step"] for row in folder.rows("events", kind="alarm")] == wanted
    assert capsys.readouterr().err.count("ALARM: text-only plateau: at step") == len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_bad_records(cached, trainer, folder, tmp_path, one_device, capsys):
    """A picture that cannot be read is replaced, counted, and no row used."""
    broken = trainer.beside(tmp_path / "broken")
    bad = tmp_path / "broken" / "pictures" / "1.png"
    bad.write_bytes(b"no picture")
    flags = ("--config.train.steps=4", f"--config.data.cache_features={cached}")
    assert broken.here(folder.path, *flags, "--config.data.versions=1") == 0
    rejects = folder.rows("rejects", stage="flamingo")
    assert {row["dataset"] for row in rejects} == {"named", "told"}
    assert all(1 <= row["step"] <= 4 and row["index"] == 0 for row in rejects)
    events = folder.rows("events", kind="rejects")
    assert len(events) == 2
    for event, dataset in zip(events, ("named", "told"), strict=True):
        [reason] = {row["reason"] for row in rejects if row["dataset"] == dataset}
        count = sum(row["dataset"] == dataset for row in rejects)
        assert f"dataset {dataset}: " in event["text"]
        assert event["text"].endswith(f": {count} times {reason}")
    assert all(event["text"] in capsys.readouterr().err for event in events[:1])
    rows = folder.rows("rows")
    assert len(rows) == 4 * 2 * 8
    assert 0 not in {row["index"] for row in rows}  # 1.png, the first of the training split


def one_line(capsys) -> str:
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.train.stesp=3"], "did you mean 'steps'?"),
        (["--config.train.steps=three"], "--config.train.steps=three"),
        (["--config.model.vision.variant=F9"], "config.model.vision.variant='F9'"),
        (["--config.trainable=('^xatn/',)"], "'^xatn/'"),
        (["--config.checkpoint.min_free_gb=1e9"], "GB free and the run needs"),
        (["--config.train.datasets.named.batch=12"], "the batch of dataset 'named' is 12"),
        (["--config.mesh.tensor=3"], "config.mesh"),
        (["--config.train.datasets.told.path=absent"], "'absent'"),
        (["--config.train.datasets.told.source=floder"], "'floder'"),
        (["--config.train.datasets.named.length=2"], "length=2"),
        (["--config.stages=('flamingo','lagnuage')", "--check"], "'lagnuage'"),
    ],
)
def test_refused(flags, said, trainer, folder, capsys):
    """Bad input is one line and exit code 2, and the folder can be used with a mended config."""
    assert trainer.here(folder.path, *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if not line.startswith("stage flamingo: frozen")]
    assert len(told) == 1 and told[0].startswith("flamingo train: ") and said in told[0]
    assert not (folder.path / "checkpoints" / "flamingo" / "1").exists()


def test_a_refused_config_binds_nobody(trainer, folder, capsys):
    """Another identity is refused for what is wrong with it alone, which is looked at later."""
    assert trainer.here(folder.path, "--config.trainable=('^xatn/',)") == 2
    assert trainer.here(folder.path, "--config.train.datasets.named.path=absent") == 2
    assert (folder.path / "identity.json").exists()
    capsys.readouterr()
    other = ("--config.seed=1", "--config.checkpoint.min_free_gb=1e9")
    assert trainer.here(folder.path, *other) == 2
    assert "GB free and the run needs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_config_is_mended(trainer, folder, one_device, capsys):
    assert trainer.here(folder.path, "--config.trainable=('^xatn/',)") == 2
    assert trainer.here(folder.path, "--config.train.datasets.named.path=absent") == 2
    capsys.readouterr()
    assert trainer.here(folder.path, "--config.train.steps=1") == 0


def test_folders_that_cannot_be_written(trainer, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run", pathlib.Path("/proc/run")):
        assert trainer.here(workdir) == 2
        assert f"--workdir={workdir}" in one_line(capsys)
    assert trainer.here("s3://bucket/run") == 2
    assert "is no address of a bucket" in one_line(capsys)


# What is compared with a run that another process may be making comes last.


def test_a_finished_run_is_left_alone(trainer, undisturbed, tmp_path, capsys):
    folder = undisturbed.copy(tmp_path / "run")
    shutil.copy(undisturbed.path / "finished", folder.path)
    before, metas = folder.rows("events"), folder.meta()
    assert trainer.here(folder.path) == 0
    said = capsys.readouterr()
    assert "is finished" in said.err and str(folder.path / "report" / "index.html") in said.out
    assert folder.rows("events") == before and folder.meta() == metas


@pytest.mark.slow
def test_more_steps(trainer, undisturbed, same, folder, capsys):
    """Ten steps, the same command again, then two more: the run of twelve."""
    done = trainer.process(folder.path, "--config.train.steps=10")
    assert done.code == 0, done.err
    page = folder.path / "report" / "index.html"
    assert page.is_file() and str(page) in done.out
    assert max(row["step"] for row in folder.rows("metrics")) == 10

    before, start = folder.rows("events"), time.monotonic()
    assert trainer.here(folder.path, "--config.train.steps=10") == 0
    assert time.monotonic() - start < 30
    said = capsys.readouterr()
    assert "is finished" in said.err and str(page) in said.out
    assert folder.rows("events") == before

    done = trainer.process(folder.path)
    assert done.code == 0 and "train.steps: 10 before, 12 now" in done.err
    assert folder.rows("events", kind="resume")[-1]["step"] == 10
    same(folder, undisturbed)


@pytest.mark.slow
def test_datasets_and_weights_may_change(trainer, undisturbed, folder, tmp_path, one_device):
    """Begun with one dataset, gone on with two: the new one begins with its first row."""
    alone = trainer.beside(tmp_path / "alone")
    text = alone.experiment.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(True) if "datasets.told =" not in line]
    alone.experiment.write_text("".join(lines), encoding="utf-8")
    assert alone.here(folder.path, "--config.train.steps=4") == 0
    assert folder.meta()["first_step"] == {"named": 0}

    flags = ("--config.train.steps=6", "--config.train.datasets.named.weight=2.0")
    assert trainer.here(folder.path, *flags, "--config.checkpoint.every=5") == 0
    changes = [row["text"] for row in folder.rows("events", kind="config")]
    known = ("train.steps: 4 before, 6 now", "train.datasets.named.weight: 1.0")
    for field in (*known, "checkpoint.every: 3", "datasets.told"):
        assert any(field in text for text in changes), field
    assert folder.meta(step=5)["first_step"] == folder.meta()["first_step"]
    assert folder.meta()["first_step"] == {"named": 0, "told": 4}

    def indices(run, dataset, low, high):
        rows = run.rows("rows", dataset=dataset)
        return [row["index"] for row in rows if low < row["step"] <= high]

    assert not indices(folder, "told", 0, 4)
    assert indices(folder, "told", 4, 6) == indices(undisturbed, "told", 0, 2) != []
    assert indices(folder, "named", 0, 6) == indices(undisturbed, "named", 0, 6) != []


def test_what_is_frozen_stays(undisturbed):
    """The frozen weights are written once, and neither moments nor steps hold any of them."""
    [folder] = (undisturbed.path / "frozen").iterdir()
    metas = [undisturbed.meta(step=step) for step in (6, 9, 12)]
    assert [meta["frozen"] for meta in metas] == [folder.name] * 3
    frozen = tree_leaves(load_frozen(undisturbed.path, folder.name))  # verifies the digest
    assert {path.split("/")[0] for path in frozen} == {"embed", "language", "vision"}
    trained = metas[-1]["fingerprints"]["params"].keys()
    assert trained and not frozen.keys() & trained
    paths = {"mu": set(), "nu": set()}
    for key in metas[-1]["fingerprints"]["opt"]:
        for moment in paths:
            _, found, path = key.partition(f"/{moment}/")
            paths[moment] |= {path} if found else set()
    assert paths == {"mu": trained, "nu": trained}


def test_trained_parameters_change(undisturbed):
    first, last = (load_params(undisturbed.checkpoints(), step=step).params for step in (6, 12))
    first, last = tree_leaves(first), tree_leaves(last)
    assert all((first[path] != last[path]).any() for path in first)


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("model.language.width=64", "model.language.width"),
        ("seed=1", "seed"),
        ("train.datasets.told.batch=16", "train.datasets.told.batch"),
        ("trainable=('^xattn/',)", "trainable"),
        ("tokenizer.image=text", "tokenizer.image"),
        ("stages=('language','flamingo')", "config.pretrain.language.steps"),
    ],
)
def test_another_identity_is_refused(flag, field, trainer, undisturbed, tmp_path, capsys):
    folder = undisturbed.copy(tmp_path / "run")
    before = folder.rows("metrics")
    assert trainer.here(folder.path, f"--config.{flag}") == 2
    assert field in one_line(capsys)
    assert folder.rows("metrics") == before
    assert json.loads((folder.path / "config.json").read_text())["seed"] == 0


def test_two_processes_in_one_folder(trainer, undisturbed, tmp_path, capsys):
    folder = undisturbed.copy(tmp_path / "run")
    with Workdir(folder.path).lock():
        assert trainer.here(folder.path) == 2
    assert "is in use by process" in one_line(capsys)
