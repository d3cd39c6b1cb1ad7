"""The Perceiver Resampler: any number of visual features → R latents for each medium.

Flamingo v1 §3.1.1 and fig. 4: in each layer the latents attend to the features and to themselves.
What the paper's pseudo-code leaves out (norms, biases) follows OpenFlamingo and flamingo-pytorch:
a norm of its own for features and for latents, pre-norm feed-forward, a final norm, no biases.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.errors import InputError
from flamingo_jax.model.layers import FeedForward, Linear, Norm, attend
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """The shape of a resampler; the defaults are the paper's (DECISIONS.md: head_dim, project).

    Attributes:
      depth: layers.
      latents: R, learnt queries for each medium.
      width: E, of the latents and of what comes out.
      heads: N.
      head_dim: H.
      hidden: I.
      activation: of the feed-forward layers, a key of `layers.ACTIVATIONS`.
      in_width: of the features that come in; without `project` it must equal `width`.
      project: a linear from `in_width` to `width` before everything else.
      max_frames: learnt time embeddings, one a frame; longer clips get them interpolated; 0 = none.
      max_media: learnt embeddings of a medium's place in its sequence, as OpenFlamingo and
        flamingo-pytorch may have them; 0 = none.
      norm_eps: of the layer norms.
      embeddings_init: deviation of the initial time and media embeddings.
      latents_init: deviation of the initial latents.
      remat: recompute a layer's activations in the backward pass.
      unroll: lay the layers out one after another in the program, see `segments.run`.
    """

    depth: int = 6
    latents: int = 64
    width: int = 1536
    heads: int = 16
    head_dim: int = 128
    hidden: int = 6144
    activation: str = "squared_relu"
    in_width: int = 3072
    project: bool = True
    max_frames: int = 8
    max_media: int = 0
    norm_eps: float = 1e-5
    embeddings_init: float = 0.02
    latents_init: float = 0.02
    remat: bool = False
    unroll: bool = False

    def __post_init__(self):
        """Refuses features that fit nothing."""
        if not self.project and self.in_width != self.width:
            raise ValueError(
                f"features of width {self.in_width} need project=True to become {self.width} wide"
            )


class ResamplerLayer(nnx.Module):
    """Latents attend to features and latents; then a feed-forward layer; both residual."""

    def __init__(self, cfg: ResamplerConfig, *, rngs: nnx.Rngs):
        """Makes the norms and the bias-free linears."""
        E, inner = cfg.width, cfg.heads * cfg.head_dim
        self.norm_media = Norm(E, eps=cfg.norm_eps)
        self.norm_latents = Norm(E, eps=cfg.norm_eps)
        self.query = Linear(E, inner, rngs=rngs)
        self.key = Linear(E, inner, rngs=rngs)
        self.value = Linear(E, inner, rngs=rngs)
        self.out = Linear(inner, E, rngs=rngs)
        self.norm_dense = Norm(E, eps=cfg.norm_eps)
        self.dense = FeedForward(E, cfg.hidden, activation=cfg.activation, rngs=rngs)
        self.cfg = cfg

    def attention(self, latents: Array, features: Array, mask: Array | None, dtype: Any) -> Array:
        """What the latents gather, before it is added to them: [B, R, E].

        Args:
          latents: [B, R, E].
          features: [B, S, E].
          mask: bool[B, 1, 1, S + R]; None = everything may be attended to.
          dtype: of the computation.
        """
        latents = self.norm_latents(latents, dtype)
        both = jnp.concatenate([self.norm_media(features, dtype), latents], axis=1)

        def heads(x: Array) -> Array:
            return x.reshape(*x.shape[:2], self.cfg.heads, self.cfg.head_dim)

        q, k, v = self.query(latents, dtype), self.key(both, dtype), self.value(both, dtype)
        gathered = attend(heads(q), heads(k), heads(v), mask)
        return self.out(gathered.reshape(q.shape), dtype)

    def feed_forward(self, latents: Array, dtype: Any) -> Array:
        """What the feed-forward layer adds to the latents: [B, R, E]."""
        return self.dense(self.norm_dense(latents, dtype), dtype)

    def __call__(self, latents: Array, features: Array, mask: Array | None, dtype: Any) -> Array:
        """[B, R, E] → [B, R, E]; arguments as for `attention`."""
        latents = latents + self.attention(latents, features, mask, dtype)
        return latents + self.feed_forward(latents, dtype)


class Resampler(nnx.Module):
    """The resampler: latents[R, E], time[max_frames, E], layers/… [depth, …], norm/….

    Where the config has them also media[max_media, E] and project/kernel[in_width, E].
    """

    def __init__(self, cfg: ResamplerConfig, *, rngs: nnx.Rngs):
        """Makes the parameters."""

        def embeddings(n: int, deviation: float) -> nnx.Param:
            return nnx.Param(deviation * jax.random.normal(rngs.params(), (n, cfg.width)))

        self.cfg = cfg
        self.latents = embeddings(cfg.latents, cfg.latents_init)
        self.time = embeddings(cfg.max_frames, cfg.embeddings_init) if cfg.max_frames else None
        self.media = embeddings(cfg.max_media, cfg.embeddings_init) if cfg.max_media else None
        self.project = Linear(cfg.in_width, cfg.width, rngs=rngs) if cfg.project else None
        keys = jax.random.split(rngs.params(), cfg.depth)
        self.layers = nnx.vmap(lambda key: ResamplerLayer(cfg, rngs=nnx.Rngs(key)))(keys)
        self.norm = Norm(cfg.width, eps=cfg.norm_eps)

    def __call__(self, features: Array, frames: Array, dtype: Any) -> Array:
        """Features of each medium's frames → its latents.

        Args:
          features: [B, M, F, P, in_width].
          frames: i32[B, M] valid frames of each medium; what is in the others does not matter. A
            medium without any leaves its latents to themselves: mask them where they are used.
          dtype: of the computation.

        Returns:
          [B, M, R, E] in `dtype`.
        """
        B, M, F, P, _ = features.shape
        features = features.astype(dtype)
        if self.project is not None:
            features = self.project(features, dtype)
        features = self._with_embeddings(features, frames, dtype)
        features = features.reshape(B * M, F * P, self.cfg.width)
        mask = self._mask(frames, F, P)
        latents = self.latents[...].astype(dtype)
        latents = jnp.broadcast_to(latents, (B * M, *latents.shape))
        graph, state = nnx.split(self.layers)

        def body(latents: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graph, layer)(latents, features, mask, dtype), None

        if self.cfg.remat:
            # Laid out, what is computed again could be merged with what was: that is prevented.
            body = jax.checkpoint(body, prevent_cse=self.cfg.unroll)
        latents, _ = lax.scan(body, latents, state, unroll=self.cfg.unroll)
        return self.norm(latents, dtype).reshape(B, M, *latents.shape[1:])

    def _mask(self, frames: Array, F: int, P: int) -> Array:
        """bool[B · M, 1, 1, F · P + R]: the features of valid frames, and all latents."""
        valid = jnp.arange(F) < frames.reshape(-1, 1)
        valid = jnp.repeat(valid, P, axis=1)
        valid = jnp.pad(valid, ((0, 0), (0, self.cfg.latents)), constant_values=True)
        return valid[:, None, None, :]

    def _with_embeddings(self, features: Array, frames: Array, dtype: Any) -> Array:
        """Adds time and media embeddings to [B, M, F, P, E]."""
        M, F = features.shape[1:3]
        if self.time is not None:
            time = self.time[...].astype(jnp.float32)
            rows = time[:F] if F <= len(time) else interpolate_time(time, frames, F)
            features = features + rows.astype(dtype)[..., None, :]
        if self.media is not None:
            if M > self.cfg.max_media:
                raise InputError(
                    f"a sequence has {M} media and the resampler embeddings for "
                    f"{self.cfg.max_media}; give fewer media"
                )
            features = features + self.media[...][:M, None, None, :].astype(dtype)
        return features


def interpolate_time(time: Array, frames: Array, F: int) -> Array:
    """Time embeddings for clips of more frames than there are embeddings (Flamingo v1 §3.1.1).

    A clip of no more frames than embeddings gets the first rows as they are. A longer one gets them
    linearly interpolated, its first frame the first row and its last valid frame the last row, so
    that the result does not depend on how many frames the batch is padded to.

    Args:
      time: f32[max_frames, E].
      frames: i32[B, M] valid frames.
      F: frames of the batch, more than max_frames.

    Returns:
      f32[B, M, F, E].
    """
    last = len(time) - 1
    step = jnp.where(frames > len(time), last / jnp.maximum(frames - 1, 1), 1.0)
    place = jnp.minimum(jnp.arange(F) * step[..., None], last)
    row = jnp.minimum(jnp.floor(place).astype(jnp.int32), max(last - 1, 0))
    share = (place - row)[..., None]
    return time[row] * (1 - share) + time[jnp.minimum(row + 1, last)] * share
