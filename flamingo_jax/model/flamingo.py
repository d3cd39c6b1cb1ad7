"""Flamingo: a frozen LM and a frozen vision encoder, joined by what is trained (Flamingo §2).

The canonical parameter tree, on disk and in `pretrained/` alike, is that of the attributes below:
`vision/… resampler/… project/kernel language/blocks/… language/norm/… xattn/… embed/… head/…`.
A bare language model is the same module without vision, resampler and gated layers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model import segments as seg
from flamingo_jax.model.attention import Shared
from flamingo_jax.model.cache import Cache, Prefix
from flamingo_jax.model.language import (
    Decoder,
    DecoderConfig,
    Embedding,
    Head,
    Place,
    head_weights,
    logit_parts,
    place,
    place_all,
)
from flamingo_jax.model.layers import Linear
from flamingo_jax.model.masks import Mask, cached_causal_mask, make_causal, make_media
from flamingo_jax.model.packing import Packing, packing
from flamingo_jax.model.positions import sinusoids
from flamingo_jax.model.products import rounded_sums
from flamingo_jax.model.resampler import Resampler, ResamplerConfig
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.model.xattn import GatedCrossAttention, XattnConfig
from flamingo_jax.shapes import Array, Batch


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """The whole model. `vision`, `resampler` and `xattn` are None for a bare language model."""

    language: DecoderConfig
    vision: VisionConfig | None = None
    resampler: ResamplerConfig | None = None
    xattn: XattnConfig | None = None
    every: int = 1
    offset: int = 0
    attend: str = "one"
    project: bool = True  # media E → D once, before all gated layers
    remat: str = "none"
    loss_chunk: int = 0
    unroll: bool = False
    unroll_blocks: bool = False
    dtype: str = "bfloat16"
    vision_dtype: str = "bfloat16"

    @property
    def segments(self) -> tuple[seg.Segment, ...]:
        """The segments of gated layers and blocks."""
        return seg.segments(self.language.blocks, self.every, self.offset)


class Flamingo(nnx.Module):
    """The model; see the module's docstring for its parameters."""

    def __init__(
        self,
        cfg: FlamingoConfig,
        *,
        rngs: nnx.Rngs,
        layout: Layout = ANYWHERE,
    ):
        """Makes all parts; gates start at 0, so that the first output is the LM's own.

        Args:
          cfg: the model's shape.
          rngs: a stream `params`.
          layout: where activations lie; anywhere, where there is no mesh.
        """
        self.cfg, self.layout = cfg, layout
        self.vision = None if cfg.vision is None else VisionTower(cfg.vision, rngs=rngs)
        self.resampler = None if cfg.resampler is None else Resampler(cfg.resampler, rngs=rngs)
        self.project = _make_projection(cfg, rngs)
        self.xattn = _make_gated_layers(cfg, rngs)
        self.embed = Embedding(cfg.language, rngs=rngs)
        self.language = Decoder(cfg.language, rngs=rngs)
        self.head = None if cfg.language.tied else Head(cfg.language, rngs=rngs)

    @property
    def dtype(self) -> Any:
        """The dtype of activations."""
        return jnp.dtype(self.cfg.dtype)

    def encode(self, media: Array) -> Array:
        """u8[B, M, F, Y, X, C] → features [B, M, F, P, E]; features pass as they are."""
        return self.encode_all([media])[0]

    def encode_all(self, media: Sequence[Array]) -> list[Array]:
        """As `encode`, of several batches whose pictures are of one size, in one pass."""
        dims = {a.shape[3:] for a in media if a.dtype == jnp.uint8}
        if not dims:
            return [a.astype(self.dtype) for a in media]
        if self.vision is None:
            raise ValueError("this model has no vision encoder: give features, not pixels")
        seen = [a for a in media if a.dtype == jnp.uint8]
        pictures = [a.reshape(math.prod(a.shape[:3]), *a.shape[3:]) for a in seen]
        features = self.vision(self.layout.spread(pictures), jnp.dtype(self.cfg.vision_dtype))
        found = iter(self.layout.gather(features, [len(a) for a in pictures]))

        def of(a: Array) -> Array:
            if a.dtype == jnp.uint8:
                own = next(found)
                a = own.reshape(*a.shape[:3], *own.shape[1:])
            return a.astype(self.dtype)

        return [of(a) for a in media]

    def resample(self, features: Array, frames: Array) -> Array:
        """Features [B, M, F, P, E] → media tokens [B, M·R, D] (or their own width, unprojected)."""
        if self.resampler is None:
            raise ValueError("this model has no resampler: it is a bare language model")
        media = self.resampler(features, frames, self.dtype)
        B, M, R, E = media.shape
        return self._projected(media.reshape(B, M * R, E))

    def _projected(self, media: Array) -> Array:
        return media if self.project is None else self.project(media, self.dtype)

    def media_keys_values(self, media: Array) -> tuple[Array, Array]:
        """Media tokens [B, M·R, D] → all gated layers' keys and values, [n, B, M·R, N, H] each."""
        graph, state = nnx.split(self.xattn)
        _, kv = jax.lax.scan(
            lambda _, layer: (None, _gated(graph, layer).keys_values(media, self.dtype)),
            None,
            state,
            unroll=self.cfg.unroll,
        )
        return kv

    def hidden(self, batch: Batch) -> Array:
        """The residual stream after the final norm: [B, T, D]."""
        return self.hidden_all([batch])[0]

    def hidden_all(self, batches: Sequence[Batch]) -> list[Array]:
        """As `hidden`, of several batches in one pass: each weight is used once for all of them."""
        with rounded_sums(self.layout.rounded):
            return self._hidden_all(batches)

    def _hidden_all(self, batches: Sequence[Batch]) -> list[Array]:
        positions = [batch.positions for batch in batches]
        masks = [make_causal(p) for p in positions]
        where = place_all(self.cfg.language, positions, masks, layout=self.layout)
        tokens = where.packing.pack([batch.tokens for batch in batches])
        x = self.layout.residual(self.embed(tokens, self.dtype))
        gated = None if self.xattn is None else self._gated_step(batches, where.packing)
        x, _ = self._blocks(x, where, gated)
        x = self.layout.whole(self.language.norm(x, self.dtype))
        return [self.layout.residual(part) for part in where.packing.unpack(x)]

    def media_tokens(self, batches: Sequence[Batch]) -> Array:
        """The media of batches, none without any, as a stream [Z, J, D] of rows of M·R tokens."""
        assert self.resampler is not None
        features = self.encode_all([batch.media for batch in batches])
        frames = [batch.frames for batch in batches]
        media = self.resampler.over(features, frames, self.dtype, self.layout)
        return self._projected(self.layout.whole(media))

    def _gated_step(self, batches: Sequence[Batch], text: Packing) -> seg.GatedStep:
        """The gated layers' step, over the batches' media."""
        assert self.resampler is not None
        seen = [batch for batch in batches if batch.media.shape[1]]
        masks = [self._media_mask(batch.media_of_token, batch.frames) for batch in batches]
        R, media, where = self.resampler.cfg.latents, None, None
        if seen:
            media = self.media_tokens(seen)
            sizes = [(batch.media.shape[0], batch.media.shape[1] * R) for batch in seen]
            where = Packing(tuple(sizes), self.layout.shards)

        def keys_values(layer: Any) -> Iterator[tuple[Array, Array]]:
            pairs = iter(())
            if media is not None and where is not None:
                kv = (where.unpack(a) for a in layer.keys_values(media, self.dtype))
                pairs = zip(*kv, strict=True)
            for batch in batches:
                none = jnp.zeros((len(batch.tokens), 0, layer.cfg.heads, layer.cfg.head_dim))
                yield next(pairs) if batch.media.shape[1] else (none, none)

        def step(layer: Any, x: Array, kept: Any) -> Array:
            del kept
            own = zip(keys_values(layer), masks, strict=True)
            kvs = [(*kv, mask) for kv, mask in own]
            return layer.over(x, kvs, text, self.dtype, self.layout)

        return step

    def __call__(self, batch: Batch) -> Array:
        """Logits f32[B, T, V + W]; those at t predict token t + 1."""
        return self.logits(self.hidden(batch))

    def logits(self, hidden: Array) -> Array:
        """[B, T, D] → f32[B, T, V + W]."""
        parts = self.logit_parts(self.head_weights(), hidden)
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    @property
    def logit_parts(self) -> Callable[[tuple[Array, ...], Array], tuple[Array, ...]]:
        """(`head_weights`, [B, T, D]) → f32[B, T, V] and, with new tokens, f32[B, T, W]."""
        return functools.partial(logit_parts, dtype=self.dtype)

    def head_weights(self) -> tuple[Array, ...]:
        """The head's kernels, [D, V] and, with new tokens, [D, W], brought together over D."""
        return self.layout.head(head_weights(self.embed, self.head))

    def start_cache(
        self, slots: int, media: Array | None, frames: Array, prefix: Prefix | None = None
    ) -> Cache:
        """An empty cache of `slots` tokens, with the gated layers' keys and values filled in.

        Args:
          slots: S, the longest sequence to be decoded, without the prefix.
          media: media tokens [B, M·R, D] of `resample`, or None for text alone.
          frames: i32[B, M].
          prefix: what stands before every row.
        """
        c, B = self.cfg.language, frames.shape[0]
        media = None if media is None else self.layout.whole(media)
        if media is None and self.xattn is not None:
            # Gated layers change text without pictures too: their dense part needs no media.
            assert self.cfg.xattn is not None
            media, frames = jnp.zeros((B, 0, self.cfg.xattn.media_width)), frames[:, :0]
        kept = jnp.zeros((c.blocks, B, slots, c.kv, c.head_dim), self.dtype)
        kv = None if media is None or self.xattn is None else self.media_keys_values(media)
        valid = jnp.zeros((B, slots), bool)
        return Cache(kept, kept, kv, frames, valid, jnp.zeros((), jnp.int32), prefix)

    def prefix_of(self, cache: Cache, reach: int) -> Prefix:
        """The first row of a full cache as what stands before the rows of other caches.

        Args:
          cache: the prefix's last token is in its last slot.
          reach: how many tokens may follow.
        """
        assert cache.prefix is None
        far = None
        if self.cfg.language.positions == "xl":
            c = self.cfg.language
            distances = jnp.arange(cache.valid.shape[1] + reach)[::-1]
            encodings = sinusoids(distances, c.width)
            graph, state = nnx.split(self.language.blocks)
            far = jax.lax.map(
                lambda block: nnx.merge(graph, block).encode_distances(encodings, self.dtype), state
            )
        first = functools.partial(jax.tree.map, lambda leaf: leaf[:, 0])
        return Prefix(
            first(cache.keys),
            first(cache.values),
            far,
            first(cache.media),
            cache.frames[0],
            cache.valid[0],
        )

    def step(
        self, tokens: Array, positions: Array, media_of_token: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Appends T tokens to the cache: the prompt at once, then one by one.

        Args:
          tokens: i32[B, T]; prompts of different lengths are padded on the left.
          positions: i32[B, T], -1 at padding; the prefix's tokens count.
          media_of_token: i32[B, T]; the prefix's media come first.
          cache: what was appended before.

        Returns:
          hidden [B, T, D] after the final norm, and the cache with the tokens appended.
        """
        T, prefix = tokens.shape[1], cache.prefix
        valid = jax.lax.dynamic_update_slice(cache.valid, positions >= 0, (0, cache.offset))
        mask = cached_causal_mask(valid, cache.offset, T)
        where = place(self.cfg.language, positions, mask, cache.offset, self.layout)
        kept: tuple[Any, ...] = (cache.keys, cache.values)
        if prefix is not None:
            where = dataclasses.replace(where, before=prefix.before(positions))
            kept = (*kept, prefix.keys, prefix.values, prefix.far)
        apply, media = self._cached_gated_step(media_of_token, cache)
        embedded = self.layout.residual(self.embed(tokens, self.dtype))
        x, kept = self._blocks(embedded, where, apply, cache=kept, media_cache=media)
        assert kept is not None
        new = dataclasses.replace(
            cache, keys=kept[0], values=kept[1], valid=valid, offset=cache.offset + T
        )
        return self.layout.whole(self.language.norm(x, self.dtype)), new

    def _cached_gated_step(
        self, media_of_token: Array, cache: Cache
    ) -> tuple[seg.GatedStep | None, Any]:
        """The gated layers' step over keys and values of media that are kept, and these."""
        if self.xattn is None or cache.media is None:
            return None, None
        prefix = cache.prefix
        if prefix is None or prefix.media is None:
            sees = self._media_mask(media_of_token, cache.frames)

            def alone(layer: Any, x: Array, kept: Any) -> Array:
                rows = packing([x], self.layout.shards)
                return layer.over(x, [(*kept, sees)], rows, self.dtype, self.layout)

            return alone, cache.media
        sees = self._media_mask(media_of_token - prefix.media_count, cache.frames)
        sees_before = self._media_mask(media_of_token, prefix.frames[None]).dense

        def gated(layer: Any, x: Array, kept: Any) -> Array:
            k, v, *before = kept
            keys, values = before
            rows = packing([x], self.layout.shards)
            shared = Shared(keys, values, sees_before)
            return layer.over(x, [(k, v, sees)], rows, self.dtype, self.layout, shared=shared)

        return gated, (*cache.media, *prefix.media)

    def _media_mask(self, media_of_token: Array, frames: Array) -> Mask:
        assert self.cfg.resampler is not None
        return make_media(media_of_token, frames, self.cfg.resampler.latents, self.cfg.attend)

    def _blocks(
        self,
        x: Array,
        where: Place,
        gated: seg.GatedStep | None,
        cache: Any = None,
        media_cache: Any = None,
    ) -> tuple[Array, Any]:
        return seg.run(
            self.cfg.segments,
            self.language.blocks,
            None if gated is None else self.xattn,
            x,
            where,
            gated=gated,
            cache=cache,
            media_cache=media_cache,
            remat="none" if cache is not None else self.cfg.remat,
            unroll=self.cfg.unroll,
            unroll_blocks=self.cfg.unroll_blocks and cache is None,  # for the backward pass
            constrain=self.layout.residual,
            dtype=self.dtype,
        )


def _gated(graph: Any, layer: Any) -> GatedCrossAttention:
    return nnx.merge(graph, layer)


def _make_projection(cfg: FlamingoConfig, rngs: nnx.Rngs) -> Linear | None:
    """E → D; Table 5 of the paper counts it under cross-attention (DECISIONS.md)."""
    if cfg.resampler is None or not cfg.project:
        return None
    return Linear(cfg.resampler.width, cfg.language.width, rngs=rngs)


def _make_gated_layers(cfg: FlamingoConfig, rngs: nnx.Rngs) -> GatedCrossAttention | None:
    """The gated layers, stacked [n, …]."""
    gated = cfg.xattn
    if gated is None:
        return None
    keys = jax.random.split(rngs.params(), seg.xattn_layers(cfg.segments))
    return nnx.vmap(lambda key: GatedCrossAttention(gated, rngs=nnx.Rngs(key)))(keys)
