"""Attention against NumPy; what is masked, and rows that may see nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.model.attention import attend


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attention(q, k, v, mask, scale, bias):
    """Attention in three loops over batch, heads and queries; no row of the mask may be empty."""
    B, T, N, _ = q.shape
    out = np.zeros_like(q)
    for b in range(B):
        for n in range(N):
            for t in range(T):
                scores = k[b, :, n] @ q[b, t, n] * scale + bias[b, n, t]
                scores = np.where(mask[b, 0, t], scores, -np.inf)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, :, n]
    return out


Q, K, V = normal(0, 2, 3, 4, 5), normal(1, 2, 6, 4, 5), normal(2, 2, 6, 4, 5)
MASK = np.random.default_rng(3).random((2, 1, 3, 6)) < 0.5
MASK[..., 0] = True
BIAS = normal(4, 2, 4, 3, 6)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_attend_is_softmax_attention(scale):
    found = attend(*map(jnp.asarray, (Q, K, V, MASK)), scale=scale, bias=jnp.asarray(BIAS))
    expected = attention(Q, K, V, MASK, 5**-0.5 if scale is None else scale, BIAS)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_row_that_may_see_nothing_is_zero_with_zero_gradients():
    mask = MASK.copy()
    mask[0, 0, 1] = False

    def total(q, k, v):
        out = attend(q, k, v, jnp.asarray(mask))
        return jnp.sum(jnp.square(out)), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(Q, K, V)
    assert np.all(np.asarray(out)[0, 1] == 0) and np.all(np.asarray(out)[1, 1] != 0)
    assert np.all(np.asarray(gradients[0])[0, 1] == 0)
    assert all(np.isfinite(g).all() for g in gradients)


def test_what_is_masked_changes_nothing():
    mask = np.ones((2, 1, 3, 6), bool)
    mask[..., 4:] = False
    k, v = K.copy(), V.copy()
    k[:, 4:], v[:, 4:] = 1e9, -1e9
    found, changed = attend(Q, K, V, jnp.asarray(mask)), attend(Q, k, v, jnp.asarray(mask))
    np.testing.assert_array_equal(found, changed)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_are_repeated_heads(kv_heads):
    k, v = K[:, :, :kv_heads], V[:, :, :kv_heads]
    all_k, all_v = (np.repeat(x, 4 // kv_heads, axis=2) for x in (k, v))
    grouped = attend(Q, k, v, jnp.asarray(MASK), bias=jnp.asarray(BIAS))
    repeated = attend(Q, all_k, all_v, jnp.asarray(MASK), bias=jnp.asarray(BIAS))
    np.testing.assert_allclose(grouped, repeated, atol=1e-6)


def test_no_keys_give_zeros():
    out = attend(jnp.asarray(Q), jnp.zeros((2, 0, 4, 5)), jnp.zeros((2, 0, 4, 5)), None)
    assert out.shape == Q.shape and not np.any(out)


def test_attention_in_bfloat16_sums_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V))
    out = attend(q, k, v, jnp.asarray(MASK))
    wide_q, wide_k, wide_v = (x.astype(jnp.float32) for x in (q, k, v))
    exact = attend(wide_q, wide_k, wide_v, jnp.asarray(MASK))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=2e-2)
