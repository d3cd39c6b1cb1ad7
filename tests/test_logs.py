"""Rows and curves go on after a kill as if nothing had happened."""

import importlib
import json
import math
import struct
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax import logs
from flamingo_jax.errors import InputError
from flamingo_jax.logs import MetricsLog, Scalars, read_rows

STAGES = ("language", "contrastive", "flamingo")


def row(stage: str, step: int, **more) -> dict:
    return {"stage": stage, "step": step, "kind": "train", "loss": 1 / (step + 3), **more}


def test_rows_read_back_equal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        row("flamingo", 1, text="ein Löffel\n", tiny=5e-324, third=1 / 3, huge=1.7e308),
        row("flamingo", 2, numbers=[1, 2.5], flag=True, nothing=None),
    ]
    with MetricsLog(path) as log:
        assert read_rows(path) == []
        log.append(rows[0])
        assert read_rows(path) == rows[:1]  # it is not held back
        log.append(*rows[1:])
    assert read_rows(path) == rows
    for line in path.read_text(encoding="utf-8").splitlines():
        keys = list(json.loads(line))
        assert keys == sorted(keys)


def test_numbers_of_arrays(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append(
            {"a": np.float32(0.1), "b": jnp.int32(3), "c": np.float64("nan"), "d": np.bool_(1)}
        )
        with pytest.raises(TypeError, match="ndarray"):
            log.append({"e": np.zeros(2)})
        log.append({"f": 1})
    first, second = read_rows(log.path)
    assert first["a"] == float(np.float32(0.1)) and first["b"] == 3 and first["d"] is True
    assert math.isnan(first["c"]) and second == {"f": 1}


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    with MetricsLog(path) as log:
        log.append(*(row(stage, step) for stage in STAGES for step in (10, 20, 30)))
        log.append({"kind": "note"})
        assert log.truncate_after(STAGES, "contrastive", 20) == 4
        assert [(r.get("stage"), r.get("step")) for r in read_rows(path)] == [
            ("language", 10),
            ("language", 20),
            ("language", 30),
            ("contrastive", 10),
            ("contrastive", 20),
            (None, None),
        ]
        log.append(row("contrastive", 30))
        assert read_rows(path)[-1] == row("contrastive", 30)
        assert log.truncate_after(STAGES, "contrastive", 30) == 0
        assert log.truncate_after(STAGES, "language", 0) == 6
    assert read_rows(path) == [{"kind": "note"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_file_and_unknown_stages(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.truncate_after(STAGES, "flamingo", 3) == 0
    assert not log.path.exists() and read_rows(log.path) == []
    with log:
        log.append(row("finetune", 1))
        before = log.path.read_bytes()
        with pytest.raises(InputError, match="finetune"):
            log.truncate_after(STAGES, "flamingo", 3)
    assert log.path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_file_equals_that_of_an_undisturbed_run(tmp_path):
    """Killed within any byte of the last row, resumed at step 2, run on to step 4."""
    rows = [row("flamingo", step, text="é" * 3) for step in range(1, 5)]
    with MetricsLog(tmp_path / "straight.jsonl") as log:
        log.append(*rows)
    whole = (tmp_path / "straight.jsonl").read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole) + 1):
        path = tmp_path / "killed.jsonl"
        path.write_bytes(whole[:end])
        with MetricsLog(path) as log:
            log.truncate_after(STAGES, "flamingo", 2)
            log.append(*rows[2:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b"", b'{"a": 1', b"x" * 200_000, b"\xff\xfe"])
@pytest.mark.parametrize("before", [b"", b'{"a": 0}\n'])
def test_appending_after_a_torn_line(tmp_path, before, torn):
    path = tmp_path / "events.jsonl"
    path.write_bytes(before + torn)
    with MetricsLog(path) as log:
        log.append({"a": 2})
    assert path.read_bytes() == before + b'{"a": 2}\n'


def test_lines_that_are_no_rows_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n[1]\n\xff\n\n{"a": 2}\n{"a": 3}')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    assert MetricsLog(path).truncate_after(STAGES, "flamingo", 1) == 5
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "flamingo", "step": 9}\n')
    monkeypatch.setattr(logs, "is_primary", lambda: False)
    with MetricsLog(path) as log:
        log.append({"a": 1})
        assert log.truncate_after(STAGES, "flamingo", 1) == 0
    scalars = Scalars(tmp_path / "tensorboard", 0)
    scalars.write({"step": 1, "loss": 1.0})
    scalars.close()
    assert read_rows(path) == [{"stage": "flamingo", "step": 9}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def curves(folder) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} as TensorBoard shows it: a restart hides what lies beyond its step."""
    proto: Any = importlib.import_module("tensorboardX.proto.event_pb2")
    shown: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = proto.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log") and event.session_log.status == 1:
                for points in shown.values():
                    for step in [step for step in points if step >= event.step]:
                        del points[step]
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_scalars(tmp_path):
    folder = tmp_path / "tensorboard" / "flamingo"
    scalars = Scalars(folder, 0)
    for step in range(1, 7):
        loss = np.float32(step)
        scalars.write(
            {"stage": "flamingo", "step": step, "kind": "train", "loss": loss, "note": "x"}
        )
        scalars.write({"step": step, "time": 1e9, "seconds": 0.5})
    assert curves(folder)["train/loss"] == {step: float(step) for step in range(1, 7)}
    resumed = Scalars(folder, 4)  # while the killed one has not closed its file
    for step in range(5, 7):
        resumed.write({"step": step, "kind": "train", "loss": -float(step)})
    resumed.close()
    scalars.close()
    shown = curves(folder)
    assert set(shown) == {"train/loss", "seconds"}
    assert shown["train/loss"] == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: -5.0, 6: -6.0}
    assert shown["seconds"] == {step: 0.5 for step in range(1, 5)}


def test_tensorboards_own_reader_sees_the_same(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step in (0, 3):
        scalars = Scalars(tmp_path, step)
        for later in range(step + 1, step + 6):
            scalars.write({"step": later, "loss": 10.0 * step + later})
        scalars.close()
    reader = accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    assert {e.step: e.value for e in reader.Scalars("loss")} == curves(tmp_path)["loss"]


def test_no_framework_is_imported(tmp_path):
    program = f"""
import sys
from flamingo_jax.logs import Scalars
assert "tensorboardX" not in sys.modules
scalars = Scalars({str(tmp_path)!r}, 0)
scalars.write({{"step": 1, "loss": 2.0}})
scalars.close()
print(*sorted(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert "tensorboardX" in modules
    assert not modules & {"torch", "tensorflow", "tensorboard", "orbax", "flax", "PIL"}
