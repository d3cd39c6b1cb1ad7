"""Fused attention against the plain form: kernels are interpreted here, and compiled in planning's.

cuDNN's has no interpreter: of it the arguments and the zero rows are tested, with XLA underneath.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flamingo_jax import assemble
from flamingo_jax.layout import Layout
from flamingo_jax.model import fused
from flamingo_jax.model.attention import attend
from flamingo_jax.model.flamingo import Flamingo
from flamingo_jax.model.masks import (
    Mask,
    causal_mask,
    make_causal,
    make_media,
    make_valid,
    media_mask,
)
from flamingo_jax.shapes import Batch
from flamingo_jax.sharding import ROWS
from tests.small import FEATURES, VOCABULARY, described, make_mesh

SPLASH = Layout(attention="splash")
CUDNN = Layout(attention="cudnn")


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def qkv(B: int, T: int, S: int, N: int, K: int, H: int, dtype: Any = jnp.float32) -> Any:
    sizes = ((T, N), (S, K), (S, K))
    return tuple(normal(i, B, *size, H, dtype=dtype) for i, size in enumerate(sizes))


def padded(B: int, T: int) -> Any:
    """Row 0 is padded on the left, row 1 on the right; the others are full."""
    positions = np.tile(np.arange(T), (B, 1))
    positions[0] -= 9
    positions[1, -11:] = -1
    return jnp.asarray(np.maximum(positions, -1), jnp.int32)


def page(attend: str = "one") -> Mask:
    """Text before the first image, images of 40 latents, one that is not there, one unmentioned."""
    starts = np.asarray([[5, 30, 50], [0, 20, 40], [64, 64, 64]])
    of_token = np.sum(np.arange(64) >= starts[..., None], axis=1)
    frames = jnp.asarray([[1, 1, 1], [1, 0, 2], [1, 1, 0]])
    return make_media(jnp.asarray(of_token, jnp.int32), frames, 40, attend)


def clips(queries: int) -> Mask:
    """A clip with all of 3 frames of 30 features, and one with a single one; then the latents."""
    valid = np.arange(3) < np.asarray([[3], [1]])
    valid = np.concatenate([np.repeat(valid, 30, axis=1), np.ones((2, queries), bool)], axis=1)
    return make_valid(jnp.asarray(valid), queries)


def both(
    arrays: tuple, mask: Any, layout: Layout, **options: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Result and gradients of the plain form, and of the layout's."""

    def values(layout: Layout) -> list[np.ndarray]:
        def loss(q: Any, k: Any, v: Any) -> Any:
            out = attend(q, k, v, mask, layout=layout, **options)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(a, np.float32) for a in (out, *gradients)]

    return values(Layout()), values(layout)


def close(found: list[np.ndarray], expected: list[np.ndarray], rounding: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, rtol=0, atol=rounding * np.abs(b).max())


@pytest.mark.parametrize(
    ("arrays", "mask"),
    [
        (qkv(2, 70, 70, 4, 2, 16), make_causal(padded(2, 70))),
        (qkv(3, 64, 120, 2, 2, 16), page()),
        (qkv(2, 64, 154, 2, 2, 8), clips(64)),
    ],
    ids=["text", "page", "clips"],
)
def test_splash_is_plain_attention(arrays, mask):
    q, k, _ = arrays
    assert fused.takes(q, k, mask, None, SPLASH) is fused.splash
    plain, kernel = both(arrays, mask, SPLASH)
    close(kernel, plain, 2e-6)
    blind = ~np.asarray(jnp.any(mask.dense, axis=-1))[:, 0]
    if blind.shape[1] > 1:
        assert blind.any() and np.all(kernel[0][blind] == 0) and np.all(kernel[1][blind] == 0)


def test_splash_in_bfloat16_differs_by_rounding():
    """Long enough for two blocks of keys, with a scale of its own, and without a mask."""
    arrays = qkv(1, 130, 600, 1, 1, 32, dtype=jnp.bfloat16)
    plain, kernel = both(arrays, None, SPLASH, scale=0.3)
    exact, _ = both(tuple(a.astype(jnp.float32) for a in arrays), None, SPLASH, scale=0.3)
    close(kernel, exact, 0.02)
    close(plain, exact, 0.02)


def test_on_a_mesh_each_device_has_its_own_rows_and_heads():
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    arrays = qkv(4, 64, 64, 4, 1, 8)  # one head of keys, which 2 devices cannot share
    heads = NamedSharding(mesh, P(ROWS, None, "tensor"))
    q = jax.device_put(arrays[0], heads)
    plain, kernel = both(
        (q, *arrays[1:]), make_causal(padded(4, 64)), Layout(mesh, attention="splash")
    )
    close(kernel, plain, 2e-6)
    spread = jax.jit(functools.partial(attend, mask=None, layout=Layout(mesh, attention="splash")))
    program = spread.lower(q, q, q).compile().as_text()
    assert program and "all-gather" not in program


