"""Checkpoints of two processes: one tree on all their devices, and one mind about damage."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.multihost]


def host_state(step: int):
    rng = np.random.default_rng(step)
    params = {
        "xattn": {"kernel": rng.standard_normal((8, 4096)).astype(np.float32)},
        "gate": np.asarray(step, np.float32),
    }
    return params, {
        "count": np.asarray(step, np.int32),
        "mu": {"kernel": params["xattn"]["kernel"]},
    }


def on_mesh(tree):
    """The tree on all devices of all processes, rows of matrices apart."""
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    matrix, rest = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def place(x):
        sharding = matrix if x.ndim == 2 else rest
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, want):
    """Compares what this process holds with the whole."""
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(want), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        for part in x.addressable_shards:
            assert np.array_equal(np.asarray(part.data), y[part.index])


def part(task: str, folder: str) -> str:
    """What each of the processes does; → what it has to tell."""
    told = []
    params, opt = abstract(on_mesh(host_state(0)))
    reports = []
    stage = checkpoint.StageCheckpoints(
        folder, keep=2, every=1, report=lambda step, text: reports.append((step, text))
    )
    with stage:
        restored = stage.restore(params, opt)
        if restored is not None:
            assert_same((restored.params, restored.opt), host_state(restored.step))
        told.append(f"restored {restored and restored.step}")
        told += [f"report {step} {text}" for step, text in reports]
        if task == "save":
            begin = restored.step if restored else 0
            for step in range(begin + 1, begin + 4):
                params, opt = on_mesh(host_state(step))
                assert stage.save(step, params, opt, {"seed": 7})
    if task == "save":
        tree = on_mesh(host_state(0)[0])
        digest = checkpoint.save_frozen(folder, tree)
        assert checkpoint.save_frozen(folder, tree) == digest
        assert_same(checkpoint.load_frozen(folder, digest, abstract(tree)), host_state(0)[0])
        told.append(f"digest {digest}")
    return "\n".join(told)


def run(task: str, folder: pathlib.Path, processes: int = 2) -> list[str]:
    """Runs the processes to their end; → what each has told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = [folder.with_name(f"told-{index}") for index in range(processes)]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                task,
                folder,
                address,
                str(processes),
                str(index),
                told[index],
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        for index in range(processes)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [path.read_text() for path in told]


def test_two_processes(tmp_path):
    folder = tmp_path / "flamingo"
    out = run("save", folder)
    tree = host_state(0)[0]
    digest = checkpoint.save_frozen(tmp_path, tree)
    assert out == [f"restored None\ndigest {digest}"] * 2
    assert checkpoint.list_steps(folder) == [2, 3]
    loaded = checkpoint.load_params(folder)
    assert loaded.step == 3
    assert_same(loaded.params, host_state(3)[0])

    # A file that only the second process reads.
    theirs = folder / "3" / "params" / "ocdbt.process_1" / "d"
    assert theirs.is_dir()
    shutil.rmtree(theirs)
    outs = run("restore", folder)
    for out in outs:
        restored, report = out.splitlines()
        assert restored == "restored 2"
        assert report.startswith("report 3 step 3 is damaged (") and "using step 2" in report
    assert any("another process could not read it" in out for out in outs)
    assert checkpoint.list_steps(folder) == [2] and (folder / "3.damaged").is_dir()

    # One process goes on, then two.
    with checkpoint.StageCheckpoints(folder, keep=2, every=1) as stage:
        params, opt = on_mesh(host_state(3))
        restored = stage.restore(abstract(params), abstract(opt))
        assert restored is not None and restored.step == 2
        assert stage.save(3, params, opt, {})
    outs = run("save", folder)
    assert [out.splitlines()[0] for out in outs] == ["restored 3"] * 2
    assert checkpoint.list_steps(folder) == [5, 6]


if __name__ == "__main__":
    task, folder, address, count, index, told = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, int(count), int(index), heartbeat_timeout_seconds=10)
    pathlib.Path(told).write_text(part(task, folder))
