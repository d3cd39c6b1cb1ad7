"""The resampler: what is masked does not matter, time embeddings, sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.errors import InputError
from flamingo_jax.model.resampler import Resampler, ResamplerConfig, interpolate_time
from flamingo_jax.shapes import flatten_paths

CFG = ResamplerConfig(
    depth=2,
    latents=3,
    width=16,
    heads=2,
    head_dim=6,
    hidden=24,
    in_width=10,
    max_frames=4,
    embeddings_init=1.0,
    latents_init=1.0,
)


def build(cfg: ResamplerConfig):
    graph, state = nnx.split(Resampler(cfg, rngs=nnx.Rngs(0)))
    call = jax.jit(
        lambda p, x, frames, dtype: nnx.merge(graph, p)(x, frames, dtype), static_argnums=3
    )
    return call, nnx.to_pure_dict(state)


def features(B=2, M=3, F=4, P=5, E=10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((B, M, F, P, E), dtype=np.float32)


@pytest.fixture(scope="module")
def resampler():
    return build(CFG)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype(resampler, dtype):
    call, params = resampler
    out = call(params, features(), np.full((2, 3), 4, np.int32), dtype)
    assert (out.shape, out.dtype) == ((2, 3, CFG.latents, CFG.width), dtype)
    assert np.isfinite(np.asarray(out, np.float32)).all()


def test_frames_that_are_not_there_change_nothing(resampler):
    call, params = resampler
    frames = np.array([[1, 4, 0], [3, 2, 1]], np.int32)
    x = features()
    garbage = x.copy()
    garbage[np.arange(4) >= frames[..., None]] = 1e6
    one, two = (call(params, a, frames, jnp.float32) for a in (x, garbage))
    np.testing.assert_array_equal(one, two)
    cut = call(params, x[:, :, :3], np.minimum(frames, 3), jnp.float32)
    np.testing.assert_allclose(one[1], cut[1], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(one - call(params, x, frames + 1, jnp.float32))[1, 2]).max() > 1e-3


def test_every_valid_frame_counts(resampler):
    call, params = resampler
    frames, x = np.full((2, 3), 4, np.int32), features()
    base = np.asarray(call(params, x, frames, jnp.float32))
    for frame in range(4):
        changed = x.copy()
        changed[0, 1, frame] += 1
        moved = np.abs(np.asarray(call(params, changed, frames, jnp.float32)) - base)
        assert moved[0, 1].max() > 1e-3
        moved[0, 1] = 0
        assert moved.max() == 0, "media do not see one another"


def test_the_order_of_frames_counts_but_that_of_positions_does_not(resampler):
    """Only time is embedded, not space (Flamingo v1 §3.1.1)."""
    call, params = resampler
    frames, x = np.full((2, 3), 4, np.int32), features()
    base = call(params, x, frames, jnp.float32)
    np.testing.assert_allclose(
        call(params, x[:, :, :, ::-1], frames, jnp.float32), base, rtol=1e-4, atol=1e-5
    )
    assert np.abs(np.asarray(call(params, x[:, :, ::-1], frames, jnp.float32) - base)).max() > 1e-2


def test_time_is_interpolated_from_first_to_last():
    time = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
    frames = np.array([[7, 4, 2, 10, 0, 1]], np.int32)
    rows = np.asarray(interpolate_time(jnp.asarray(time), jnp.asarray(frames), 10))
    assert rows.shape == (1, 6, 10, 3)
    halves = np.stack([time[:-1], (time[:-1] + time[1:]) / 2], 1).reshape(6, 3)
    np.testing.assert_allclose(rows[0, 0, :7], [*halves, time[3]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows[0, 1, :4], time, rtol=1e-6)  # as it is
    np.testing.assert_allclose(rows[0, 2, :2], time[:2], rtol=1e-6)
    np.testing.assert_allclose(rows[0, 3, [0, 3, 6, 9]], time, rtol=1e-4, atol=1e-5)


def test_longer_padding_changes_nothing(resampler):
    """Also where the padded length asks for interpolation and a clip's own does not."""
    call, params = resampler
    frames, x = np.array([[3, 4, 6], [6, 1, 5]], np.int32), features(F=6)
    base = call(params, x, frames, jnp.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0), (0, 0)))
    np.testing.assert_allclose(
        call(params, padded, frames, jnp.float32), base, rtol=1e-4, atol=1e-5
    )
    short = call(params, x[:, :2, :4], np.minimum(frames, 4)[:, :2], jnp.float32)
    np.testing.assert_allclose(base[0, :2], short[0], rtol=1e-4, atol=1e-5)


def test_one_embedding_of_time_serves_all_frames():
    call, params = build(dataclasses.replace(CFG, max_frames=1))
    x = features()
    frames = np.full((2, 3), 4, np.int32)
    base = call(params, x, frames, jnp.float32)
    moved = call(params, x[:, :, ::-1], frames, jnp.float32)
    np.testing.assert_allclose(base, moved, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_remat_changes_no_gradient(resampler):
    _, params = resampler
    x, frames = features(), np.array([[1, 4, 0], [3, 2, 1]], np.int32)

    def gradients(cfg):
        graph, _ = nnx.split(nnx.eval_shape(lambda: Resampler(cfg, rngs=nnx.Rngs(0))))

        def loss(p):
            return jnp.sum(jnp.square(nnx.merge(graph, p)(x, frames, jnp.float32)[..., ::2]))

        return jax.jit(jax.grad(loss))(params)

    one, two = (gradients(dataclasses.replace(CFG, remat=flag)) for flag in (False, True))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(one))


def test_too_many_media_are_refused():
    call, params = build(dataclasses.replace(CFG, max_media=2))
    with pytest.raises(InputError, match="3 media"):
        call(params, features(), np.ones((2, 3), np.int32), jnp.float32)


def test_features_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="project"):
        dataclasses.replace(CFG, project=False)


def test_the_papers_size():
    """194M (Flamingo v2 table 5), with 6 distinct layers and heads of 128."""
    state = nnx.eval_shape(lambda: nnx.state(Resampler(ResamplerConfig(), rngs=nnx.Rngs(0))))
    shapes = {p: a.shape for p, a in flatten_paths(nnx.to_pure_dict(state)).items()}
    assert 193.5e6 < sum(math.prod(shape) for shape in shapes.values()) < 194.5e6
    assert shapes["latents"] == (64, 1536)
    assert shapes["layers/query/kernel"] == (6, 1536, 2048)
    assert shapes["project/kernel"] == (3072, 1536)
    biases = {path for path in shapes if path.endswith("bias")}
    assert all("norm" in path for path in biases)