def test_what_has_no_fused_form_is_plain():
    q, k, _ = qkv(2, 64, 64, 2, 2, 8)
    mask = make_causal(padded(2, 64))
    mesh = make_mesh(fsdp=4)
    plain = functools.partial(fused.takes, bias=None, layout=SPLASH)
    assert plain(q, k, mask) is plain(q, k, None) is fused.splash
    assert fused.takes(q, k, mask, None, Layout()) is None
    assert fused.takes(q, k, mask, jnp.zeros((1, 1, 1, 1)), SPLASH) is None
    assert plain(q, k, Mask(mask.dense)) is None  # a cache's: of no segments
    assert plain(q[:, :63], k, None) is None and plain(q, k[:, :63], None) is None
    assert plain(q, k, None, layout=Layout(mesh, attention="splash")) is None  # 2 rows on 4
    of_token, frames = jnp.ones((2, 64), jnp.int32), jnp.ones((2, 1), jnp.int32)
    assert plain(q, k, make_media(of_token, frames, 64, "upto")) is None
    half = q.astype(jnp.bfloat16)
    takes = functools.partial(fused.takes, bias=None, layout=CUDNN)
    assert takes(half, half, Mask(mask.dense)) is fused.cudnn
    assert takes(q, k, mask) is None  # f32
    assert takes(half, half[:, 1:], None) is None  # an odd number
    assert takes(half[..., :7], half[..., :7], None) is None


def test_segments_say_what_the_dense_mask_says():
    positions, of_token = padded(3, 20), jnp.asarray([[0, 1, 2, 2, 3], [1, 1, 1, 3, 3]])
    frames = jnp.asarray([[1, 0, 2], [1, 1, 1]])
    valid = jnp.asarray([[True, False, True]])
    masks = (make_causal(positions), make_media(of_token, frames, 2), make_valid(valid, 4))
    dense = (causal_mask(positions), media_mask(of_token, frames, 2), valid[:, None, None])
    for mask, expected in zip(masks, dense, strict=True):
        assert mask.segments is not None
        found = mask.segments.queries[:, :, None] == mask.segments.keys[:, None, :]
        if mask.segments.causal:
            found &= np.tri(found.shape[1], dtype=bool)
        np.testing.assert_array_equal(mask.dense, expected)
        np.testing.assert_array_equal(found, np.broadcast_to(expected[:, 0], found.shape))
        # Who sees nothing is told, as kernels would else give such a row the mean of all values.
        np.testing.assert_array_equal(mask.segments.queries >= 0, found.any(axis=-1))
    assert make_media(of_token, frames, 2, "upto").segments is None
    assert make_media(of_token, frames[:, :0], 2).segments is None


@pytest.mark.parametrize("mask", [page(), page("upto"), None], ids=["one", "upto", "none"])
def test_around_cudnn_rows_without_keys_are_zero(mask):
    q, k, v = qkv(3, 64, 120, 4, 2, 8)
    around = functools.partial(fused.cudnn, layout=CUDNN, scale=0.2, implementation="xla")

    def gathered(form: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda q: jnp.sum(form(q) ** 2)))(q)

    expected, gradient = gathered(lambda q: attend(q, k, v, mask, scale=0.2))
    found, own = gathered(lambda q: around(q, k, v, mask))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(own, gradient, atol=2e-6 * float(jnp.abs(gradient).max()))
    if mask is not None:
        assert np.all(np.asarray(around(q, k, v, mask))[0, :5] == 0)


def test_a_platform_has_one_kernel_and_a_cpu_none():
    assert [fused.kernel_of("fused", name) for name in ("tpu", "gpu", "cpu")] == [
        *("splash", "cudnn", "plain"),
    ]
    assert {fused.kernel_of("plain", name) for name in ("tpu", "gpu", "cpu")} == {"plain"}
    assert [fused.blocks(n) for n in (64, 128, 320, 512, 864)] == [
        *((128, 128), (128, 128), (384, 384), (512, 512), (512, 1024)),
    ]


def flamingo(attention: str) -> tuple[Any, Any, Batch]:
    """A function of (state, batch) → the last hidden states of a small model, and its arguments."""
    c = described()
    c.model.language.update(positions="rotary", kv_heads=1)
    c.model.resampler.latents = 64
    batch = Batch(
        tokens=jnp.ones((2, 64), jnp.int32),
        positions=padded(2, 64),
        media=normal(0, 2, 2, 2, *FEATURES),
        frames=jnp.asarray([[2, 1], [1, 0]]),
        media_of_token=jnp.asarray(np.sum(np.arange(64) >= [[[20], [40]]], axis=1)).repeat(2, 0),
        loss_mask=jnp.ones((2, 64)),
    )
    cfg = assemble.flamingo_config(c, VOCABULARY)
    model = Flamingo(cfg, rngs=nnx.Rngs(params=0), layout=Layout(attention=attention))
    assert model.xattn is not None
    model.xattn.gate_attention[...] += 1.0
    graph, state = nnx.split(model)
    return lambda state, batch: nnx.merge(graph, state).hidden(batch), state, batch


def test_all_attentions_of_a_flamingo_have_a_fused_form(smallest):
    """Text, gated layers and resampler, each in a loop of its own."""
    for attention, kernels in (("plain", 0), ("splash", 3)):
        run, *arguments = flamingo(attention)
        assert str(jax.make_jaxpr(run)(*arguments)).count("pallas_call") == kernels


@pytest.mark.slow
def test_a_flamingo_sees_the_same_through_kernels(smallest):
    found = []
    for attention in ("splash", "plain"):
        run, *arguments = flamingo(attention)
        found.append(np.asarray(jax.jit(run)(*arguments)))
    close(found[:1], found[1:], 2e-6)
