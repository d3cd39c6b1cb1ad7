"""The decoder: one configurable language model, its blocks stacked [L, …] and scanned.

`DecoderConfig` says which model it is: Chinchilla's kind (RMSNorm, Transformer-XL relative
positions, GELU; Hoffmann et al. 2022, Rae et al. 2021 §3) or LLaMA's (RMSNorm, rotary, SwiGLU).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model import positions as pos
from flamingo_jax.model.attention import Shared, attend
from flamingo_jax.model.layers import ATTENTION, FeedForward, Linear, Norm, named_projections
from flamingo_jax.model.masks import Mask
from flamingo_jax.model.packing import Packing, packing
from flamingo_jax.model.products import dot
from flamingo_jax.shapes import Array

POSITIONS = ("xl", "rotary")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A language model's shape. Letters are those of shapes.py."""

    vocab: int  # V
    width: int  # D
    blocks: int  # L
    heads: int  # N
    head_dim: int  # H
    hidden: int  # I
    kv_heads: int = 0  # K; 0 = heads
    norm: str = "rms"
    norm_eps: float = 1e-6
    positions: str = "xl"
    rotary_base: float = 10_000.0
    activation: str = "gelu"
    gated: bool = False
    tied: bool = True
    new_tokens: int = 0  # W, rows beyond the vocabulary

    @property
    def kv(self) -> int:
        """K, the number of key/value heads."""
        return self.kv_heads or self.heads


@dataclasses.dataclass(frozen=True)
class Span:
    """Who sees whom in one batch: mask bool[B, 1, T, S]; rotary cosines and sines, or None."""

    mask: Mask | Array
    angles: tuple[Array, Array] | None


@dataclasses.dataclass(frozen=True)
class Before:
    """Tokens that stand before all rows of a batch, see `prefix`.

    Attributes:
      mask: bool[1, 1, 1, P].
      columns: i32[B, T, P], for each token and slot the row of a block's encoded distances; None
        with rotary positions.
    """

    mask: Array
    columns: Array | None


Kept = tuple[Any, ...]
"""A block's keys and values [B, S, K, H] of all slots; then, where tokens stand before all rows,
theirs [P, K, H] and encoded distances [F, N, H] (or None)."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tokens stand, computed once for all blocks.

    Attributes:
      spans: of each batch in the stream.
      packing: how they lie in it.
      distances: f32[S + 1, D] encodings of the distances of `positions.descending_distances` in
        the longest batch, or None; those of a shorter one are the last of them.
      offset: i32[] slot of the first token in the cache, or None without a cache.
      layout: where activations lie.
      before: what stands before all rows, or None.
    """

    spans: tuple[Span, ...]
    packing: Packing
    distances: Array | None
    offset: Any = None
    layout: Layout = ANYWHERE
    before: Before | None = None


def place(
    cfg: DecoderConfig,
    positions: Array,
    mask: Mask | Array,
    offset: Array | None = None,
    layout: Layout = ANYWHERE,
) -> Place:
    """That of a batch: positions i32[B, T], mask bool[B, 1, T, S], offset i32[] in a cache."""
    return place_all(cfg, [positions], [mask], offset, layout)


def place_all(
    cfg: DecoderConfig,
    positions: Sequence[Array],
    masks: Sequence[Mask | Array],
    offset: Array | None = None,
    layout: Layout = ANYWHERE,
) -> Place:
    """The `Place` of several batches; with a cache there is one."""
    rotary = cfg.positions == "rotary"
    spans = tuple(
        Span(mask, pos.rotary_angles(p, cfg.head_dim, cfg.rotary_base) if rotary else None)
        for p, mask in zip(positions, masks, strict=True)
    )
    distances = None
    if not rotary:
        T, S = max(mask.shape[2:] for mask in masks)
        start = S - T if offset is None else offset
        distances = pos.sinusoids(pos.descending_distances(T, S, start), cfg.width)
    return Place(spans, packing(positions, layout.shards), distances, offset, layout)


