"""Convolutions: both forms of a grouped one, standardised kernels, pooling at odd edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from flamingo_jax.model.convolution import ScaledConv, average_pool, grouped_conv, standardise


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("sides", "size", "stride", "groups"),
    [
        ((8, 8), 3, 1, 1),
        ((7, 10), 3, 2, 3),
        ((9, 4), 3, 1, 6),
        ((8, 8), 3, 2, 2),
        ((5, 6), 5, 2, 1),
    ],
)
def test_both_forms_agree_with_xlas(sides, size, stride, groups):
    """Outputs and both gradients; the split form is exact up to the order of sums."""
    x, kernel = normal(0, 2, *sides, 12), normal(1, size, size, 12 // groups, 18)

    def xla(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    @jax.jit
    def run(x, kernel, seen):
        results = []
        for form in (
            xla,
            lambda x, k: grouped_conv(x, k, stride=stride, groups=groups, split=True),
            lambda x, k: grouped_conv(x, k, stride=stride, groups=groups, split=False),
        ):
            y, pull = jax.vjp(form, x, kernel)
            results.append((y, *pull(seen)))
        return results

    out = [-(-side // stride) for side in sides]
    expected, *found = run(x, kernel, normal(2, 2, *out, 18))
    for form in found:
        for name, a, b in zip(("y", "dx", "dkernel"), form, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max(), err_msg=name)


def test_the_form_follows_the_platform():
    x, kernel = jnp.zeros((1, 4, 4, 8)), jnp.zeros((3, 3, 4, 8))
    told = {
        split: str(jax.make_jaxpr(lambda x, s=split: grouped_conv(x, kernel, groups=2, split=s))(x))
        for split in (None, True, False)
    }
    assert "feature_group_count=2" in told[False] and "feature_group_count=2" not in told[True]
    assert told[None].count("conv_general_dilated[") == (2 if jax.default_backend() == "cpu" else 1)


@pytest.mark.parametrize("form", ["floor", "add"])
def test_standardised_kernels_have_mean_0_and_norm_gain(form):
    kernel, gain = 3 * normal(3, 3, 3, 5, 7) + 1, 1 + 0.1 * normal(4, 7)
    ours = np.asarray(standardise(kernel, gain, 1e-4, form))
    np.testing.assert_allclose(ours.sum((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.square(ours).sum((0, 1, 2))), gain, rtol=1e-4)


def test_the_two_forms_of_standardisation_differ_where_the_variance_is_small():
    kernel, gain = jnp.full((1, 1, 4, 1), 1e-3).at[0, 0, 0].set(0), jnp.ones(1)
    centred = np.asarray(kernel - kernel.mean()).ravel()
    variance, eps = np.square(centred).mean(), 1e-4
    floor = np.asarray(standardise(kernel, gain, eps, "floor")).ravel()
    add = np.asarray(standardise(kernel, gain, eps, "add")).ravel()
    np.testing.assert_allclose(floor, centred / np.sqrt(eps), rtol=1e-5)
    np.testing.assert_allclose(add, centred / np.sqrt((variance + eps) * 4), rtol=1e-5)


def test_frozen_kernels_are_standardised_in_f32():
    """A kernel kept in bf16 gives what the same numbers in f32 give."""
    conv = ScaledConv(8, 8, size=3, eps=1e-4, form="floor", rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.to_pure_dict(state))
    same = jax.tree.map(lambda a: a.astype(jnp.float32), low)
    x = normal(5, 2, 4, 4, 8)
    one, two = (nnx.merge(graph, params)(x, jnp.float32) for params in (low, same))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("sides", [(4, 6), (5, 4), (3, 7), (1, 1)])
def test_pooling_means_what_is_there(sides):
    x = normal(6, 2, *sides, 3)
    ours = np.asarray(average_pool(jnp.asarray(x)))
    assert ours.shape == (2, -(-sides[0] // 2), -(-sides[1] // 2), 3)
    for row in range(ours.shape[1]):
        for column in range(ours.shape[2]):
            patch = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_allclose(ours[:, row, column], patch.mean((1, 2)), rtol=1e-5)
