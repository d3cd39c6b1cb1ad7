"""The next-token loss against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.shapes import Batch
from flamingo_jax.train import objective

B, T, V = 3, 5, 11
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(B, T, V))).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T)).astype(np.int32)


def batch(mask) -> Batch:
    tokens = jnp.asarray(TOKENS)
    media = jnp.zeros((B, 0, 1, 4, 4, 3), jnp.uint8)
    frames = jnp.zeros((B, 0), jnp.int32)
    return Batch(tokens, tokens, media, frames, tokens, jnp.asarray(mask, jnp.float32))


def naive(mask) -> tuple[float, float]:
    """Summed negative log-likelihood of the masked tokens, each from the logits before it."""
    total = count = 0.0
    for b in range(B):
        for t in range(1, T):
            row = LOGITS[b, t - 1].astype(np.float64)
            total -= mask[b, t] * (row[TOKENS[b, t]] - np.log(np.exp(row).sum()))
            count += mask[b, t]
    return total, count


@pytest.mark.parametrize("seed", range(3))
def test_next_token(seed):
    mask = np.random.default_rng(seed).integers(0, 2, (B, T))
    nll, count = objective.next_token(jnp.asarray(LOGITS), batch(mask))
    expected, tokens = naive(mask)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert float(count) == tokens


def test_the_mask_is_of_the_target_not_of_what_predicts_it():
    mask = np.zeros((B, T))
    mask[1, 2] = 1
    nll, count = objective.next_token(jnp.asarray(LOGITS), batch(mask))
    each = objective.token_nll(jnp.asarray(LOGITS), jnp.asarray(TOKENS))
    assert each.shape == (B, T - 1) and float(count) == 1
    np.testing.assert_allclose(nll, each[1, 1], rtol=1e-6)


def test_the_first_token_is_never_a_target():
    mask = np.zeros((B, T))
    mask[:, 0] = 1
    nll, count = objective.next_token(jnp.asarray(LOGITS), batch(mask))
    assert float(nll) == 0 == float(count)


def test_sums_of_parts_are_the_sum_of_the_whole():
    mask = np.ones((B, T))
    whole = objective.next_token(jnp.asarray(LOGITS), batch(mask))
    parts = np.zeros(2)
    for b in range(B):
        one = np.zeros((B, T))
        one[b] = 1
        parts += [float(x) for x in objective.next_token(jnp.asarray(LOGITS), batch(one))]
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_large_logits_stay_finite():
    nll = objective.token_nll(jnp.asarray(LOGITS) * 1e4, jnp.asarray(TOKENS))
    assert np.isfinite(nll).all()