class Block(nnx.Module):
    """One decoder block: x += attention(norm(x)); x += feed-forward(norm(x)).

    Parameters: norm_attention, query[D, N·H], key[D, K·H], value[D, K·H], out[N·H, D], norm_dense,
    dense/…; with Transformer-XL positions also relative[D, N·H] and the two biases [N, H].
    """

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        """Makes one block; the stack is made by `Decoder`."""
        D, N, K, H = cfg.width, cfg.heads, cfg.kv, cfg.head_dim
        norm = {"kind": cfg.norm, "eps": cfg.norm_eps}
        into_residual = nnx.initializers.normal((2 * cfg.blocks * N * H) ** -0.5)
        down = nnx.initializers.normal((2 * cfg.blocks * cfg.hidden) ** -0.5)
        self.norm_attention = Norm(D, **norm)
        self.query = Linear(D, N * H, rngs=rngs)
        self.key = Linear(D, K * H, rngs=rngs)
        self.value = Linear(D, K * H, rngs=rngs)
        self.out = Linear(N * H, D, init=into_residual, rngs=rngs)
        if cfg.positions == "xl":
            self.relative = Linear(D, N * H, rngs=rngs)
            self.content_bias = nnx.Param(jnp.zeros((N, H), jnp.float32))
            self.position_bias = nnx.Param(jnp.zeros((N, H), jnp.float32))
        self.norm_dense = Norm(D, **norm)
        self.dense = FeedForward(
            D, cfg.hidden, activation=cfg.activation, gated=cfg.gated, out_init=down, rngs=rngs
        )
        self.cfg = cfg

    def __call__(
        self, x: Array, where: Place, cache: Kept | None, dtype: Any
    ) -> tuple[Array, Kept | None]:
        """Runs the block.

        Args:
          x: [Z, J, D] residual stream of the batches of `where`; of one, [B, T, D].
          where: positions and masks.
          cache: see `Kept`, or None.
          dtype: of the computation.

        Returns:
          x as it came, and keys and values of all slots, the new tokens' written at `where.offset`.
        """
        x, cache = self._attention(x, where, cache, dtype)
        h = where.layout.whole(self.norm_dense(x, dtype))
        return x + where.layout.residual(self.dense(h, dtype, where.layout)), cache

    def _attention(
        self, x: Array, where: Place, cache: Kept | None, dtype: Any
    ) -> tuple[Array, Kept | None]:
        layout, packing = where.layout, where.packing
        h = layout.whole(self.norm_attention(x, dtype))

        def heads(linear: Linear) -> list[Array]:
            y = linear(h, dtype)
            y = layout.split(y.reshape(*y.shape[:2], -1, self.cfg.head_dim), 2)
            return [layout.split(part, 2) for part in packing.unpack(y)]

        far = None
        if where.distances is not None:
            far = self.encode_distances(where.distances, dtype)
        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        seen = []
        for i, span in enumerate(where.spans):
            y, cache = self._look(q[i], k[i], v[i], span, far, where, cache, dtype)
            seen.append(layout.split(y, 2))
        y = packing.pack(seen)
        y = layout.split(y, 2).reshape(*y.shape[:2], -1)
        return checkpoint_name(x + layout.residual(self.out(y, dtype)), ATTENTION[3]), cache

    def _look(
        self,
        q: Array,
        k: Array,
        v: Array,
        span: Span,
        far: Array | None,
        where: Place,
        cache: Kept | None,
        dtype: Any,
    ) -> tuple[Array, Kept | None]:
        """Self-attention of one batch, from its projections [B, T, N or K, H] → [B, T, N, H]."""
        if span.angles is not None:
            q, k = pos.rotate(q, span.angles), pos.rotate(k, span.angles)
        q, k, v = named_projections(q, k, v)
        shared = None
        if cache is not None:
            if where.before is not None:
                keys, values, encoded = cache[2:]
                shared = self._shared(q, keys, values, encoded, where.before, dtype)
            at = (0, where.offset, 0, 0)
            k = jax.lax.dynamic_update_slice(cache[0], k.astype(cache[0].dtype), at)
            v = jax.lax.dynamic_update_slice(cache[1], v.astype(cache[1].dtype), at)
            cache = (k, v)
            k, v = k.astype(dtype), v.astype(dtype)
        bias = None
        if far is not None:
            bias = self._relative_scores(q, far[-span.mask.shape[3] - 1 :], dtype)
            q = q + self.content_bias[...].astype(dtype)
        seen = attend(q, k, v, span.mask, bias=bias, layout=where.layout, shared=shared)
        return seen, cache

    def _shared(
        self, q: Array, k: Array, v: Array, far: Array | None, before: Before, dtype: Any
    ) -> Shared:
        """What q [B, T, N, H] see of the tokens before all rows: k, v [P, K, H], far [F, N, H]."""
        bias = None
        if far is not None:
            assert before.columns is not None
            scores = self._by_distance(q, far.astype(dtype), dtype)
            bias = jnp.take_along_axis(scores, before.columns[:, None], axis=3)
        return Shared(k.astype(dtype), v.astype(dtype), before.mask, bias)

    def _relative_scores(self, q: Array, far: Array, dtype: Any) -> Array:
        """Terms (b) and (d) of Dai et al. 2019 §3.3, scaled: f32[B, N, T, S]; far [S + 1, N, H]."""
        return pos.relative_shift(self._by_distance(q, far, dtype))

    def _by_distance(self, q: Array, far: Array, dtype: Any) -> Array:
        """Of queries [B, T, N, H] and encoded distances [F, N, H]: f32[B, N, T, F]."""
        q = q + self.position_bias[...].astype(dtype)
        scores = jnp.einsum("BTNH,FNH->BNTF", q, far, preferred_element_type=jnp.float32)
        return scores * self.cfg.head_dim**-0.5

    def encode_distances(self, distances: Array, dtype: Any) -> Array:
        """Encodings f32[F, D] of distances, as keys of Transformer-XL's scores: [F, N, H]."""
        return self.relative(distances, dtype).reshape(-1, self.cfg.heads, self.cfg.head_dim)


