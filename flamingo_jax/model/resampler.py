"""The Perceiver Resampler: any number of visual features → R latents for each medium.

Flamingo v1 §3.1.1 and fig. 4: in each layer the latents attend to the features and to themselves.
What the paper's pseudo-code leaves out (norms, biases) follows OpenFlamingo and flamingo-pytorch:
a norm of its own for features and for latents, pre-norm feed-forward, a final norm, no biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.errors import InputError
from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model.attention import attend
from flamingo_jax.model.layers import FeedForward, Linear, Norm
from flamingo_jax.model.masks import Mask, make_valid
from flamingo_jax.model.packing import Packing
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
        return self._gather(latents, features, _media([(features, latents, mask)]), dtype, ANYWHERE)

    def _gather(
        self, latents: Array, features: Array, media: _Media, dtype: Any, layout: Layout
    ) -> Array:
        """As `attention`, over streams of latents [Z, J, E] and features [Z, J', E]."""
        latents = layout.whole(self.norm_latents(latents, dtype))
        both = jnp.concatenate([self.norm_media(features, dtype), latents], axis=1)

        def heads(linear: Linear, x: Array, where: Packing) -> list[Array]:
            y = linear(x, dtype)
            y = layout.split(y.reshape(*y.shape[:2], self.cfg.heads, self.cfg.head_dim), 2)
            return where.unpack(y)

        def each(parts: list[Array]) -> list[Array]:
            """Keys or values of each batch's media: of its features, then of its latents."""
            n, sizes = len(parts) // 2, media.media
            pairs = zip(parts[:n], parts[n:], sizes, strict=True)
            return [jnp.concatenate([_of(f, m), _of(l, m)], axis=1) for f, l, m in pairs]

        queries = heads(self.query, latents, media.latents)
        keys, values = (each(heads(a, both, media.both)) for a in (self.key, self.value))
        gathered = []
        for q, k, v, mask, n in zip(queries, keys, values, media.masks, media.media, strict=True):
            found = attend(_of(q, n), k, v, mask, layout=layout)
            gathered.append(found.reshape(*q.shape[:2], -1))
        return self.out(layout.split(media.latents.pack(gathered)), dtype)

    def feed_forward(self, latents: Array, dtype: Any, layout: Layout = ANYWHERE) -> Array:
        """What the feed-forward layer adds to the latents: [B, R, E]."""
        return self.dense(layout.whole(self.norm_dense(latents, dtype)), dtype, layout)

    def __call__(self, latents: Array, features: Array, mask: Array | None, dtype: Any) -> Array:
        """[B, R, E] → [B, R, E]; arguments as for `attention`."""
        return self.over(latents, features, _media([(features, latents, mask)]), dtype, ANYWHERE)

    def over(
        self, latents: Array, features: Array, media: _Media, dtype: Any, layout: Layout
    ) -> Array:
        """As `__call__`, over streams of latents [Z, J, E] and features [Z, J', E]."""
        found = layout.whole(self._gather(latents, features, media, dtype, layout))
        latents = latents + found
        return latents + layout.whole(self.feed_forward(latents, dtype, layout))


@dataclasses.dataclass(frozen=True)
class _Media:
    """How several batches' media lie in the streams of a layer.

    Attributes:
      latents: the packing of rows of M·R latents.
      both: that of rows of M·F·P features of each batch, followed by those latents.
      media: B·M of each batch.
      masks: of each batch, bool[B · M, 1, 1, F · P + R] or None.
    """

    latents: Packing
    both: Packing
    media: tuple[int, ...]
    masks: tuple[Mask | Array | None, ...]


def _media(parts: Sequence[tuple[Array, Array, Mask | Array | None]]) -> _Media:
    """Of batches whose rows are media: features [B, S, E], latents [B, R, E] and masks."""
    features, latents, masks = zip(*parts, strict=True)
    sizes = [a.shape[:2] for a in latents]
    both = Packing((*(a.shape[:2] for a in features), *sizes), features[0].shape[0])
    return _Media(Packing(tuple(sizes)), both, tuple(n for n, _ in sizes), masks)


def _of(rows: Array, media: int) -> Array:
    """[B, M·S, …] of rows → [B·M, S, …] of media."""
    return rows.reshape(media, -1, *rows.shape[2:])


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
        B, M = frames.shape
        if B * M == 0:
            return jnp.zeros((B, M, self.cfg.latents, self.cfg.width), dtype)
        rows = self.over([features], [frames], dtype, ANYWHERE)
        return rows.reshape(B, M, self.cfg.latents, self.cfg.width)

    def over(
        self, features: Sequence[Array], frames: Sequence[Array], dtype: Any, layout: Layout
    ) -> Array:
        """As `__call__`, of several batches at once, none of them without media.

        Returns:
          A stream [Z, J, E] of rows of M·R latents.
        """
        rows = [(a.shape[0], math.prod(a.shape[1:4])) for a in features]
        packed = Packing(tuple(rows), layout.shards)
        stream = packed.pack([_rows(a) for a in features]).astype(dtype)
        if self.project is not None:
            stream = self.project(layout.whole(stream), dtype)
        parts = zip(packed.unpack(stream), features, frames, strict=True)
        told = [self._with_embeddings(x.reshape(*a.shape[:4], -1), n, dtype) for x, a, n in parts]
        stream = layout.whole(packed.pack([_rows(x) for x in told]))

        R, E = self.cfg.latents, self.cfg.width
        queries = Packing(tuple((a.shape[0], a.shape[1] * R) for a in features), layout.shards)
        media = _Media(
            queries,
            Packing((*packed.sizes, *queries.sizes), queries.rows),
            tuple(a.shape[0] * a.shape[1] for a in features),
            tuple(self._mask(n, *a.shape[2:4]) for n, a in zip(frames, features, strict=True)),
        )
        latents = self.latents[...].astype(dtype)
        J = sum(B * T for B, T in queries.sizes) // queries.rows
        latents = jnp.broadcast_to(latents, (queries.rows, J // R, R, E))
        latents = layout.whole(latents.reshape(queries.rows, J, E))
        graph, state = nnx.split(self.layers)

        def body(latents: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graph, layer).over(latents, stream, media, dtype, layout), None

        if self.cfg.remat:
            # Laid out, what is computed again could be merged with what was: that is prevented.
            body = jax.checkpoint(body, prevent_cse=self.cfg.unroll)
        latents, _ = lax.scan(body, latents, state, unroll=self.cfg.unroll)
        return self.norm(latents, dtype)

    def _mask(self, frames: Array, F: int, P: int) -> Mask:
        """bool[B · M, 1, 1, F · P + R]: the features of valid frames, and all latents."""
        valid = jnp.arange(F) < frames.reshape(-1, 1)
        valid = jnp.repeat(valid, P, axis=1)
        valid = jnp.pad(valid, ((0, 0), (0, self.cfg.latents)), constant_values=True)
        return make_valid(valid, self.cfg.latents)

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


def _rows(media: Array) -> Array:
    """[B, M, F, P, E] → [B, M·F·P, E]."""
    return media.reshape(media.shape[0], math.prod(media.shape[1:4]), media.shape[4])


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
