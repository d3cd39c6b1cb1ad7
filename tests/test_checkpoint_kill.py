"""A process that saves is killed at random moments: what it had saved is there, and whole."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def host_state(step: int):
    """The parameters and moments that belong to a step, as NumPy arrays."""
    rng = np.random.default_rng(step)
    params = {
        "resampler": {"latents": rng.standard_normal((64, 256)).astype(np.float32)},
        "embed": {"new": rng.integers(0, 256, (8, 16), np.uint8).view(jnp.bfloat16)},
    }
    opt = jax.eval_shape(OPTIMIZER.init, params)
    return params, jax.tree.map(lambda x: np.asarray(rng.normal(step, 9, x.shape), x.dtype), opt)


def shard(tree, devices: int):
    """Rows of matrices apart, on so many devices."""
    mesh = jax.make_mesh(
        (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    matrix, rest = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, matrix if x.ndim == 2 else rest), tree)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, want):
    assert jax.tree.structure(tree) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_until_killed(folder: str, devices: int) -> None:
    """What the killed process does: resumes, checks, and saves step after step."""
    jax.config.update("jax_num_cpu_devices", devices)
    params, opt = abstract(shard(host_state(0), devices))
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x, tree), donate_argnums=0)
    stage = checkpoint.StageCheckpoints(folder, keep=2, every=1)
    restored = stage.restore(params, opt)
    step = restored.step if restored else 0
    if restored:
        assert_same((restored.params, restored.opt), host_state(step))
    tell("ready", step)
    while True:
        step += 1
        params, opt = shard(host_state(step), devices)
        stage.save(step, params, opt, {"text": "x" * 1000})
        tell("whole", step - 1)  # as a save waits for the one before
        update((params, opt))


def tell(what: str, number: int) -> None:
    """Writes a line at once: a saver that is killed leaves no part of one."""
    os.write(1, f"{what} {number}\n".encode())


def fork_savers(folder: str) -> None:
    """Starts a saver for each line read; the imports, which take longest, are done once."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                save_until_killed(folder, devices=2)
            finally:
                os._exit(1)
        tell("started", child)
        os.waitpid(child, 0)
        tell("ended", child)


class Savers:
    """A process that starts savers, one at a time."""

    def __init__(self, folder: pathlib.Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def start(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("start\n")
        self.process.stdin.flush()
        kind, number = self.read()
        assert kind == "started"
        return number

    def read(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        kind, _, number = self.process.stdout.readline().partition(" ")
        return kind, int(number)


def kill_and_check(folder: pathlib.Path, kills: int, seed: int) -> int:
    """Kills a saving process again and again at random moments; → the last step it had saved."""
    rng = random.Random(seed)
    newest = 0
    savers = Savers(folder)
    try:
        for _ in range(kills):
            saver = savers.start()
            assert savers.read() == ("ready", newest)
            elapsed = 0.0
            for _ in range(rng.randint(1, 4)):
                start = time.monotonic()
                kind, newest = savers.read()
                elapsed = time.monotonic() - start
                assert kind == "whole"
            time.sleep(rng.uniform(0.0, 2 * elapsed))
            os.kill(saver, signal.SIGKILL)
            while (row := savers.read()) != ("ended", saver):
                newest = row[1]
            newest = check(folder, newest)
    finally:
        savers.process.kill()  # a saver that is left ends when it prints to nobody
        savers.process.communicate()
    return newest


def check(folder: pathlib.Path, at_least: int) -> int:
    """The newest step is one that may be there, and holds what it should; → that step."""
    with checkpoint.StageCheckpoints(folder, keep=2, every=1) as stage:
        steps = stage.steps()
        params, opt = abstract(shard(host_state(0), 8))
        restored = stage.restore(params, opt)
        # A kill may come before the step beyond `keep` was let go of: then opening does it.
        assert stage.steps() == steps[-2:], "a killed save has left a damaged step"
    if restored is None:
        assert at_least == 0
        return 0
    assert restored.step >= at_least
    assert_same((restored.params, restored.opt), host_state(restored.step))
    return restored.step


def test_kill(tmp_path):
    assert kill_and_check(tmp_path / "flamingo", kills=6, seed=0) > 6


@pytest.mark.slow
def test_kill_often(tmp_path):
    assert kill_and_check(tmp_path / "flamingo", kills=40, seed=1) > 40


if __name__ == "__main__":
    fork_savers(sys.argv[1])
