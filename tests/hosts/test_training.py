"""Processes of one job train as one process does; a signal to one stops all at one step."""

import os
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

import flamingo_jax
from flamingo_jax import assemble, config, sharding
from flamingo_jax.checkpoint import StageCheckpoints, list_steps
from flamingo_jax.data.tokenizer import load_tokenizer
from flamingo_jax.fingerprint import tree_leaves

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600
pytestmark = [pytest.mark.slow, pytest.mark.multihost, pytest.mark.timeout(3600)]

# (processes of 2 devices, size of the tensor axis): inside a process, and over two.
LAYOUTS = ((1, 1), (2, 4), (4, 2), (4, 4))


@pytest.fixture(scope="module")
def trained(demo_size) -> Callable[[int, int], str]:
    """trained(PROCESSES, TENSOR): the name of a training of that layout, made once."""
    made = set()

    def once(processes: int, tensor: int) -> str:
        name = f"{processes}-{tensor}"
        if name not in made:
            demo_size.run(name, processes, f"--config.mesh.tensor={tensor}")
            made.add(name)
        return name

    return once


def test_processes_train_as_one(demo_size, trained):
    alone = trained(1, 1)
    wanted = demo_size.losses(alone)
    rows, rejects = demo_size.rows(alone), demo_size.rejects(alone)
    assert {step for step, kind, _ in wanted if kind == "train"} == set(range(1, 21))
    assert len(rows) == 20 * 2 * 8 and rejects
    for layout in LAYOUTS[1:]:
        name = trained(*layout)
        losses = demo_size.losses(name)
        assert losses.keys() == wanted.keys()
        for key, loss in losses.items():
            np.testing.assert_allclose(loss, wanted[key], rtol=1e-6, err_msg=f"{name} {key}")
        assert demo_size.rows(name) == rows and demo_size.rejects(name) == rejects, name


def test_one_is_killed_and_the_run_ends_as_if_it_were_not(demo_size, trained):
    """By kill -9, under launch/local.py, while the tensor axis spans both processes."""
    wanted = trained(2, 4)
    supervisor = demo_size.supervise("killed", 2, "--config.mesh.tensor=4")
    deadline = time.monotonic() + SECONDS
    run = demo_size.workdir("killed")
    while not list_steps(run.checkpoints()):
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    demo_size.kill(supervisor, 1)
    [told] = demo_size.end(supervisor)
    assert "process 1 died of SIGKILL" in told and "restart 1 of" in told
    assert [row["step"] for row in run.rows("events", kind="resume")] == [10]
    demo_size.assert_same("killed", wanted)


def test_four_processes_checkpoint_elsewhere(demo_size, trained):
    """Restored with its moments on one device and on eight, and loaded for use."""
    run = demo_size.workdir(trained(4, 4))
    saved = run.meta()["fingerprints"]["params"].keys()
    c = config.finish(config.load(str(demo_size.experiment)))
    tokenizer = load_tokenizer(run.path / "tokenizer")
    vocabulary = assemble.Vocabulary(tokenizer.vocab, len(tokenizer.new_tokens))
    found = []
    for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(2, 2, 2)):
        stage = assemble.stage(c, "flamingo", vocabulary, mesh)
        with StageCheckpoints(run.checkpoints(), keep=2, every=10) as checkpoints:
            restored = checkpoints.restore(stage.state.params, stage.state.opt)  # and verified
        assert restored is not None and restored.step == 20
        found.append(tree_leaves(restored.params))
        assert {len(leaf.sharding.device_set) for leaf in found[-1].values()} == {mesh.size}
    assert found[0].keys() == found[1].keys() == saved
    for path, leaf in found[0].items():
        assert np.array_equal(leaf, found[1][path]), path
    used = tree_leaves(flamingo_jax.load(run.path).params)
    assert all(np.array_equal(leaf, used[path]) for path, leaf in found[0].items())


def test_four_processes_checkpoint_in_a_notebook(demo_size, trained, monkeypatch):
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel")
    folder = ROOT / "experiments" / "notebooks"
    monkeypatch.setenv("FLAMINGO_CHECKPOINT", str(demo_size.workdir(trained(4, 4)).path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(folder / "01_prompt.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=where
    )
    client.execute()  # raises what a cell raises


def test_a_signal_to_one_saves_one_step_and_the_run_goes_on(training):
    training.run("whole", 2)
    log = training.folder / "stopped/logs/process-1.log"
    started = training.start("stopped", 2)
    deadline = time.monotonic() + SECONDS
    while not (log.exists() and "stage flamingo" in log.read_text()):
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    first, second = training.end(*started, code=143)
    saved = training.workdir("stopped").meta()["step"]
    assert saved < training.workdir("whole").meta()["step"]
    assert f"saved at step {saved} of" in first and "saved at" not in second
    for process in range(2):
        log = (training.folder / f"stopped/logs/process-{process}.log").read_text()
        assert f"saved at step {saved} of" in log
    training.run("stopped", 2)
    training.assert_same("stopped", "whole")
