"""Drawn tokens: what top-k and top-p leave, and that draws follow the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.eval.sampling import Chance, choose, kept

PROBABILITIES = np.array([[0.05, 0.4, 0.3, 0.05, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]], np.float32)
LOGITS = np.log(PROBABILITIES)


def chance(temperature=1.0, top_k=0, top_p=1.0, seed=0) -> Chance:
    return Chance(np.float32(temperature), np.int32(top_k), np.float32(top_p), np.uint32(seed))


def left(row: int, settings: Chance) -> set[int]:
    order, logits = kept(jnp.asarray(LOGITS), settings)
    return {int(t) for t, x in zip(order[row], logits[row], strict=True) if np.isfinite(x)}


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (chance(), {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}),
        (chance(top_k=2), {1, 2}, {0, 1}),
        (chance(top_p=0.65), {1, 2}, {0, 1, 2, 3}),
        (chance(top_p=1e-9), {1}, {0}),
        (chance(top_k=2, top_p=0.3), {1}, {0, 1}),
        (chance(temperature=0.1, top_p=0.9), {1}, {0, 1, 2, 3, 4}),
    ],
    ids=["all", "top_k", "top_p", "tiny top_p", "both", "temperature first"],
)
def test_what_may_be_drawn(settings, first, second):
    assert left(0, settings) == first
    assert left(1, settings) == second


def test_draws_follow_the_distribution():
    count = 4000
    logits = jnp.broadcast_to(LOGITS[0], (count, 5))
    index = np.arange(count, dtype=np.int32)
    tokens = choose(logits, chance(temperature=2.0, seed=1), index, np.int32(0))
    expected = np.sqrt(PROBABILITIES[0]) / np.sqrt(PROBABILITIES[0]).sum()
    found = np.bincount(tokens, minlength=5) / count
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))


def test_a_draw_depends_on_seed_number_and_step_alone():
    logits = jnp.broadcast_to(LOGITS[1], (64, 5))
    index = np.arange(64, dtype=np.int32)

    def draw(seed=0, step=0, index=index):
        return np.asarray(choose(logits[: len(index)], chance(seed=seed), index, np.int32(step)))

    tokens = draw()
    np.testing.assert_array_equal(tokens[[5, 3]], draw(index=index[[5, 3]]))
    assert (draw(seed=1) != tokens).any() and (draw(step=1) != tokens).any()


def test_a_tiny_nucleus_is_greedy():
    logits = jax.random.normal(jax.random.key(0), (32, 50))
    index = np.arange(32, dtype=np.int32)
    np.testing.assert_array_equal(
        choose(logits, chance(top_p=1e-6, temperature=1.5), index, np.int32(3)),
        choose(logits, None, index, np.int32(3)),
    )
