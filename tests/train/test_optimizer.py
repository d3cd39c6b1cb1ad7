"""Schedules, clipping, decay by path and multipliers against NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax import config
from flamingo_jax.shapes import Params, flatten_paths, unflatten_paths
from flamingo_jax.train import optimizer as opt
from flamingo_jax.train.optimizer import OptimizerSpec


def values(spec: OptimizerSpec, steps: int, at: list[int]) -> list[float]:
    schedule = opt.schedule(spec, steps)
    return [float(np.asarray(schedule(step))) for step in at]


def test_warm_up_is_linear_then_constant():
    spec = OptimizerSpec(lr=2.0, warmup=4)
    found = values(spec, 100, [0, 1, 2, 3, 4, 5, 99])
    np.testing.assert_allclose(found, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0], rtol=1e-6)
    assert values(OptimizerSpec(lr=2.0, warmup=0), 100, [0, 99]) == [2.0, 2.0]
    assert values(OptimizerSpec(lr=2.0, warmup=1), 100, [0, 1]) == [2.0, 2.0]
    papers = values(OptimizerSpec(), 500_000, [0, 2_499, 4_999, 5_000, 499_999])
    np.testing.assert_allclose(papers, [2e-8, 5e-5, 1e-4, 1e-4, 1e-4], atol=1e-10)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_end_where_they_are_told_to(kind):
    spec = OptimizerSpec(lr=2.0, warmup=10, schedule=kind, end=0.1)
    start, middle, end, after = values(spec, 110, [10, 60, 110, 500])
    np.testing.assert_allclose([start, middle, end, after], [2.0, 1.1, 0.2, 0.2], rtol=1e-5)
    quarter = values(spec, 110, [35])[0]
    share = 0.75 if kind == "linear" else (1 + math.cos(math.pi / 4)) / 2
    np.testing.assert_allclose(quarter, 0.2 + 1.8 * share, rtol=1e-5)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="constant, cosine or linear"):
        opt.schedule(OptimizerSpec(schedule="sawtooth"), 10)


PARAMS = {
    "resampler/latents": (3, 4),
    "resampler/layers/query/kernel": (2, 4, 4),
    "xattn/query/kernel": (2, 4, 5),
    "xattn/gate_attention": (2,),
    "embed/new": (1, 4),
}


def tree(seed: int, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(seed)
    flat = {p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in PARAMS.items()}
    return unflatten_paths(flat)


def run(spec: OptimizerSpec, steps: int = 3, scale: float = 1.0) -> tuple[Any, Any]:
    """Parameters before and after some updates with drawn gradients."""
    tx = opt.make(spec, steps)
    params = before = tree(0)
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(tree(step + 1, scale), state, params)
        params = optax.apply_updates(params, updates)
    return before, params


def adamw(spec: OptimizerSpec, path: str, steps: int, scale: float = 1.0) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2, after clipping by the global norm."""
    p = np.asarray(flatten_paths(tree(0))[path], np.float64)
    m = v = np.zeros_like(p)
    decay = 0.0 if path.startswith("resampler/") else spec.weight_decay
    for step in range(steps):
        g = {q: np.asarray(a, np.float64) for q, a in flatten_paths(tree(step + 1, scale)).items()}
        norm = math.sqrt(sum((a**2).sum() for a in g.values()))
        grad = g[path] * min(1.0, spec.clip / norm)
        m = spec.b1 * m + (1 - spec.b1) * grad
        v = spec.b2 * v + (1 - spec.b2) * grad**2
        corrected = m / (1 - spec.b1 ** (step + 1))
        scaled = corrected / (np.sqrt(v / (1 - spec.b2 ** (step + 1))) + spec.eps)
        rate = spec.lr * min(1.0, (step + 1) / max(spec.warmup, 1))
        p = p - rate * (scaled + decay * p)
    return p


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["unclipped", "clipped"])
def test_adamw_with_clipping_and_no_decay_on_the_resampler(scale):
    spec = OptimizerSpec(lr=0.1, weight_decay=0.5, warmup=2)
    _, after = run(spec, 3, scale)
    for path, found in flatten_paths(after).items():
        np.testing.assert_allclose(found, adamw(spec, path, 3, scale), rtol=2e-4, atol=2e-6)


def test_the_configs_patterns_spare_what_they_name():
    """Gates, norms, biases, gains and the temperature are not pulled towards 0; kernels are."""
    patterns = tuple(config.base().train.optimizer.no_decay)
    spared = [
        "resampler/layers/query/kernel",
        "xattn/gate_attention",
        "xattn/gate_dense",
        "xattn/norm_query/scale",
        "xattn/norm_query/bias",
        "vision/nfnet/stage1/first/skip_gain",
        "vision/nfnet/stage1/first/conv0/gain",
        "language/blocks/content_bias",
        "language/blocks/position_bias",
        "logit_scale",
    ]
    decayed = [
        "xattn/query/kernel",
        "xattn/dense/up/kernel",
        "language/blocks/dense/gate/kernel",
        "project/kernel",
    ]
    assert [path for path in spared if not opt.matches(patterns, path)] == []
    assert [path for path in decayed if opt.matches(patterns, path)] == []


def test_multipliers_scale_whole_updates():
    spec = OptimizerSpec(lr=0.1, warmup=0)
    faster = OptimizerSpec(lr=0.1, warmup=0, multipliers=(("gate_", 5.0), ("^xattn/", 2.0)))
    before, plain = (flatten_paths(part) for part in run(spec, 1))
    _, scaled = run(faster, 1)
    for path, after in flatten_paths(scaled).items():
        factor = {"xattn/gate_attention": 10, "xattn/query/kernel": 2}.get(path, 1)
        expected = before[path] + factor * (plain[path] - before[path])
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (3, 3, 4, 5), (2, 3, 3, 4, 5)])
def test_adaptive_clipping(shape):
    """Brock et al. 2021b, eq. (3): each output unit of each layer of a stack by itself."""
    rng = np.random.default_rng(0)
    p = rng.normal(size=shape)
    g = rng.normal(size=shape) * np.geomspace(1e-3, 1, shape[-1])
    p[..., 0] = 0  # a unit whose weights are zero: eps counts
    clipping, fan_in = 0.1, (1 if len(shape) < 4 else 3)
    expected = g.copy()
    units = [u for u in np.ndindex(*shape[: len(shape) - fan_in - 1])]
    clipped = 0
    for stack in units:
        for out in range(shape[-1]):
            at = (*stack, ..., out)
            norm, largest = np.linalg.norm(g[at]), clipping * max(np.linalg.norm(p[at]), 1e-3)
            if norm > largest:
                expected[at] = g[at] * largest / norm
                clipped += 1
    assert 0 < clipped < len(units) * shape[-1]
    tx = opt.adaptive_clip(clipping, ("^vision/.*kernel$",))
    grads, params = ({"vision": {"kernel": jnp.asarray(a, jnp.float32)}} for a in (g, p))
    found: Any = tx.update(grads, tx.init(params), params)[0]
    np.testing.assert_allclose(found["vision"]["kernel"], expected, rtol=1e-5, atol=1e-7)


def test_adaptive_clipping_leaves_other_paths():
    tx = opt.adaptive_clip(1e-9, ("^vision/.*kernel$",))
    params = {
        "vision": {"bias": jnp.ones(3), "table": jnp.ones((2, 2))},
        "kernel": jnp.ones((2, 2)),
    }
    grads = jax.tree.map(lambda p: 7 * p, params)
    found, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, grads)
