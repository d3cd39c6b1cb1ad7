"""Steps left out by rule: nothing of them stays, all others are as if they had never come."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.train import skipping

INNER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
PARAMS = {"a": jnp.ones((3, 2)), "b": jnp.zeros(4)}


def gradients(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), PARAMS)
        for _ in range(count)
    ]


def run(tx: optax.GradientTransformation, grads: list[dict]) -> tuple[dict, Any]:
    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def assert_equal(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one, other) -> None:
    """Equal but for how two programs round."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_leaves_nothing_behind(bad: float) -> None:
    good = gradients(6)
    broken = jax.tree.map(lambda g: g.at[0].set(bad), good[0])
    tx = skipping.skip_bad_steps(INNER, 0.0)
    params, state = run(tx, [*good[:3], broken, broken, *good[3:]])
    wanted, never = run(tx, good)
    assert_equal(params, wanted)
    assert_equal(state.inner, never.inner)
    assert_close(params, run(INNER, good)[0])
    told = skipping.counts(state)
    assert (int(told["skipped"]), int(told["skipped_in_a_row"])) == (2, 0)


def test_a_spike_is_left_out_once_the_usual_norm_is_known() -> None:
    usual = gradients(skipping.WARM_UP + 1)
    spike = jax.tree.map(lambda g: 100 * g, usual[0])
    tx = skipping.skip_bad_steps(INNER, 10.0)
    _, early = run(tx, [*usual[:5], spike])
    assert int(early.skipped) == 0
    params, late = run(tx, [*usual, spike])
    assert (int(late.skipped), int(late.in_a_row)) == (1, 1)
    assert_equal(params, run(tx, usual)[0])
    assert float(late.norm) == pytest.approx(np.mean([optax.tree.norm(g) for g in usual]), rel=0.1)


def test_without_a_factor_no_finite_step_is_left_out() -> None:
    usual = gradients(skipping.WARM_UP + 1)
    spike = jax.tree.map(lambda g: 1e6 * g, usual[0])
    _, state = run(skipping.skip_bad_steps(INNER, 0.0), [*usual, spike])
    assert int(state.skipped) == 0


def test_no_array_is_in_the_state_twice() -> None:
    state = skipping.skip_bad_steps(INNER, 0.0).init(PARAMS)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


def test_nothing_is_counted_of_an_optimizer_without_the_rule() -> None:
    assert skipping.counts(INNER.init(PARAMS)) == {}
    chained = optax.chain(skipping.skip_bad_steps(INNER, 0.0), optax.scale(2.0))
    assert set(skipping.counts(chained.init(PARAMS))) == {"skipped", "skipped_in_a_row"}
