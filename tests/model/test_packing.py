"""Several batches in one stream: nothing is lost, and no batch changes another's numbers."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_jax import assemble, config
from flamingo_jax.model.packing import Packing
from flamingo_jax.shapes import Batch, flatten_paths, unflatten_paths
from flamingo_jax.train import losses
from tests.small import VOCABULARY, described, make_mesh

pytestmark = pytest.mark.usefixtures("smallest")
ROWS: dict[str, dict[str, Any]] = {
    "clips": {"layout": "clip", "batch": 8, "length": 6, "frames": 3},
    "lines": {"layout": "text", "batch": 16, "length": 4},
    "pages": {"layout": "page", "batch": 8, "length": 8, "images": 2},
}
WEIGHTS = {"clips": 0.5, "lines": 2.0, "pages": 1.0}
CHINCHILLA = {"positions": "xl"}
EIGHT = {"fsdp": 2, "tensor": 2, "replica": 2}
LLAMA = {"positions": "rotary", "gated": True, "kv_heads": 2, "heads": 4, "head_dim": 4}


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_what_is_packed_is_unpacked(sizes, shards):
    packing = Packing(tuple((shards * rows, length) for rows, length in sizes), shards)
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(*size, 2)).astype(np.float32) for size in packing.sizes]
    stream = packing.pack(parts)
    assert stream.shape == (packing.rows, sum(p.size for p in parts) // 2 // packing.rows, 2)
    for part, own in zip(parts, packing.unpack(stream), strict=True):
        np.testing.assert_array_equal(part, own)
    if len(sizes) > 1:  # a shard's rows stay in its row of the stream
        for part in parts:
            for row, own in zip(np.split(part, shards), stream, strict=True):
                assert np.isin(row, own).all()


def example(spec: Any, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    B, T, M = spec.batch, spec.length, spec.media
    side = spec.image_size
    lengths = rng.integers(2, T + 1, (B, 1))
    inside = np.arange(T) < lengths
    return Batch(
        tokens=rng.integers(0, VOCABULARY.size + VOCABULARY.new, (B, T)).astype(np.int32),
        positions=np.where(inside, np.arange(T), -1).astype(np.int32),
        media=rng.integers(0, 256, (B, M, spec.frames, side, side, 3)).astype(np.uint8),
        frames=rng.integers(0, spec.frames + 1, (B, M)).astype(np.int32),
        media_of_token=np.tile(np.minimum(np.arange(T) // 2, M).astype(np.int32), (B, 1)),
        loss_mask=inside.astype(np.float32),
    )


@pytest.mark.parametrize(
    ("language", "mesh"),
    [
        pytest.param(CHINCHILLA, EIGHT, id="chinchilla-eight", marks=pytest.mark.slow),
        pytest.param(CHINCHILLA, {}, id="chinchilla-one"),
        pytest.param(LLAMA, {}, id="llama-one", marks=pytest.mark.slow),
    ],
)
def test_batches_do_not_see_each_other(language, mesh):
    """Losses and gradients of three batches in one pass are those of each alone."""
    c = described()
    c.model.language.update(language)
    c.train.datasets.update({name: config.dataset(**row) for name, row in ROWS.items()})
    c = config.finish(c)
    together = assemble.stage(c, "flamingo", VOCABULARY, make_mesh(**mesh))
    rng = np.random.default_rng(1)
    drawn = {
        path: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_paths(together.abstract).items()
    }
    parts = [flatten_paths(part) for part in (together.trainable, together.frozen)]
    params, frozen = (
        unflatten_paths({path: jax.device_put(drawn[path], a.sharding) for path, a in part.items()})
        for part in parts
    )
    batches = {name: example(spec, 5) for name, spec in together.datasets.items()}

    def total(params: Any, graph: Any, frozen: Any, batches: Any) -> Any:
        found, _ = losses.text_losses(graph, params, frozen, batches, jax.random.key(0))
        return sum(WEIGHTS[name] * loss for name, loss in found.items()), found

    value = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    gradient, found = value(params, together.graph, frozen, batches)

    one = assemble.stage(c, "flamingo", VOCABULARY, make_mesh())
    params, frozen = jax.device_get((params, frozen))
    alone = [value(params, one.graph, frozen, {name: b}) for name, b in batches.items()]
    for name, (_, loss) in zip(batches, alone, strict=True):
        np.testing.assert_allclose(found[name], loss[name], rtol=1e-6)
    gradients = [jax.device_get(own) for own, _ in alone]
    summed = flatten_paths(jax.tree.map(lambda *parts: sum(parts), *gradients))
    norms = {path: float(np.linalg.norm(leaf)) for path, leaf in summed.items()}
    least = 1e-3 * max(norms.values())  # what is far smaller is a difference of larger numbers
    found_gradient = flatten_paths(jax.device_get(gradient))
    for path, expected in summed.items():
        error = float(np.linalg.norm(found_gradient[path] - expected))
        assert error <= 1e-5 * max(norms[path], least), path


@pytest.mark.slow
def test_validation_measures_each_batch_as_if_alone():
    c = described()
    c.train.datasets.update({name: config.dataset(**row) for name, row in ROWS.items()})
    stage = assemble.stage(config.finish(c), "flamingo", VOCABULARY, make_mesh())
    params = nnx.to_pure_dict(nnx.state(stage.make(0)))
    batches = {name: example(spec, 5) for name, spec in stage.datasets.items()}

    @jax.jit
    def measure(batches: Any) -> Any:
        return losses.text_measures(stage.graph, params, {}, batches)

    found = measure(batches)
    assert {name: sorted(row) for name, row in found.items()} == {
        "clips": ["count", "nll", "shuffled_nll"],
        "lines": ["count", "nll"],
        "pages": ["count", "nll", "shuffled_nll"],
    }
    for name, batch in batches.items():
        for key, value in measure({name: batch})[name].items():
            np.testing.assert_allclose(found[name][key], value, rtol=1e-6)
