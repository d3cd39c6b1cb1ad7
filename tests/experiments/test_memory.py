"""The table of memory counts what the compiled step takes and the mesh's shards hold."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from flamingo_jax import sharding
from flamingo_jax.shapes import flatten_paths

pytestmark = pytest.mark.slow  # the demo's step, as users have it
MEMORY = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "memory.py"
BATCH = 8


def test_the_step_takes_what_is_counted():
    counted = runpy.run_path(str(MEMORY))
    stage, media = counted["assembled"]("demo", BATCH, 16)
    batches = stage.abstract_batches(media)
    compiled = stage.update.lower(stage.state, stage.frozen, batches).compile()
    told = compiled.memory_analysis()
    state = counted["bytes_of_state"](stage, 1)
    fed = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(batches))
    wanted = state["frozen"] + state["trained"] + state["moments"] + fed
    # The compiler leaves out what the loss does not read, such as the encoder of cached features.
    unread = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(stage.frozen["vision"]))
    assert wanted - unread <= told.argument_size_in_bytes * 1.001 <= wanted * 1.002
    kept = BATCH * counted["kept_for_backward"](stage, media)
    assert 0 < kept <= told.temp_size_in_bytes

    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    shards = sharding.param_shardings(stage.trainable, mesh)
    held = [
        np.prod(place.shard_shape(a.shape)) * a.dtype.itemsize
        for a, place in zip(jax.tree.leaves(stage.trainable), jax.tree.leaves(shards), strict=True)
    ]
    split = counted["bytes_of_state"](stage, 8)
    assert split["trained"] == sum(held) < state["trained"]
    moments = [a for a in jax.tree.leaves(stage.state.opt) if a.ndim]
    assert len(moments) == 2 * len(flatten_paths(stage.trainable))
    scalars = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(stage.state.opt) if not a.ndim)
    assert split["moments"] == 2 * split["trained"] + scalars


def test_the_table(capsys):
    runpy.run_path(str(MEMORY))["main"](["--sizes=demo", "--devices=1,8", "--batch=8"])
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| demo | ") and "in all, 8 devices" in head
