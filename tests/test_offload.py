"""Frozen weights on the hosts: the same numbers, the same files, and who is refused."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax import assemble, checkpoint, config, fingerprint, offload, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import flatten_paths
from tests import small

pytestmark = pytest.mark.usefixtures("smallest")


def stage_of(where: str, remat: str, **sizes: int) -> assemble.Stage:
    """Three blocks in groups of two and one, of a model that is shown pixels."""
    c = small.described()
    c.model.language.blocks, c.model.xattn.every = 3, 2
    c.model.remat, c.mesh.offload = remat, where
    c.train.datasets.pages = config.dataset(layout="page", batch=4, length=small.T, images=2)
    return assemble.stage(config.finish(c), "flamingo", small.VOCABULARY, small.make_mesh(**sizes))


def values(stage: assemble.Stage) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    leaves = flatten_paths(stage.abstract)
    return {path: rng.normal(0, 0.3, a.shape).astype(np.float32) for path, a in leaves.items()}


def trained(stage: assemble.Stage) -> list[np.ndarray]:
    """Everything that two steps and a validation on pixels give."""
    pixels = np.random.default_rng(1).integers(0, 255, (4, 2, 1, small.SIDE, small.SIDE, 3))
    rows = dataclasses.replace(small.example(4, 2), media=pixels.astype(np.uint8))
    batches = sharding.to_devices({"pages": rows}, stage.mesh)
    state, frozen = small.begin(stage, values(stage))
    told = []
    for _ in range(2):
        state, metrics = stage.update(state, frozen, batches)
        told.append(metrics)
    told.append(stage.evaluate(state.params, frozen, batches))
    return jax.tree.leaves(jax.device_get((told, state)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "sizes"), [("none", {}), ("full", {"replica": 2, "fsdp": 2, "tensor": 2})]
)
def test_training_is_the_same_bit_for_bit(remat, sizes):
    here, there = (trained(stage_of(where, remat, **sizes)) for where in ("none", "frozen"))
    assert len(here) > 50
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


def test_matrices_of_frozen_blocks_and_encoder_lie_on_the_hosts_and_nothing_else():
    stage = stage_of("frozen", "none")
    trees = {"trainable": stage.trainable, "frozen": stage.frozen, "state": {"s": stage.state}}
    lent = {
        f"{name}/{path}"
        for name, tree in trees.items()
        for path, leaf in flatten_paths(tree).items()
        for part in jax.tree.leaves(leaf)
        if part.sharding.memory_kind == offload.HOST
    }
    frozen = flatten_paths(stage.frozen)
    expected = {
        f"frozen/{path}"
        for path in frozen
        if path.startswith(("language/blocks/", "vision/")) and path.endswith("kernel")
    }
    assert lent == expected
    assert {path.split("/")[1] for path in lent} == {"language", "vision"}
    back = flatten_paths(offload.on_devices(stage.frozen))
    here = flatten_paths(stage_of("none", "none").frozen)
    assert {path: a.sharding for path, a in back.items()} == {
        path: a.sharding.with_memory_kind("device") for path, a in here.items()
    }


def test_an_encoder_that_is_trained_in_part_stays_on_the_devices():
    c = small.described()
    c.mesh.offload = "frozen"
    c.trainable = (*c.trainable, "^vision/nfnet/final/")
    c.train.datasets.pages = config.dataset(layout="page", batch=4, length=small.T, images=2)
    stage = assemble.stage(config.finish(c), "flamingo", small.VOCABULARY, small.make_mesh())
    kinds = {a.sharding.memory_kind for a in jax.tree.leaves(stage.frozen["vision"])}
    assert offload.HOST not in kinds


def test_files_and_fingerprints_do_not_tell_where_weights_lay(tmp_path):
    sizes = {"fsdp": 2, "tensor": 2}
    there, here = (stage_of(where, "none", **sizes) for where in ("frozen", "none"))
    lent, own = (small.begin(stage, values(stage))[1] for stage in (there, here))
    assert fingerprint.fingerprints(lent) == fingerprint.fingerprints(own)
    digest = checkpoint.save_frozen(tmp_path, lent)
    assert checkpoint.save_frozen(tmp_path, own) == digest
    for target in (there.frozen, here.frozen, None):
        restored = checkpoint.load_frozen(tmp_path, digest, target)
        for path, a in flatten_paths(restored).items():
            np.testing.assert_array_equal(a, flatten_paths(own)[path])
            if target is not None:
                assert a.sharding == flatten_paths(target)[path].sharding


def test_who_cannot_is_told_so():
    device = types.SimpleNamespace(
        device_kind="abacus",
        addressable_memories=lambda: [types.SimpleNamespace(kind="device")],
    )
    with pytest.raises(InputError, match=r"'abacus' reads no memory 'pinned_host'.*set it to none"):
        offload._check(device)
    c = small.described()
    c.train.datasets.pages = config.dataset(layout="page", batch=4, length=small.T, images=2)
    c.mesh.offload, c.model.unroll = "frozen", True
    with pytest.raises(InputError, match="leaves no loop"):
        config.finish(c)
    c.model.unroll, c.mesh.frozen = False, "replicated"
    with pytest.raises(InputError, match=r"whole layers from the hosts.*set it to sharded"):
        config.finish(c)
    c.mesh.offload = "all"
    with pytest.raises(InputError, match=r"config\.mesh\.offload is 'all'; one of none, frozen"):
        config.finish(c)


def test_what_is_on_the_devices_is_not_moved():
    a = jnp.arange(3.0)
    assert not offload.on_host(a)
    assert offload.bring({"a": a})["a"] is a
