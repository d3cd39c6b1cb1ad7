"""The contrastive text encoder: what padding and order may and may not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.text import TextConfig, TextEncoder

CFG = TextConfig(vocab=20, width=12, blocks=2, heads=3, hidden=24, max_length=9)
TEXT = np.asarray([3, 1, 4, 1, 5])


@pytest.fixture(scope="module")
def encoder():
    """(tokens, positions, dtype) → f32[B, width]."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: TextEncoder(CFG, rngs=nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(TextEncoder(CFG, rngs=nnx.Rngs(0)))))()

    @functools.partial(jax.jit, static_argnums=2)
    def run(tokens, positions, dtype):
        return nnx.merge(graph, params)(tokens, positions, dtype)

    return run


def encode(encoder, tokens, positions, dtype=jnp.float32):
    return np.asarray(encoder(np.asarray(tokens)[None], np.asarray(positions)[None], dtype))[0]


def test_padding_changes_nothing(encoder):
    bare = encode(encoder, TEXT, np.arange(5))
    assert bare.shape == (12,) and bare.dtype == np.float32
    for left, right in ((0, 4), (4, 0), (2, 2)):
        tokens = np.pad(TEXT, (left, right), constant_values=7)
        positions = np.pad(np.arange(5), (left, right), constant_values=-1)
        np.testing.assert_allclose(encode(encoder, tokens, positions), bare, atol=2e-6)


def test_what_stands_in_padding_changes_nothing(encoder):
    positions = np.asarray([0, 1, 2, -1, -1])
    one = encode(encoder, [3, 1, 4, 0, 0], positions)
    np.testing.assert_array_equal(encode(encoder, [3, 1, 4, 9, 2], positions), one)


def test_every_token_sees_every_other_and_its_place(encoder):
    bare = encode(encoder, TEXT, np.arange(5))
    for place in range(5):
        changed = TEXT.copy()
        changed[place] = 11
        assert np.abs(encode(encoder, changed, np.arange(5)) - bare).max() > 1e-3
    assert np.abs(encode(encoder, TEXT[::-1].copy(), np.arange(5)) - bare).max() > 1e-3


def test_the_last_norm_gives_tokens_unit_variance(encoder):
    """Post-norm: a text of one token is the output of a layer norm."""
    found = encode(encoder, [3], [0])
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-4)


def test_a_text_may_start_as_the_bag_of_its_tokens():
    cfg = dataclasses.replace(CFG, residual_init=0.0, positions_init=0.0)
    model = TextEncoder(cfg, rngs=nnx.Rngs(0))
    one, other = (
        model(jnp.asarray(TEXT)[None, order], jnp.arange(5)[None], jnp.float32)
        for order in (np.arange(5), np.arange(5)[::-1])
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    bag = np.asarray(model.table[...])[TEXT]
    bag = (bag - bag.mean(1, keepdims=True)) / bag.std(1, keepdims=True)
    np.testing.assert_allclose(one[0], bag.mean(0), atol=1e-4)


def test_an_empty_text_is_zero(encoder):
    assert not np.any(encode(encoder, TEXT, [-1] * 5))


def test_bfloat16_is_near(encoder):
    exact = encode(encoder, TEXT, np.arange(5))
    low = encode(encoder, TEXT, np.arange(5), jnp.bfloat16)
    assert low.dtype == np.float32
    np.testing.assert_allclose(low, exact, atol=0.05)
