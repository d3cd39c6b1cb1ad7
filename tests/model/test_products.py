"""What products are summed in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.model.products import dot, rounded_sums

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)


def sums(rounded: bool, out=None) -> list[str]:
    """The dtypes of all products of a forward and backward pass, in their order."""

    def loss(x, kernel):
        with rounded_sums(rounded):
            y = dot(x, kernel, jnp.bfloat16, out)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.append(str(eqn.outvars[0].aval.dtype))
            for value in eqn.params.values():
                for inner in value if isinstance(value, list | tuple) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    walk(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(X, KERNEL).jaxpr)
    return found


def test_a_device_gives_its_part_in_f32_or_rounded():
    """Of the forward and the rows' gradient; a kernel's gradient is summed over rows, in f32."""
    assert sums(False) == ["float32"] * 3
    assert sums(True) == ["bfloat16", "bfloat16", "float32"]
    assert sums(True, jnp.float32) == ["float32", "bfloat16", "float32"]  # logits stay f32
    assert sums(False) == ["float32"] * 3  # nothing is left behind


def test_the_scope_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), rounded_sums(True):
        raise ZeroDivisionError
    assert sums(False) == ["float32"] * 3


def test_both_are_the_product():
    expected = X.reshape(-1, 8) @ KERNEL
    for rounded in (False, True):
        with rounded_sums(rounded):
            found = dot(X, KERNEL, jnp.bfloat16)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(found, np.float32).reshape(-1, 6), expected, atol=0.1, rtol=0.02
        )
    with rounded_sums(True):
        np.testing.assert_allclose(dot(X, KERNEL, jnp.float32).reshape(-1, 6), expected, rtol=1e-5)
