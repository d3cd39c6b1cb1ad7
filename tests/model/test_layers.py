"""The layers against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.layers import ACTIVATIONS, FeedForward, Linear, Norm
from flamingo_jax.model.products import dot


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_norm_and_rms_norm():
    x, scale, bias = normal(0, 3, 7) * 4 + 2, normal(1, 7), normal(2, 7)
    layer, rms, plain = (
        Norm(7, eps=1e-3),
        Norm(7, kind="rms", eps=1e-3),
        Norm(7, bias=False, eps=1e-3),
    )
    for norm in (layer, rms, plain):
        norm.scale[...] = jnp.asarray(scale)
    assert layer.bias is not None and rms.bias is None and plain.bias is None
    layer.bias[...] = jnp.asarray(bias)
    centred = x - x.mean(axis=-1, keepdims=True)
    standard = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(layer(x, jnp.float32), standard + bias, atol=2e-5)
    np.testing.assert_allclose(plain(x, jnp.float32), standard, atol=2e-5)
    root = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(rms(x, jnp.float32), x / root * scale, atol=2e-5)
    assert rms(x, jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="'layer' or 'rms'"):
        Norm(7, kind="batch")


def test_statistics_of_a_norm_are_float32():
    """The variance of bf16 rows far from zero would be lost in bf16."""
    x = (100 + normal(0, 4, 256)).astype(jnp.bfloat16)
    y = np.asarray(Norm(256)(x, jnp.float32))
    np.testing.assert_allclose(y.std(axis=-1), 1, atol=1e-3)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-4)


def test_activations():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    exact = np.asarray([0.5 * v * (1 + math.erf(v / 2**0.5)) for v in x])
    tanh = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    for name, expected in {
        "gelu": exact,
        "gelu_tanh": tanh,
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
        "squared_relu": np.maximum(x, 0) ** 2,
    }.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), expected, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward(gated):
    layer = FeedForward(5, 9, activation="silu", gated=gated, bias=True, rngs=nnx.Rngs(0))
    x = normal(0, 2, 3, 5)
    linears = [part for part in (layer.gate, layer.up, layer.down) if part is not None]
    for i, part in enumerate(linears):
        assert part.bias is not None
        part.bias[...] = jnp.asarray(normal(10 + i, part.bias.shape[0]))

    def linear(part, x):
        return x @ np.asarray(part.kernel[...]) + np.asarray(part.bias[...])

    def silu(x):
        return x / (1 + np.exp(-x))

    up = linear(layer.up, x)
    hidden = silu(linear(layer.gate, x)) * up if gated else silu(up)
    np.testing.assert_allclose(layer(x, jnp.float32), linear(layer.down, hidden), atol=2e-5)


def test_low_precision_products_sum_in_float32_and_keep_the_operands_dtype_backwards():
    x, kernel = jnp.asarray(normal(0, 3, 512), jnp.bfloat16), jnp.asarray(normal(1, 512, 4))
    wide = dot(x, kernel, jnp.bfloat16, jnp.float32)
    exact = x.astype(jnp.float32) @ kernel.astype(jnp.bfloat16).astype(jnp.float32)
    assert wide.dtype == jnp.float32 and dot(x, kernel, jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-4)

    def total(x, kernel):
        return jnp.sum(jnp.sin(dot(x, kernel, jnp.bfloat16, jnp.float32)))

    dx, dk = jax.grad(total, argnums=(0, 1))(x, kernel)
    assert dx.dtype == jnp.bfloat16 and dk.dtype == jnp.float32
    cosine = np.cos(exact)
    low = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    expected = x.astype(jnp.float32).T @ cosine
    np.testing.assert_allclose(dk, expected, atol=0.02 * float(jnp.abs(expected).max()))
    np.testing.assert_allclose(
        dx.astype(jnp.float32), cosine @ low.T, atol=0.02 * float(np.abs(cosine @ low.T).max())
    )
    products = [
        e for e in jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(x, kernel).eqns
        if e.primitive.name == "dot_general"
    ]  # fmt: skip
    assert products
    assert all(v.aval.dtype == jnp.bfloat16 for e in products for v in e.invars)


def test_linears_start_with_unit_variance():
    layer = Linear(1000, 50, rngs=nnx.Rngs(0))
    assert layer.bias is None
    np.testing.assert_allclose(np.std(layer.kernel[...]), 1000**-0.5, rtol=0.02)