class Decoder(nnx.Module):
    """The blocks, stacked [L, …], and the final norm. Parameter paths: blocks/…, norm/…."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        """Makes L blocks with keys of their own."""
        keys = jax.random.split(rngs.params(), cfg.blocks)
        self.blocks = nnx.vmap(lambda key: Block(cfg, rngs=nnx.Rngs(key)))(keys)
        self.norm = Norm(cfg.width, kind=cfg.norm, eps=cfg.norm_eps)


class Embedding(nnx.Module):
    """Rows of tokens: the vocabulary's table[V, D] and new[W, D], rows of the tokens beyond it."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        """Both tables start normal with deviation 0.02."""
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (cfg.vocab, cfg.width), jnp.float32))
        new = (cfg.new_tokens, cfg.width)
        self.new = nnx.Param(init(rngs.params(), new, jnp.float32)) if cfg.new_tokens else None

    def __call__(self, tokens: Array, dtype: Any) -> Array:
        """i32[B, T] → [B, T, D]; ids V, V + 1, … take rows of `new`."""
        table = self.table[...]
        V = table.shape[0]
        x = table[jnp.minimum(tokens, V - 1)].astype(dtype)
        if self.new is None:
            return x
        new = self.new[...]
        rows = new[jnp.clip(tokens - V, 0, new.shape[0] - 1)].astype(dtype)
        return jnp.where((tokens >= V)[..., None], rows, x)


class Head(nnx.Module):
    """An output head of its own: kernel[D, V] and new[D, W]."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        """Both start normal with deviation 0.02."""
        init = nnx.initializers.normal(0.02)
        self.kernel = nnx.Param(init(rngs.params(), (cfg.width, cfg.vocab), jnp.float32))
        new = (cfg.width, cfg.new_tokens)
        self.new = nnx.Param(init(rngs.params(), new, jnp.float32)) if cfg.new_tokens else None


def head_weights(embed: Embedding, head: Head | None) -> tuple[Array, ...]:
    """Kernels [D, V] and, with new tokens, [D, W]; the embedding's rows where the head is tied."""
    if head is None:
        rows = (embed.table,) if embed.new is None else (embed.table, embed.new)
        return tuple(part[...].T for part in rows)
    return tuple(part[...] for part in (head.kernel, head.new) if part is not None)


def logit_parts(weights: tuple[Array, ...], x: Array, *, dtype: Any) -> tuple[Array, ...]:
    """[B, T, D] (normed) → f32[B, T, V] and, with new tokens, f32[B, T, W].

    Apart, so that the vocabulary's own logits come from the same product as the bare model's.
    """
    return tuple(dot(x, kernel, dtype, jnp.float32) for kernel in weights)
