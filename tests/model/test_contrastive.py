"""The two-term contrastive loss against NumPy, and the unit vectors it compares."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.model.nfnet import NFNetConfig
from flamingo_jax.model.text import TextConfig
from flamingo_jax.model.vision import VisionConfig

SMALL = NFNetConfig(
    widths=(8,), depths=(1,), strides=(1,), stem=((4, 2), (8, 2)), group_width=8, final_width=8
)


def config(**fields) -> ContrastiveConfig:
    text = TextConfig(vocab=20, width=12, blocks=1, heads=3, hidden=24, max_length=6)
    return ContrastiveConfig(VisionConfig(SMALL), text, width=10, **fields)


def make(logit_scale, **fields) -> Contrastive:
    """A model that has this scale, and of its other parameters the shapes alone."""
    model = nnx.eval_shape(lambda: Contrastive(config(**fields), rngs=nnx.Rngs(0)))
    model.logit_scale = nnx.Param(jnp.asarray(logit_scale))
    return model


def unit(seed: int, rows: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, 10))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clip_loss(images, texts, scale, smooth) -> float:
    """Radford et al. 2021, fig. 3, the two terms summed, targets smoothed."""
    scores = scale * images.astype(np.float64) @ texts.astype(np.float64).T
    total = 0.0
    for rows in (scores, scores.T):
        for i, row in enumerate(rows):
            log_probs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
            targets = np.full(len(row), smooth / len(row))
            targets[i] += 1 - smooth
            total -= (targets * log_probs).sum() / len(rows)
    return total


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_the_loss_is_clips(smooth):
    model = make(math.log(5.0), label_smoothing=smooth)
    images, texts = unit(0, 5), unit(1, 5)
    loss, aux = model.loss(jnp.asarray(images), jnp.asarray(texts))
    np.testing.assert_allclose(loss, clip_loss(images, texts, 5.0, smooth), rtol=1e-5)
    right = np.mean(np.argmax(images @ texts.T, axis=1) == np.arange(5))
    np.testing.assert_allclose(aux["retrieval"], right)
    np.testing.assert_allclose(aux["logit_scale"], 5.0, rtol=1e-6)


def test_the_scale_is_learnt_up_to_clips_bound():
    images, texts = jnp.asarray(unit(0, 4)), jnp.asarray(unit(1, 4))

    def loss(logit_scale):
        value, aux = make(logit_scale).loss(images, texts)
        return value, aux["logit_scale"]

    low, _ = jax.grad(loss, has_aux=True)(jnp.asarray(math.log(10.0)))
    _, scale = jax.grad(loss, has_aux=True)(jnp.asarray(9.0))
    assert abs(float(low)) > 1e-2
    np.testing.assert_allclose(scale, 100.0, rtol=1e-5)


@pytest.fixture(scope="module")
def towers():
    """(u8 pixels, tokens, positions) → both embeddings; and the parameters."""
    cfg = config(temperature=0.2, dtype="float32")
    graph, _ = nnx.split(nnx.eval_shape(lambda: Contrastive(cfg, rngs=nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(Contrastive(cfg, rngs=nnx.Rngs(0)))))()

    @jax.jit
    def embed(pixels, tokens, positions):
        model = nnx.merge(graph, params)
        return model.embed_images(pixels), model.embed_texts(tokens, positions)

    return embed, params


def test_embeddings_are_unit_vectors_of_each_row_alone(towers):
    embed, _ = towers
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    tokens = np.asarray([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    positions = np.asarray([[0, 1, 2], [0, 1, -1], [0, -1, -1]])
    both = embed(pixels, tokens, positions)
    order = np.asarray([2, 0, 1])
    for found, turned in zip(
        both, embed(pixels[order], tokens[order], positions[order]), strict=True
    ):
        assert found.shape == (3, 10) and found.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(turned, found[order], atol=1e-6)
        assert np.abs(found[0] - found[1]).max() > 1e-3


def test_the_temperature_starts_as_configured(towers):
    np.testing.assert_allclose(np.exp(towers[1]["logit_scale"]), 5.0, rtol=1e-6)
