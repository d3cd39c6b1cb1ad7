"""Where gated layers stand: tables of segments, and the order in which layers are run."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.model import segments as seg
from flamingo_jax.model.language import Place
from flamingo_jax.model.packing import Packing
from flamingo_jax.model.segments import Segment, segments, xattn_layers

NOWHERE = Place((), Packing(()), None)  # these layers look at no positions

TABLE = {
    # (blocks, every, offset): segments
    (80, 7, 0): [Segment(True, 7, 11), Segment(True, 3, 1)],  # Flamingo-80B
    (32, 4, 3): [Segment(False, 3, 1), Segment(True, 4, 7), Segment(True, 1, 1)],  # OpenFlamingo
    (24, 1, 0): [Segment(True, 1, 24)],  # Flamingo-3B
    (32, 4, 0): [Segment(True, 4, 8)],  # Flamingo-9B
    (40, 4, 0): [Segment(True, 4, 10)],
    (2, 4, 0): [Segment(True, 2, 1)],  # fewer blocks than `every`
    (2, 4, 3): [Segment(False, 2, 1)],
    (5, 5, 4): [Segment(False, 4, 1), Segment(True, 1, 1)],
}


@pytest.mark.parametrize("blocks, every, offset", TABLE)
def test_table(blocks, every, offset):
    assert list(segments(blocks, every, offset)) == TABLE[blocks, every, offset]


@pytest.mark.parametrize(
    ("blocks", "every", "offset"),
    [(b, e, o) for b in (1, 4, 7) for e in (1, 2, 3, 9) for o in range(e)],
)
def test_gated_layers_stand_where_they_are_asked(blocks, every, offset):
    parts = segments(blocks, every, offset)
    layout = [
        (part.has_xattn and i == 0)
        for part in parts
        for _, i in itertools.product(range(part.repeats), range(part.blocks))
    ]
    assert layout == [i >= offset and (i - offset) % every == 0 for i in range(blocks)]
    assert xattn_layers(parts) == sum(layout)
    # OpenFlamingo's rule, (i + 1) % every == 0, is the offset every - 1.
    if offset == every - 1:
        assert layout == [(i + 1) % every == 0 for i in range(blocks)]


@pytest.mark.parametrize(("every", "offset"), [(0, 0), (3, 3), (3, -1)])
def test_nonsense_is_refused(every, offset):
    with pytest.raises(ValueError, match="no sense"):
        segments(8, every, offset)


class AffineBlock(nnx.Module):
    """x → 3·x + number: layers of it do not commute, the result tells their order exactly."""

    def __init__(self, number):
        self.number = nnx.Param(jnp.asarray(number, jnp.float32))

    def __call__(self, x, where, cache, dtype):
        del where
        cache = None if cache is None else (cache[0] + self.number[...], cache[1] - x.sum())
        return 3 * x + self.number[...].astype(dtype), cache


def stack(numbers):
    return nnx.vmap(AffineBlock)(jnp.asarray(numbers, jnp.float32))


LAID_OUT = {"loops": {}, "all laid out": {"unroll": True}, "blocks": {"unroll_blocks": True}}


@pytest.mark.parametrize(
    ("remat", "laid_out"),
    [*((remat, "loops") for remat in seg.REMAT), ("none", "all laid out"), ("dots", "blocks")],
)
@pytest.mark.parametrize(
    ("blocks", "every", "offset"), [(5, 2, 0), (5, 2, 1), (4, 1, 0), (3, 9, 0)]
)
def test_layers_run_in_order_with_their_own_caches(blocks, every, offset, remat, laid_out):
    parts = segments(blocks, every, offset)
    gates = jnp.arange(100.0, 100 + xattn_layers(parts))
    cache = (jnp.arange(blocks, dtype=jnp.float32) * 10, jnp.zeros(blocks))

    def gated(layer, x, media):
        return 3 * x + layer.number[...] + media

    x, kept = seg.run(
        parts,
        stack(jnp.arange(1, blocks + 1)),
        stack(gates),
        jnp.ones(1),
        NOWHERE,
        gated=gated,
        cache=cache,
        media_cache=gates / 2,
        remat=remat,
        **LAID_OUT[laid_out],
        dtype=jnp.float32,
    )
    expected, first, second, gate = np.ones(1), [], [], 0
    for i in range(blocks):
        if i >= offset and (i - offset) % every == 0:
            expected = 3 * expected + 1.5 * float(gates[gate])
            gate += 1
        first.append(10 * i + i + 1)
        second.append(-float(expected[0]))
        expected = 3 * expected + i + 1
    np.testing.assert_array_equal(x, expected)
    assert kept is not None
    np.testing.assert_array_equal(kept[0], first)
    np.testing.assert_array_equal(kept[1], second)


def test_a_bare_model_runs_in_the_same_segments():
    parts, numbers = segments(5, 2, 1), jnp.arange(1, 6)

    def run(parts):
        x, kept = seg.run(parts, stack(numbers), None, jnp.ones(1), NOWHERE, dtype=jnp.float32)
        assert kept is None
        return x

    np.testing.assert_array_equal(run(parts), run(segments(5, 1)))


def test_layers_are_constrained_and_scanned():
    """`constrain` is applied in each segment, and a segment is one loop, however long."""

    def constrain(x):
        return checkpoint_name(x, "constrained")

    def run(x):
        return seg.run(
            segments(80, 7),
            stack(jnp.zeros(80)),
            None,
            x,
            NOWHERE,
            constrain=constrain,
            dtype=jnp.float32,
        )[0]

    jaxpr = jax.make_jaxpr(run)(jnp.ones(2))
    loops = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert len(loops) == 2 and all("name=constrained" in str(e) for e in loops)


class MatrixBlock(nnx.Module):
    """x → x · kernel: layers of whole numbers have gradients without rounding."""

    def __init__(self, kernel):
        self.kernel = nnx.Param(kernel)

    def __call__(self, x, where, cache, dtype):
        return x @ self.kernel[...].astype(dtype), cache


def of_kernels(kernels, gates, x, remat="none", laid_out="loops"):
    """5 blocks in groups of 2, 2 and 1 behind 3 gated layers."""
    blocks, gated = nnx.vmap(MatrixBlock)(kernels), nnx.vmap(MatrixBlock)(gates)

    def step(layer, x, kept):
        del kept
        return layer(x, None, None, jnp.float32)[0]

    more = {"remat": remat, "dtype": jnp.float32} | LAID_OUT[laid_out]
    return seg.run(segments(len(kernels), 2), blocks, gated, x, NOWHERE, gated=step, **more)[0]


@pytest.mark.parametrize("laid_out", LAID_OUT)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_of_stacks_are_those_of_their_layers(remat, laid_out):
    rng = np.random.default_rng(0)
    shapes = ((5, 4, 4), (3, 4, 4), (2, 4))
    *stacks, x = (jnp.asarray(rng.integers(-1, 2, s), jnp.float32) for s in shapes)

    def one_by_one(kernels, gates):
        y = x
        for i in range(5):
            y = y @ gates[i // 2] if i % 2 == 0 else y
            y = y @ kernels[i]
        return y.sum()

    def stacked(kernels, gates):
        return of_kernels(kernels, gates, x, remat, laid_out).sum()

    found = jax.grad(stacked, (0, 1))(*stacks)
    for a, b in zip(found, jax.grad(one_by_one, (0, 1))(*stacks), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("remat", "laid_out", "layers"),
    [("none", "loops", 3), ("full", "loops", 3), ("full", "blocks", 4)],  # a group has 3
)
def test_frozen_stacks_are_read_where_they_are(remat, laid_out, layers):
    """No segment or group is cut out of a stack, nor a layer of it kept for the backward pass."""
    kernels = jax.ShapeDtypeStruct((5, 128, 128), jnp.float32)
    gates = jax.ShapeDtypeStruct((3, 128, 128), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 128), jnp.float32)

    def pulled(kernels, gates, x):
        return jax.grad(lambda x: of_kernels(kernels, gates, x, remat, laid_out).sum())(x)

    one = 4 * 128 * 128
    compiled: Any = jax.jit(pulled).lower(kernels, gates, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < layers * one
    moved = re.findall(r"f32\[(\d),128,128\]\S* (?:copy|slice|dynamic-slice)\(", compiled.as_text())
    assert all(int(number) == 1 for number in moved)
