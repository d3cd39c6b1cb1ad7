"""The next-token loss against NumPy, whole and in chunks."""

import dataclasses
from typing import Any

import jax
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


def of_logits(logits, mask, chunk: int = 0) -> tuple[Any, Any]:
    """The loss of logits as they are."""
    return objective.next_token(lambda _, x: (x,), (), jnp.asarray(logits), batch(mask), chunk)


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
    nll, count = of_logits(LOGITS, mask)
    expected, tokens = naive(mask)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert float(count) == tokens


def test_the_mask_is_of_the_target_not_of_what_predicts_it():
    mask = np.zeros((B, T))
    mask[1, 2] = 1
    nll, count = of_logits(LOGITS, mask)
    each = objective.token_nll(jnp.asarray(LOGITS), jnp.asarray(TOKENS))
    assert each.shape == (B, T - 1) and float(count) == 1
    np.testing.assert_allclose(nll, each[1, 1], rtol=1e-6)


def test_the_first_token_is_never_a_target():
    mask = np.zeros((B, T))
    mask[:, 0] = 1
    nll, count = of_logits(LOGITS, mask)
    assert float(nll) == 0 == float(count)


def test_sums_of_parts_are_the_sum_of_the_whole():
    mask = np.ones((B, T))
    whole = of_logits(LOGITS, mask)
    parts = np.zeros(2)
    for b in range(B):
        one = np.zeros((B, T))
        one[b] = 1
        parts += [float(x) for x in of_logits(LOGITS, one)]
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_large_logits_stay_finite():
    nll = objective.token_nll(jnp.asarray(LOGITS) * 1e4, jnp.asarray(TOKENS))
    assert np.isfinite(nll).all()


D, W = 7, 2
HEAD = tuple(jnp.asarray(RNG.normal(size=(D, n)), jnp.float32) for n in (V - W, W))
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)


def parts_of(weights, x):
    return tuple(jnp.einsum("btd,dv->btv", x, kernel) for kernel in weights)


def with_gradients(mask, chunk: int, tokens=TOKENS) -> Any:
    """(nll, count), and gradients of the head's two kernels and of the residual stream."""
    seen = dataclasses.replace(batch(mask), tokens=jnp.asarray(tokens))

    def total(weights, x):
        nll, count = objective.next_token(parts_of, weights, x, seen, chunk)
        return 3 * nll, (nll, count)

    gradients, sums = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(HEAD, HIDDEN)
    return sums, gradients


def leaves(*results: Any) -> Any:
    return zip(*map(jax.tree.leaves, results), strict=True)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_chunks_are_the_whole(chunk):
    """Also where they do not divide T; new tokens' logits and targets included."""
    mask = np.random.default_rng(1).integers(0, 2, (B, T))
    assert np.any(mask[:, 1:] * (TOKENS[:, 1:] >= V - W))
    whole, parts = with_gradients(mask, 0), with_gradients(mask, chunk)
    for a, b in leaves(whole, parts):
        assert np.any(np.asarray(a))
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)
    joined = jnp.concatenate(parts_of(HEAD, HIDDEN), axis=-1)
    np.testing.assert_allclose(of_logits(joined, mask), parts[0], rtol=2e-6)


def test_one_chunk_is_the_whole_bit_for_bit():
    for whole, one in leaves(*(with_gradients(np.ones((B, T)), chunk) for chunk in (0, T))):
        np.testing.assert_array_equal(one, whole)


@pytest.mark.parametrize("chunk", [0, 2])
def test_what_is_no_target_changes_nothing(chunk):
    mask = np.zeros((B, T))
    mask[:, 2] = mask[0, 4] = 1
    other = np.where(mask, TOKENS, (TOKENS + 1) % V)
    for a, b in leaves(*(with_gradients(mask, chunk, t) for t in (TOKENS, other))):
        np.testing.assert_array_equal(a, b)
    dx = np.asarray(with_gradients(mask, chunk)[1][1])
    predicts = np.roll(mask, -1, axis=1) > 0  # targets stand one later
    assert np.all(dx[~predicts] == 0) and np.all(np.abs(dx[predicts]).max(axis=-1) > 1e-3)


def products(jaxpr) -> list[tuple[int, ...]]:
    """Shapes of the results of all matrix products, in loops too."""
    found = []
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            found.append(e.outvars[0].aval.shape)
        for value in e.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                found += products(inner) if hasattr(inner, "eqns") else []
    return found


def test_a_frozen_head_costs_two_products_a_chunk():
    """Logits and the stream's gradient: nothing is computed twice, and no gradient of the head."""
    seen = batch(np.ones((B, T)))

    def total(x, trained, frozen):
        return objective.next_token(parts_of, (frozen, trained), x, seen, 2)[0]

    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(HIDDEN, HEAD[1], HEAD[0])
    shapes = products(jaxpr.jaxpr)
    of_kernel = [s for s in shapes if sorted(s) in (sorted((2, B, V - W)), sorted((D, V - W)))]
    assert of_kernel == [(B, 2, V - W)]
    assert len(shapes) == 5  # those of the frozen kernel, and three of the trained one


def test_chunks_need_less_memory():
    """Temporary bytes of the compiled gradient: as the logits that exist at once."""
    rows, length, vocabulary = 4, 64, 4096
    tokens = jnp.zeros((rows, length), jnp.int32)
    seen = dataclasses.replace(batch(np.ones((B, T))), tokens=tokens, loss_mask=tokens * 1.0)
    x, kernel = jnp.zeros((rows, length, 8)), jnp.zeros((8, vocabulary))

    def temporary(chunk: int) -> int:
        def total(x):
            return objective.next_token(parts_of, (kernel,), x, seen, chunk)[0]

        compiled: Any = jax.jit(jax.grad(total)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = rows * length * vocabulary * 4
    assert temporary(0) >= logits
    assert temporary(8) < 0.5 * temporary(0)
