"""What the backward keeps, what it computes again, and what it never computes."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import Batch, Params, flatten_paths, merge_trees, unflatten_paths

B, T, V, D, L = 2, 64, 19, 16, 6
NAMES = ("none", "dots", "attention", "full")
TRAINED = ("resampler/", "xattn/", "project/", "embed/new")
# No two kernels of different parts have the same shape: a product's result tells whose it is.
MODEL = FlamingoConfig(
    DecoderConfig(V, D, L, heads=4, head_dim=6, hidden=40, positions="rotary", new_tokens=2),
    resampler=ResamplerConfig(
        depth=1, latents=3, width=12, heads=2, head_dim=7, hidden=28, in_width=8, max_frames=1
    ),
    xattn=XattnConfig(width=D, media_width=D, heads=2, head_dim=10, hidden=36),
    every=3,
)


def example() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        tokens=rng.integers(0, V + 2, (B, T), np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        media=rng.normal(size=(B, 2, 1, 4, 8)).astype(np.float32),
        frames=np.ones((B, 2), np.int32),
        media_of_token=np.tile(np.minimum(np.arange(T, dtype=np.int32) // 9, 2), (B, 1)),
        loss_mask=np.ones((B, T), np.float32),
    )


@functools.cache
def split(cfg: FlamingoConfig, trained: tuple[str, ...]) -> tuple[Any, Params, Params]:
    """Graph, trainable and frozen parameters, all drawn: gates are open."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Flamingo(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    flat = {
        path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in flatten_paths(nnx.to_pure_dict(state)).items()
    }
    of = {path: any(path.startswith(part) for part in trained) for path in flat}

    def part(kept: bool) -> Params:
        return unflatten_paths({path: flat[path] for path in flat if of[path] == kept})

    return graph, part(True), part(False)


def gradient(
    remat: str = "none", dtype: str = "float32", trained: tuple[str, ...] = TRAINED, **fields: Any
) -> tuple[Any, Params, Params]:
    """A function of trainable and frozen parameters, and both."""
    cfg = dataclasses.replace(MODEL, remat=remat, dtype=dtype, **fields)
    graph, params, frozen = split(cfg, trained)

    def loss(params: Params, frozen: Params) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graph, merge_trees(params, frozen))(example())))

    return jax.grad(loss), params, frozen


@functools.cache
def compiled(remat: str) -> tuple[Params, int]:
    """The gradient under a policy, and its program's temporary bytes."""
    function, params, frozen = gradient(remat)
    program: Any = jax.jit(function).lower(params, frozen).compile()
    return program(params, frozen), program.memory_analysis().temp_size_in_bytes


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize("remat", NAMES[1:])
def test_gradients_do_not_depend_on_what_is_kept(remat):
    expected, found = (flatten_paths(compiled(name)[0]) for name in ("none", remat))
    for path, leaf in expected.items():
        assert np.any(np.asarray(leaf)), path
        scale = float(jnp.abs(leaf).max())
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=2e-5 * scale, err_msg=path)


def kept(remat: str, dtype: str) -> int:
    """Bytes of what the forward hands to the backward, the parameters apart."""
    cfg = dataclasses.replace(MODEL, remat=remat, dtype=dtype)
    graph, params, frozen = split(cfg, TRAINED)

    def forward(params: Params, frozen: Params) -> Any:
        def total(params: Params) -> jax.Array:
            return jnp.sum(nnx.merge(graph, merge_trees(params, frozen))(example()))

        return jax.vjp(total, params)[1]

    frozen = jax.tree.map(lambda leaf: leaf.astype(dtype), frozen)
    leaves = jax.tree.leaves(jax.eval_shape(forward, params, frozen))
    return sum(a.size * a.dtype.itemsize for a in leaves if T in a.shape and V not in a.shape)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=SLOW), "bfloat16"])
def test_what_is_kept_is_what_the_policy_says(dtype):
    sizes = {name: kept(name, dtype) for name in NAMES}
    wide = B * T * D * jnp.dtype(dtype).itemsize
    # Of a block: queries, keys and values are 1.5 D wide here, the feed-forward's hidden 2.5 D.
    blocks = {"full": 1, "attention": 1 + 4.5 + 1, "dots": 1 + 4.5 + 1 + 2.5}
    # Of a gated layer: queries are 1.25 D wide, the hidden 2.25 D; media are few.
    gated = {"full": 1, "attention": 1 + 1.25 + 1, "dots": 1 + 1.25 + 1 + 2.25}
    for name in blocks:
        extra = sizes[name] - sizes["full"]
        expected = L * (blocks[name] - 1) + L // 3 * (gated[name] - 1)
        assert expected * wide <= extra <= 1.1 * expected * wide, (name, extra / wide, expected)
    assert sizes["none"] > 2 * sizes["dots"]


@SLOW
def test_the_less_is_kept_the_less_memory_is_needed():
    """As config.py's table orders them."""
    sizes = {name: compiled(name)[1] for name in NAMES}
    assert sizes["none"] > 2 * sizes["dots"] and sizes["dots"] > 1.5 * sizes["full"], sizes
    assert sizes["dots"] > sizes["attention"] > sizes["full"], sizes


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[tuple[int, ...], int]]:
    """(shape of the result, how often it is computed) of every matrix product."""
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            yield e.outvars[0].aval.shape, times
        loops = times * e.params.get("length", 1) if e.primitive.name == "scan" else times
        for value in e.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from products(inner, loops)


def count(shapes: list[tuple[tuple[int, ...], int]], *shape: int) -> int:
    return sum(times for found, times in shapes if sorted(found) == sorted(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "full", "attention"])
def test_no_gradient_of_a_frozen_kernel_is_computed(remat, dtype):
    function, params, frozen = gradient(remat, dtype)
    shapes = list(products(jax.make_jaxpr(function)(params, frozen).jaxpr))
    for path, leaf in flatten_paths(frozen).items():
        if leaf.ndim > 1 and path.startswith("language/"):
            assert count(shapes, *leaf.shape[1:]) == 0, path
    assert count(shapes, V, D) == 0
    assert count(shapes, D, 36) == 2 * math.ceil(L / 3)  # up and down of the gated layers


def test_no_gradient_passes_blocks_that_nothing_trained_stands_before():
    """Two blocks before the first gated layer: [B, T, I] is made forward and, where a gradient
    passes, by the backward of `down`."""
    for trained, backward in ((TRAINED, L), (TRAINED[:3], L - 2)):
        function, params, frozen = gradient(trained=trained, offset=2)
        shapes = list(products(jax.make_jaxpr(function)(params, frozen).jaxpr))
        assert count(shapes, B, T, 40) == L + backward
