"""Gated cross-attention: closed gates, rows that see nothing, sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.xattn import GatedCrossAttention, XattnConfig
from flamingo_jax.shapes import flatten_paths

CFG = XattnConfig(width=16, media_width=12, heads=2, head_dim=6, hidden=24)
B, T, S = 2, 5, 7


def build(cfg: XattnConfig, attention: float = 0.0, dense: float = 0.0):
    graph, state = nnx.split(GatedCrossAttention(cfg, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    params["gate_attention"], params["gate_dense"] = jnp.float32(attention), jnp.float32(dense)

    def call(params, x, media, mask, dtype):
        layer = nnx.merge(graph, params)
        return layer(x, *layer.keys_values(media, dtype), mask, dtype)

    return jax.jit(call, static_argnums=4), params


def inputs(dtype=np.float32):
    rng = np.random.default_rng(0)
    x, media = rng.standard_normal((B, T, 16)), rng.standard_normal((B, S, 12))
    mask = rng.random((B, 1, T, S)) < 0.5
    mask[:, :, :2] = False
    mask[:, :, 2:, 0] = True
    return x.astype(dtype), media.astype(dtype), mask


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("media_norm", [True, False])
def test_at_the_start_it_is_the_identity(dtype, media_norm):
    call, params = build(dataclasses.replace(CFG, media_norm=media_norm))
    x, media, mask = inputs(dtype)
    out = call(params, x, media, mask, dtype)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, x)


def test_both_gates_learn_from_the_start():
    call, params = build(CFG)
    x, media, mask = inputs()
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(call(p, x, media, mask, jnp.float32))))(params)
    for path, gradient in flatten_paths(grads).items():
        assert (np.abs(gradient).max() > 1e-4) == path.startswith("gate_"), path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tokens_that_see_nothing_gather_exactly_zero(dtype):
    call, params = build(CFG, attention=0.7)
    x, media, mask = inputs(dtype)
    out = np.asarray(call(params, x, media, mask, dtype), np.float32)
    sees = mask.sum(-1)[:, 0] > 0
    np.testing.assert_array_equal(out[~sees], np.asarray(x, np.float32)[~sees])
    assert (np.abs(out - np.asarray(x, np.float32)).max(-1) > 0)[sees].all()


def test_the_dense_branch_acts_on_all_tokens():
    call, params = build(CFG, dense=0.7)
    x, media, mask = inputs()
    moved = np.abs(np.asarray(call(params, x, media, mask, jnp.float32)) - x).max(-1)
    assert (moved > 0).all()


def test_what_is_masked_does_not_matter():
    call, params = build(CFG, 0.5, 0.5)
    x, media, mask = inputs()
    mask[:, :, :, 3] = False
    base = call(params, x, media, mask, jnp.float32)
    garbage = media.copy()
    garbage[:, 3] = 1e4
    np.testing.assert_array_equal(base, call(params, x, garbage, mask, jnp.float32))


def test_it_is_the_papers_formula():
    """Against the same written out in NumPy."""
    call, params = build(CFG, 0.5, -0.3)
    x, media, mask = inputs()
    kernels = {p: np.asarray(a, np.float64) for p, a in flatten_paths(params).items()}

    def norm(a):
        a = a - a.mean(-1, keepdims=True)
        return a / np.sqrt(np.square(a).mean(-1, keepdims=True) + CFG.norm_eps)

    def heads(a):
        return a.reshape(*a.shape[:2], CFG.heads, CFG.head_dim).transpose(0, 2, 1, 3)

    q = heads(norm(x) @ kernels["query/kernel"])
    k, v = (heads(norm(media) @ kernels[f"{name}/kernel"]) for name in ("key", "value"))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(CFG.head_dim)
    weights = np.where(mask, np.exp(scores), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    gathered = (weights @ v).transpose(0, 2, 1, 3).reshape(B, T, -1) @ kernels["out/kernel"]
    y = x + np.tanh(0.5) * gathered
    hidden = np.square(np.maximum(norm(y) @ kernels["dense/up/kernel"], 0))
    y = y + np.tanh(-0.3) * (hidden @ kernels["dense/down/kernel"])
    np.testing.assert_allclose(call(params, x, media, mask, jnp.float32), y, rtol=1e-4, atol=1e-5)


def test_media_norm_makes_the_scale_of_media_indifferent():
    x, media, mask = inputs()
    for flag in (True, False):
        call, params = build(dataclasses.replace(CFG, media_norm=flag), attention=0.5)
        one, two = (call(params, x, media * f, mask, jnp.float32) for f in (1, 7))
        assert np.allclose(one, two, rtol=1e-3, atol=1e-4) == flag


def test_parameter_paths_and_the_papers_size():
    """24 layers for a width of 2048 are the 1.2B of Flamingo v2 table 5: 12 D² each."""
    cfg = XattnConfig()
    state = nnx.eval_shape(lambda: nnx.state(GatedCrossAttention(cfg, rngs=nnx.Rngs(0))))
    shapes = {p: a.shape for p, a in flatten_paths(nnx.to_pure_dict(state)).items()}
    D = cfg.width
    assert shapes == {
        "gate_attention": (),
        "gate_dense": (),
        **{f"norm_{n}/{p}": (D,) for n in ("query", "media", "dense") for p in ("scale", "bias")},
        **{f"{name}/kernel": (D, D) for name in ("query", "key", "value", "out")},
        "dense/up/kernel": (D, 4 * D),
        "dense/down/kernel": (4 * D, D),
    }
    count = sum(math.prod(shape) for shape in shapes.values())
    assert count == pytest.approx(12 * D**2, rel=1e-3)
    assert round(24 * count / 1e9, 1) == 1.2
