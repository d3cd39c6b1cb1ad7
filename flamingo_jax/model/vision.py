"""The vision tower: pixels normalised, the NFNet, its features as a sequence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.model.nfnet import NFNet, NFNetConfig
from flamingo_jax.shapes import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """An encoder of u8 pixels.

    Attributes:
      nfnet: the network.
      activated: the features come after the last activation; False = before it, where they are
        less sparse.
      standardise: (features - mean) / deviation, a channel at a time, with the two as parameters.
      mean: of R, G, B in 0…1; the defaults bring ImageNet to "mean 0 and variance 1" (Flamingo's
        model card), as NF's dataset.py and timm's dm_nfnet do.
      std: deviations of R, G, B in 0…1.
    """

    nfnet: NFNetConfig
    activated: bool = True
    standardise: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class VisionTower(nnx.Module):
    """Pixels to a sequence of features: nfnet/…, and mean[E], deviation[E] where standardised.

    The two start at 0 and 1 and are to be measured once on the training pictures; no gradient
    reaches them.
    """

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters."""
        self.cfg = cfg
        self.nfnet = NFNet(cfg.nfnet, rngs=rngs)
        E = cfg.nfnet.features_width
        self.mean = nnx.Param(jnp.zeros((E,), jnp.float32)) if cfg.standardise else None
        self.deviation = nnx.Param(jnp.ones((E,), jnp.float32)) if cfg.standardise else None

    def __call__(self, pixels: Array, dtype: Any, key: Array | None = None) -> Array:
        """u8[B, Y, X, 3] → [B, P, E] in `dtype`, rows of the picture one after the other."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.cfg.mean, self.cfg.std))
        network = self.nfnet if self.cfg.activated else self.nfnet.linear
        features = network((pixels.astype(jnp.float32) / 255 - mean) / std, dtype, key)
        # Not -1: a batch without any picture has no size to infer it from.
        B, *grid, E = features.shape
        features = features.reshape(B, math.prod(grid), E)
        if self.mean is None or self.deviation is None:
            return features
        mean, deviation = (lax.stop_gradient(p[...]) for p in (self.mean, self.deviation))
        return ((features - mean) / deviation).astype(dtype)
