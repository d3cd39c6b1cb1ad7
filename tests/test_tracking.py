"""Weights & Biases: nothing without a project, one clear line without the package, rows with it."""

import sys

import pytest

from flamingo_jax import tracking
from flamingo_jax.errors import InputError

ROW = {"stage": "flamingo", "kind": "train", "step": 3, "loss": 1.5, "note": "text", "time": 9.0}


def test_nothing_is_sent_without_a_project(tmp_path) -> None:
    tracker = tracking.Tracker("", tmp_path, "{}")
    tracker.write(ROW)
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"flamingo_jax\[wandb\]"):
        tracking.Tracker("project", tmp_path, "{}")


def test_rows_are_kept_offline_and_the_run_is_gone_on_with(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb`", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (3, 4):
        tracker = tracking.Tracker("project", tmp_path, '{"seed": 1}')
        tracker.write(ROW | {"step": step})
        tracker.close()
    name = (tmp_path / tracking.RUN_ID).read_text(encoding="ascii").strip()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2 and all(b"flamingo/train/loss" in f.read_bytes() for f in files)
