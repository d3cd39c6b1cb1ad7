"""GATED XATTN-DENSE: the layers that let a frozen language model see (Flamingo v1 §3.1.2, fig. 4).

    y = x + tanh(gate_attention) · attention(norm(x), media)
    z = y + tanh(gate_dense) · dense(norm(y))

Both gates start at 0, where the layer is the identity, bit for bit. In the paper the media are
normalised too, once for keys and values (v1 §B.1); OpenFlamingo leaves that out (`media_norm`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.layout import ANYWHERE, Layout
from flamingo_jax.model.attention import Shared, attend
from flamingo_jax.model.layers import ATTENTION, FeedForward, Linear, Norm, named_projections
from flamingo_jax.model.masks import Mask
from flamingo_jax.model.packing import Packing, packing
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class XattnConfig:
    """The shape of a gated cross-attention layer; the defaults are Flamingo-3B's.

    Attributes:
      width: D, of the text.
      media_width: of the media that keys and values are made of.
      heads: N.
      head_dim: H.
      hidden: I.
      activation: of the feed-forward layer, a key of `layers.ACTIVATIONS`.
      media_norm: a layer norm on the media before keys and values.
      norm_eps: of the layer norms.
    """

    width: int = 2048
    media_width: int = 2048
    heads: int = 16
    head_dim: int = 128
    hidden: int = 8192
    activation: str = "squared_relu"
    media_norm: bool = True
    norm_eps: float = 1e-5


Seen = tuple[Array, Array, Mask | Array | None]
"""A batch's keys and values [B, S, N, H] and mask bool[B, 1, T, S]; None = all True."""


class GatedCrossAttention(nnx.Module):
    """One layer: gates f32[], norms, bias-free linears."""

    def __init__(self, cfg: XattnConfig, *, rngs: nnx.Rngs):
        """Makes the parameters; both gates are 0."""
        D, S, inner = cfg.width, cfg.media_width, cfg.heads * cfg.head_dim
        self.gate_attention = nnx.Param(jnp.zeros((), jnp.float32))
        self.norm_query = Norm(D, eps=cfg.norm_eps)
        self.norm_media = Norm(S, eps=cfg.norm_eps) if cfg.media_norm else None
        self.query = Linear(D, inner, rngs=rngs)
        self.key = Linear(S, inner, rngs=rngs)
        self.value = Linear(S, inner, rngs=rngs)
        self.out = Linear(inner, D, rngs=rngs)
        self.gate_dense = nnx.Param(jnp.zeros((), jnp.float32))
        self.norm_dense = Norm(D, eps=cfg.norm_eps)
        self.dense = FeedForward(D, cfg.hidden, activation=cfg.activation, rngs=rngs)
        self.cfg = cfg

    def keys_values(self, media: Array, dtype: Any = None) -> tuple[Array, Array]:
        """Keys and values of the media, for one sequence's every token (and decoding step).

        Args:
          media: [B, S, media_width], the latents of all media one after the other.
          dtype: of the computation; None = that of `media`.

        Returns:
          Two [B, S, N, H] in `dtype`.
        """
        dtype = media.dtype if dtype is None else dtype
        if self.norm_media is not None:
            media = self.norm_media(media, dtype)
        shape = (*media.shape[:2], self.cfg.heads, self.cfg.head_dim)
        return self.key(media, dtype).reshape(shape), self.value(media, dtype).reshape(shape)

    def attention(
        self,
        x: Array,
        k: Array,
        v: Array,
        mask: Mask | Array | None,
        dtype: Any,
        uniform: Array | None = None,
    ) -> Array:
        """What the text gathers from the media, before the gate: [B, T, D].

        Args:
          x: [B, T, D].
          k: [B, S, N, H] keys.
          v: [B, S, N, H] values.
          mask: bool[B, 1, T, S]; a row without any True gathers exactly zero. None = all True.
          dtype: of the computation.
          uniform: bool[B, T], tokens that weigh all that their mask allows alike; None = none.
            It reproduces a trait of other implementations, see `pretrained.open_flamingo`.
        """
        return self._gather(x, [(k, v, mask)], packing([x]), dtype, ANYWHERE, uniform)

    def _gather(
        self,
        x: Array,
        media: Sequence[Seen],
        batches: Packing,
        dtype: Any,
        layout: Layout,
        uniform: Array | None = None,
        shared: Shared | None = None,
    ) -> Array:
        q = self.query(layout.whole(self.norm_query(x, dtype)), dtype)
        if uniform is not None:
            q = jnp.where(uniform[:, :, None], jnp.zeros_like(q), q)
        heads = q.reshape(*q.shape[:2], self.cfg.heads, self.cfg.head_dim)
        gathered = []
        for own, (*kv, mask) in zip(batches.unpack(layout.split(heads, 2)), media, strict=True):
            q, k, v = named_projections(*(layout.split(a, 2) for a in (own, *kv)))
            seen = attend(q, k, v, mask, layout=layout, shared=shared)
            gathered.append(layout.split(seen, 2))
        y = layout.split(batches.pack(gathered), 2)
        return self.out(y.reshape(*y.shape[:2], -1), dtype)

    def __call__(
        self,
        x: Array,
        k: Array,
        v: Array,
        mask: Mask | Array | None,
        dtype: Any,
        uniform: Array | None = None,
        shared: Shared | None = None,
    ) -> Array:
        """[B, T, D] → [B, T, D] in `dtype`; arguments as for `attention` and `over`."""
        media = [(k, v, mask)]
        return self.over(x, media, packing([x]), dtype, uniform=uniform, shared=shared)

    def over(
        self,
        x: Array,
        media: Sequence[Seen],
        batches: Packing,
        dtype: Any,
        layout: Layout = ANYWHERE,
        uniform: Array | None = None,
        shared: Shared | None = None,
    ) -> Array:
        """As `__call__`, over a stream of several batches.

        Args:
          x: [Z, J, D], as `batches` packs it.
          media: of each batch.
          batches: how they lie in x.
          dtype: of the computation.
          layout: where activations lie.
          uniform: see `attention`; of a single batch.
          shared: media that all rows see beside their own; of a single batch.

        Returns:
          [Z, J, D] in `dtype`.
        """
        x = x.astype(dtype)
        seen = self._gather(x, media, batches, dtype, layout, uniform, shared)
        seen = layout.residual(seen)
        x = checkpoint_name(x + _gate(self.gate_attention, dtype) * seen, ATTENTION[3])
        h = layout.whole(self.norm_dense(x, dtype))
        dense = layout.residual(self.dense(h, dtype, layout))
        return x + _gate(self.gate_dense, dtype) * dense


def _gate(gate: nnx.Param, dtype: Any) -> Array:
    return jnp.tanh(gate[...].astype(jnp.float32)).astype(dtype)
