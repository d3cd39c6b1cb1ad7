"""Vision and text towers joined by the two-term contrastive loss (Flamingo §B.1.3; CLIP)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from flamingo_jax.model.layers import Linear
from flamingo_jax.model.text import TextConfig, TextEncoder
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.shapes import Array

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP's bound (Radford et al. 2021, §2.5)."""


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Both towers and their joint space."""

    vision: VisionConfig
    text: TextConfig
    width: int  # A
    temperature: float = 0.07
    label_smoothing: float = 0.1
    dtype: str = "float32"


class Contrastive(nnx.Module):
    """Parameter paths: vision/…, text/…, image_projection/kernel, text_projection/kernel, scale."""

    def __init__(self, cfg: ContrastiveConfig, *, rngs: nnx.Rngs):
        """Makes both towers and the projections to the joint space."""
        self.vision = VisionTower(cfg.vision, rngs=rngs)
        self.text = TextEncoder(cfg.text, rngs=rngs)
        self.image_projection = Linear(cfg.vision.width, cfg.width, rngs=rngs)
        self.text_projection = Linear(cfg.text.width, cfg.width, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / cfg.temperature), jnp.float32))
        self.cfg = cfg

    def embed_images(self, pixels: Array, key: Array | None = None) -> Array:
        """u8[B, Y, X, C] → unit vectors f32[B, A]: mean over positions, projected."""
        features = self.vision(pixels, jnp.dtype(self.cfg.dtype), key)
        pooled = jnp.mean(features.astype(jnp.float32), axis=1)
        return _unit(self.image_projection(pooled, jnp.float32))

    def embed_texts(self, tokens: Array, positions: Array) -> Array:
        """i32[B, T] → unit vectors f32[B, A]: mean over tokens, projected."""
        pooled = self.text(tokens, positions, jnp.dtype(self.cfg.dtype))
        return _unit(self.text_projection(pooled, jnp.float32))

    def loss(self, images: Array, texts: Array) -> tuple[Array, dict[str, Array]]:
        """The two cross-entropies of a batch's pairs, summed (Flamingo §B.1.3, eqs. 4 and 5).

        Args:
          images: unit vectors f32[B, A].
          texts: unit vectors f32[B, A]; row i belongs to image i.

        Returns:
          f32[] loss, and {"retrieval": share of images whose own text is the nearest}.
        """
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], MAX_LOGIT_SCALE))
        scores = scale * images @ texts.T
        B = scores.shape[0]
        smooth = self.cfg.label_smoothing
        targets = jnp.eye(B) * (1 - smooth) + smooth / B
        loss = jnp.zeros(())
        for logits in (scores, scores.T):
            loss -= jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1))
        right = jnp.mean(jnp.argmax(scores, axis=-1) == jnp.arange(B))
        return loss, {"retrieval": right, "logit_scale": scale}


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
