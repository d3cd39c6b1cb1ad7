"""The vision tower: pixels normalised, the encoder of either kind, its features as a sequence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.model.nfnet import NFNet, NFNetConfig
from flamingo_jax.model.vit import ViT, ViTConfig
from flamingo_jax.shapes import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """An encoder of u8 pixels, and what everything else may ask about it.

    Attributes:
      nfnet: the network, if it is an NFNet.
      activated: an NFNet's features come after the last activation; False = before it, where they
        are less sparse.
      standardise: (features - mean) / deviation, a channel at a time, with the two as parameters.
      mean: of R, G, B in 0…1; the defaults bring ImageNet to "mean 0 and variance 1" (Flamingo's
        model card), as NF's dataset.py and timm's dm_nfnet do.
      std: deviations of R, G, B in 0…1.
      vit: the network, if it is a ViT.
    """

    nfnet: NFNetConfig | None = None
    activated: bool = True
    standardise: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    vit: ViTConfig | None = None

    def __post_init__(self):
        """Refuses none and both of the networks."""
        if (self.nfnet is None) == (self.vit is None):
            raise ValueError("a vision encoder is either an NFNet or a ViT; give one of them")

    @property
    def network(self) -> NFNetConfig | ViTConfig:
        """The shape of the network, of whichever kind."""
        network = self.nfnet or self.vit
        assert network is not None
        return network

    @property
    def width(self) -> int:
        """E, the width of the features."""
        return self.network.features_width

    def features(self, image_size: int) -> int:
        """P, features of a square picture of so many pixels a side."""
        return self.network.features(image_size)

    def flops(self, image_size: int) -> int:
        """FLOPs (multiplications and additions) of the forward pass of one square picture."""
        return self.network.flops(image_size)

    def first_flops(self, image_size: int) -> int:
        """Of those, the first product's: pixels need no gradient, so that it has one less."""
        return self.network.first_flops(image_size)

    def attention_flops(self, image_size: int) -> int:
        """Of those, attention's products of activations with one another."""
        return self.network.attention_flops(image_size)

    def identity(self) -> VisionConfig:
        """The encoder less what does not change its features once it is frozen."""
        if self.nfnet is not None:
            network = dataclasses.replace(self.nfnet, stochastic_depth=0.0)  # of training alone
            return dataclasses.replace(self, nfnet=network)
        assert self.vit is not None
        return dataclasses.replace(self, vit=dataclasses.replace(self.vit, unroll=False))

    def computed_on(self, platform: str) -> VisionConfig:
        """The encoder as a platform's devices compute it best."""
        if self.nfnet is None:
            return self
        split = platform != "tpu"
        return dataclasses.replace(self, nfnet=dataclasses.replace(self.nfnet, split_groups=split))


class VisionTower(nnx.Module):
    """Pixels to a sequence of features: nfnet/… or vit/…; mean[E], deviation[E] if standardised.

    The two start at 0 and 1 and are to be measured once on the training pictures; no gradient
    reaches them.
    """

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters."""
        self.cfg = cfg
        self.nfnet = None if cfg.nfnet is None else NFNet(cfg.nfnet, rngs=rngs)
        self.vit = None if cfg.vit is None else ViT(cfg.vit, rngs=rngs)
        E = cfg.width
        self.mean = nnx.Param(jnp.zeros((E,), jnp.float32)) if cfg.standardise else None
        self.deviation = nnx.Param(jnp.ones((E,), jnp.float32)) if cfg.standardise else None

    def __call__(self, pixels: Array, dtype: Any, key: Array | None = None) -> Array:
        """u8[B, Y, X, 3] → [B, P, E] in `dtype`, rows of the picture one after the other."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.cfg.mean, self.cfg.std))
        features = self._network((pixels.astype(jnp.float32) / 255 - mean) / std, dtype, key)
        # Not -1: a batch without any picture has no size to infer it from.
        B, *grid, E = features.shape
        features = features.reshape(B, math.prod(grid), E)
        if self.mean is None or self.deviation is None:
            return features
        mean, deviation = (lax.stop_gradient(p[...]) for p in (self.mean, self.deviation))
        return ((features - mean) / deviation).astype(dtype)

    def _network(self, pixels: Array, dtype: Any, key: Array | None) -> Array:
        """Normalised pixels → features, [B, y, x, E] or [B, P, E]."""
        if self.nfnet is not None:
            network = self.nfnet if self.cfg.activated else self.nfnet.linear
            return network(pixels, dtype, key)
        assert self.vit is not None
        return self.vit(pixels, dtype)
