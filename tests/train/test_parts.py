"""Micro-batches: the same update as the whole batch's, with less at once, and no row moved."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax import assemble, config, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Batch, flatten_paths
from flamingo_jax.train.parts import gradient
from tests.small import VOCABULARY, T, begin, example, make_mesh, pages

pytestmark = pytest.mark.usefixtures("smallest")
B = 16
SPLIT = {"replica": 2, "fsdp": 2, "tensor": 2}


def make_stage(micro_batches: int, **mesh: int) -> assemble.Stage:
    c = pages(B, loss_chunk=3, micro_batches=micro_batches)
    return assemble.stage(c, "flamingo", VOCABULARY, make_mesh(**mesh))


@functools.cache
def update(micro_batches: int, split: bool = False) -> tuple[Any, dict[str, float]]:
    """Parameters and metrics after a step."""
    stage = make_stage(micro_batches, **(SPLIT if split else {}))
    rng = np.random.default_rng(1)
    drawn = {
        path: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_paths(stage.abstract).items()
    }
    state, frozen = begin(stage, drawn)
    batches = {"pages": sharding.to_devices(example(B, 0), stage.mesh)}
    state, metrics = stage.update(state, frozen, batches)
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("micro_batches", "split"), [(4, False), pytest.param(2, True, marks=pytest.mark.slow)]
)
def test_parts_are_the_whole(micro_batches, split):
    """Loss, count of targets, norm of the gradient, and its moments, on the same devices."""
    whole, parts = update(1, split), update(micro_batches, split)
    assert parts[1].keys() == whole[1].keys()
    targets = example(B, 0).loss_mask[:, 1:].sum()
    assert parts[1]["pages/tokens"] == whole[1]["pages/tokens"] == targets
    for name, value in whole[1].items():
        np.testing.assert_allclose(parts[1][name], value, rtol=2e-6, err_msg=name)
    for a, b in zip(*(jax.tree.leaves(side[0].opt) for side in (whole, parts)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6 * float(jnp.abs(a).max()))


def test_no_row_leaves_its_device():
    mesh = sharding.make_mesh(**SPLIT)
    rows = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding.rows_sharding(mesh))
    split = jax.jit(lambda a: sharding.split_rows(a, 2, mesh))
    assert not collectives(str(split.lower(rows).compile().as_text()))
    numbers = np.arange(B * T, dtype=np.int32).reshape(B, T)
    parts = split(jax.device_put(numbers, rows.sharding))
    assert parts.shape == (2, B // 2, T)
    np.testing.assert_array_equal(np.sort(np.asarray(parts).reshape(-1, T), axis=0), numbers)
    here = {s.device: set(s.data[:, 0].tolist()) for s in jax.device_put(
        numbers, rows.sharding).addressable_shards}  # fmt: skip
    for shard in parts.addressable_shards:
        assert set(np.asarray(shard.data)[..., 0].ravel().tolist()) == here[shard.device]


@pytest.mark.slow
def test_no_pixel_leaves_its_device_in_the_step():
    """They are the only u8 there."""
    stage = make_stage(2, **SPLIT)
    step = stage.update.lower(stage.state, stage.frozen, stage.abstract_batches()).compile()
    found = collectives(str(step.as_text()))
    assert found and not [line for line in found if re.search(r"\bu8\[", line)]


def collectives(text: str) -> list[str]:
    kinds = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
    return [line for line in text.splitlines() if re.search(kinds, line)]


def test_parts_need_less_memory():
    def temporary(parts: int) -> int:
        def loss(params: Any, frozen: Any, batches: Any, key: Any, counts: Any = None) -> Any:
            del frozen, key, counts
            h = batches["some"].media[..., None] * params["a"]
            return jnp.sum(jnp.sin(h) @ params["b"]), {}

        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        value = gradient(loss, parts, functools.partial(sharding.split_rows, mesh=mesh))
        some = jnp.zeros((64, 8))
        batch = Batch(some, some, some, some, some, some)
        params = {"a": jnp.ones(512), "b": jnp.ones((512, 4))}
        given = (params, {}, {"some": batch}, jax.random.key(0))
        compiled: Any = jax.jit(value).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.3 * temporary(1)


@pytest.mark.parametrize(("micro_batches", "told"), [(0, "at least 1"), (3, "micro_batches=3")])
def test_parts_that_do_not_divide_are_refused(micro_batches, told):
    with pytest.raises(InputError, match=told) as error:
        make_stage(micro_batches)
    assert "micro_batches" in str(error.value)


def test_the_contrastive_loss_is_not_taken_in_parts():
    c = config.base()
    c.stages = ("contrastive",)
    c.pretrain.contrastive.steps = 1
    c.pretrain.contrastive.micro_batches = 2
    c.pretrain.contrastive.datasets.pairs = config.dataset(layout="contrastive")
    with pytest.raises(InputError, match=r"contrastive\.micro_batches"):
        config.finish(c)
