"""A mesh gives what one device gives."""

import dataclasses

import jax
import numpy as np
import pytest

from flamingo_jax import sharding
from flamingo_jax.eval.generate import Settings, generate
from flamingo_jax.eval.media import MediaEncoder
from flamingo_jax.eval.rows import Graph, make_rows
from flamingo_jax.eval.shared import Shared

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def spread(tiny):
    """Graph and parameters over eight devices: two copies, each over four."""
    mesh = sharding.make_mesh(2, 2, 2)
    params = jax.device_put(tiny.params, sharding.param_shardings(tiny.params, mesh))
    return Graph(tiny.graph.config, mesh), params


def test_rows_are_split(tiny, spread):
    """Over replica and fsdp, filled up to as many."""
    prompt = tiny.prompt(1, 5, 1)
    for count in (4, 1):
        rows = make_rows(spread[0], [prompt] * count, range(count))
        shards = {str(shard.index) for shard in rows.tokens.addressable_shards}
        assert rows.tokens.shape[0] == 4 and len(shards) == 4


def test_eight_devices_say_what_one_says(tiny, spread):
    first = tiny.prompt(50, 6, 2)
    first = dataclasses.replace(first, media_of_token=[1, 1, 1, 2, 2, 2])
    prompts = [tiny.prompt(seed, 3 + seed, 1) for seed in range(5)]  # 4 rows, and one alone
    settings = Settings(4, stop=(3,), beams=2)
    found = []
    for graph, params in ((tiny.graph, tiny.params), spread):
        after = Shared(graph, params, first)
        own = [
            dataclasses.replace(one, media_of_token=[n and n + 2 for n in one.media_of_token])
            for one in prompts
        ]
        texts = generate(graph, params, own, settings, batch=8, after=after)
        pixels = [tiny.pixels(seed) for seed in range(5)]
        vectors = MediaEncoder(graph, params).pooled(pixels)
        found.append((texts, vectors))
    (texts, vectors), (other_texts, other_vectors) = found
    assert [one.tokens for one in texts] == [one.tokens for one in other_texts]
    for mine, theirs in zip(texts, other_texts, strict=True):
        assert abs(mine.log_likelihood - theirs.log_likelihood) < 4 * TOLERANCE
    np.testing.assert_allclose(other_vectors, vectors, atol=TOLERANCE)
