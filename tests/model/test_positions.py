"""Rotary and Transformer-XL positions against their definitions, written out as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model import positions as pos
from flamingo_jax.model.language import Block, DecoderConfig, place
from flamingo_jax.model.masks import causal_mask


@pytest.mark.parametrize(
    ("queries", "keys", "offset", "expected"),
    [
        (3, 3, 0, [3, 2, 1, 0]),
        (1, 4, 3, [4, 3, 2, 1, 0]),
        (2, 6, 2, [4, 3, 2, 1, 0, 0, 0]),
    ],
    ids=["whole", "one more", "with free slots"],
)
def test_descending_distances(queries, keys, offset, expected):
    assert pos.descending_distances(queries, keys, offset).tolist() == expected


def test_relative_shift_table():
    """Scores by distance 4 3 2 1 0 (columns) become scores by key 0 1 2 3."""
    by_distance = jnp.tile(jnp.asarray([4, 3, 2, 1, 0]), (4, 1))[None, None]
    by_key = pos.relative_shift(by_distance)[0, 0]
    seen = jnp.where(jnp.tril(jnp.ones((4, 4), bool)), by_key, -1)
    assert seen.tolist() == [[0, -1, -1, -1], [1, 0, -1, -1], [2, 1, 0, -1], [3, 2, 1, 0]]


@pytest.mark.parametrize(
    ("queries", "keys", "offset"), [(4, 4, 0), (1, 5, 3), (2, 7, 3), (3, 3, 0)]
)
def test_relative_shift_finds_each_pairs_distance(queries, keys, offset):
    distances = pos.descending_distances(queries, keys, offset)
    rows = 100 * jnp.arange(queries)[:, None]  # tells the rows apart as well
    shifted = pos.relative_shift((rows + distances)[None, None])[0, 0]
    for t in range(queries):
        for s in range(offset + t + 1):
            assert shifted[t, s] == 100 * t + offset + t - s


def test_sinusoids_are_sines_then_cosines():
    found = np.asarray(pos.sinusoids(jnp.asarray([5, 1, 0]), 6))
    for row, distance in zip(found, (5, 1, 0), strict=True):
        angles = [distance / 10_000 ** (2 * i / 6) for i in range(3)]
        np.testing.assert_allclose(row, [*np.sin(angles), *np.cos(angles)], atol=1e-6)


def test_relative_attention_is_dais_formula():
    """All four terms of Dai et al. 2019 §3.3 for each pair of tokens, in two loops."""
    cfg = DecoderConfig(vocab=8, width=12, blocks=1, heads=2, head_dim=6, hidden=16)
    block = Block(cfg, rngs=nnx.Rngs(0))
    T, N, H = 5, cfg.heads, cfg.head_dim
    keys = jax.random.split(jax.random.key(1), 3)
    u, v = (jax.random.normal(key, (N, H)) for key in keys[:2])
    block.content_bias[...], block.position_bias[...] = u, v
    x = jax.random.normal(keys[2], (1, T, cfg.width))
    positions = jnp.arange(T)[None]
    where = place(cfg, positions, causal_mask(positions))
    found, _ = block._attention(x, where, None, jnp.float32)

    def heads(layer, rows):
        return np.asarray(rows @ layer.kernel[...]).reshape(-1, N, H)

    h = block.norm_attention(x, jnp.float32)[0]
    q, k, value = heads(block.query, h), heads(block.key, h), heads(block.value, h)
    r = heads(block.relative, pos.sinusoids(jnp.arange(T), cfg.width))  # by distance
    u, v = np.asarray(u), np.asarray(v)
    out = np.zeros((T, N, H), np.float32)
    for n in range(N):
        for i in range(T):
            scores = [
                q[i, n] @ k[j, n] + q[i, n] @ r[i - j, n] + u[n] @ k[j, n] + v[n] @ r[i - j, n]
                for j in range(i + 1)
            ]
            weights = np.exp(np.asarray(scores) / H**0.5)
            out[i, n] = (weights / weights.sum()) @ value[: i + 1, n]
    expected = x[0] + out.reshape(T, N * H) @ block.out.kernel[...]
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_rotary_depends_on_distance_alone():
    """⟨R(m)q, R(n)k⟩ is a function of m - n (Su et al. 2021, eq. 11), and R(0) is the identity."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 3, 8))

    def at(x, position):
        return pos.rotate(x, pos.rotary_angles(jnp.asarray([[position]]), 8, 10_000.0))

    near = jnp.sum(at(q, 7) * at(k, 4), axis=-1)
    far = jnp.sum(at(q, 103) * at(k, 100), axis=-1)
    other = jnp.sum(at(q, 7) * at(k, 5), axis=-1)
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.abs(near - other).max() > 1e-2
    np.testing.assert_array_equal(at(q, 0), q)


def test_rotary_turns_half_split_pairs():
    """Feature i turns with feature i + H/2 by position · base^(-2i/H)."""
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = pos.rotate(x, pos.rotary_angles(jnp.asarray([[3]]), 4, 100.0))[0, 0, 0]
    for i, angle in enumerate((3.0, 3.0 / 10)):
        pair = complex(x[0, 0, 0, i], x[0, 0, 0, i + 2]) * np.exp(1j * angle)
        np.testing.assert_allclose([turned[i], turned[i + 2]], [pair.real, pair.imag], rtol=1e-5)


def test_rotation_keeps_the_dtype():
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    angles = pos.rotary_angles(jnp.asarray([[-1, 5]]), 4, 10_000.0)
    assert pos.rotate(x, angles).dtype == jnp.bfloat16
    np.testing.assert_array_equal(pos.rotate(x, angles)[0, 0], x[0, 0])  # padding counts as 0
