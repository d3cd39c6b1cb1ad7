"""The ViT tower: what its features are, and what everything else is told about it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax import assemble, config
from flamingo_jax.errors import InputError
from flamingo_jax.model.nfnet import VARIANTS
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.model.vit import ViT, ViTConfig
from flamingo_jax.planning import flops

SMALL = ViTConfig(image_size=12, patch=4, width=16, blocks=2, heads=2, hidden=24)


def pixels(seed: int = 0, side: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, side, side, 3), np.float32)


def made(cfg: ViTConfig) -> ViT:
    return ViT(cfg, rngs=nnx.Rngs(0))


def test_features_are_the_patches_row_after_row():
    """Without blocks and norms' mixing a feature is a function of its own patch."""
    cfg = dataclasses.replace(SMALL, blocks=1)
    model = made(cfg)
    x = pixels()
    changed = x.copy()
    changed[:, 4:8, 8:12] += 1  # the patch in row 1, column 2
    before, after = (np.asarray(model.embed(a, jnp.float32)) for a in (x, changed))
    moved = np.abs(after - before).max(axis=(0, 2)) > 0
    assert moved.tolist() == [place == 1 + 3 * 1 + 2 for place in range(10)]


def test_which_tokens_and_which_norm():
    plain = made(SMALL)(pixels(), jnp.float32)
    whole = made(dataclasses.replace(SMALL, class_feature=True))(pixels(), jnp.float32)
    assert plain.shape == (2, SMALL.features(12), 16) and whole.shape == (2, 10, 16)
    np.testing.assert_array_equal(plain, whole[:, 1:])
    model = made(dataclasses.replace(SMALL, normed=True))
    model.norm_out.scale[...] = jnp.full((16,), 3.0)
    normed = model(pixels(), jnp.float32)
    np.testing.assert_allclose(normed, model.norm_out(plain, jnp.float32), rtol=1e-6, atol=1e-6)
    assert np.abs(normed - plain).max() > 0.1


def test_laid_out_it_computes_the_same():
    laid_out = made(dataclasses.replace(SMALL, unroll=True))
    both = [jax.jit(lambda x, m=m: m(x, jnp.float32))(pixels()) for m in (made(SMALL), laid_out)]
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)


def test_it_costs_what_its_shapes_say():
    model = made(SMALL)
    traced = jax.jit(lambda x: model(x, jnp.float32)).trace(pixels()[:1])
    found = flops.count(traced.jaxpr)
    assert found.total == SMALL.flops(12)
    assert found.by_kind["batched product"] == SMALL.attention_flops(12)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="12 pixels a side, not 16"):
        made(SMALL)(pixels(side=16), jnp.float32)
    with pytest.raises(ValueError, match="12 pixels a side, not 16"):
        VisionConfig(vit=SMALL).features(16)


def test_a_tower_is_of_one_kind():
    for fields in ({}, {"vit": SMALL, "nfnet": VARIANTS["tiny"]}):
        with pytest.raises(ValueError, match="either an NFNet or a ViT"):
            VisionConfig(**fields)
    tower = VisionTower(VisionConfig(vit=SMALL, standardise=True), rngs=nnx.Rngs(0))
    shown = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    assert tower(shown, jnp.bfloat16).shape == (2, 9, 16)
    assert set(nnx.to_pure_dict(nnx.state(tower))) == {"vit", "mean", "deviation"}
    for cfg in (VisionConfig(vit=SMALL), VisionConfig(VARIANTS["tiny"])):
        assert cfg.flops(12) > cfg.first_flops(12) > 0 and cfg.width and cfg.features(12)


def test_what_identifies_its_features():
    """How the program is written is none of it, nor what only training has."""
    laid_out = VisionConfig(vit=dataclasses.replace(SMALL, unroll=True))
    assert laid_out.identity() == VisionConfig(vit=SMALL)
    dropped = dataclasses.replace(VARIANTS["tiny"], stochastic_depth=0.1)
    assert VisionConfig(dropped).identity() == VisionConfig(VARIANTS["tiny"])


def with_vit(**fields: Any) -> Any:
    c = config.base()
    c.stages = ("flamingo",)
    c.train.update(steps=1)
    c.train.datasets.pairs = config.dataset(source="pairs")
    c.model.vision.update(kind="vit", image_size=12)
    c.model.vision.vit.update(patch=4, width=16, blocks=2, heads=2, hidden=24)
    for field, value in fields.items():
        config.override(c, field.replace("__", "."), str(value))
    return config.finish(c)


def test_of_a_config():
    c = with_vit(model__xattn__media_norm=False)
    whole = assemble.flamingo_config(c, assemble.Vocabulary(32, 2))
    assert whole.vision is not None and whole.vision.vit == SMALL
    assert whole.resampler is not None and whole.resampler.in_width == 16
    assert whole.xattn is not None and not whole.xattn.media_norm


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model.vision.kind", "resnet", r"one of nfnet, vit"),
        ("model.vision.vit.heads", "3", r"vit\.heads=3 does not divide width=16"),
        ("model.vision.vit.patch", "13", r"vit\.patch is 13; at least 1 and at most"),
        ("model.vision.vit.activation", "tanh", r"one of quick_gelu, gelu"),
        ("data.image_size", "16", r"positions are learnt; set it to 0"),
    ],
)
def test_configs_that_make_no_sense(field, value, told):
    with pytest.raises(InputError, match=told):
        with_vit(**{field.replace(".", "__"): value})
