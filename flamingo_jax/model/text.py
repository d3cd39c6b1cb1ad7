"""The contrastive text encoder: BERT's kind (Devlin et al. 2019), post-norm and bidirectional."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flamingo_jax.model.attention import attend
from flamingo_jax.model.layers import FeedForward, Linear, Norm
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower's shape and start.

    Attributes:
      vocab: V.
      width: of the tokens, and of a text.
      blocks: L.
      heads: N.
      hidden: I.
      max_length: learnt positions.
      residual_init: the last linears of a block start normal with this deviation times
        1/sqrt(fan-in). At 0, and with `positions_init` 0, a text starts as the bag of its tokens.
      positions_init: deviation of the initial position embeddings; BERT's is 0.02.
      norm_eps: of the layer norms.
    """

    vocab: int
    width: int
    blocks: int
    heads: int
    hidden: int
    max_length: int
    residual_init: float = 1.0
    positions_init: float = 0.02
    norm_eps: float = 1e-12


class TextBlock(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + feed-forward(x)); biases everywhere, GELU."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
        """Makes one block; the stack is made by `TextEncoder`."""
        width, hidden = cfg.width, cfg.hidden
        normal, scale = nnx.initializers.normal, cfg.residual_init
        self.query = Linear(width, width, bias=True, rngs=rngs)
        self.key = Linear(width, width, bias=True, rngs=rngs)
        self.value = Linear(width, width, bias=True, rngs=rngs)
        self.out = Linear(width, width, bias=True, init=normal(scale * width**-0.5), rngs=rngs)
        self.norm_attention = Norm(width, eps=cfg.norm_eps)
        self.dense = FeedForward(
            width, hidden, bias=True, out_init=normal(scale * hidden**-0.5), rngs=rngs
        )
        self.norm_dense = Norm(width, eps=cfg.norm_eps)
        self.heads = cfg.heads

    def __call__(self, x: Array, mask: Array, dtype: Any) -> Array:
        """x [B, T, width], mask bool[B, 1, 1, T] of the keys → [B, T, width]."""
        B, T, width = x.shape
        shape = (B, T, self.heads, width // self.heads)
        q, k, v = (part(x, dtype).reshape(shape) for part in (self.query, self.key, self.value))
        y = attend(q, k, v, mask).reshape(B, T, width)
        x = self.norm_attention(x + self.out(y, dtype), dtype)
        return self.norm_dense(x + self.dense(x, dtype), dtype)


class TextEncoder(nnx.Module):
    """Token and position embeddings, a norm, and the stacked blocks [L, …]."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
        """Token embeddings start normal with deviation 0.02, as BERT's."""

        def embeddings(n: int, deviation: float) -> nnx.Param:
            return nnx.Param(deviation * jax.random.normal(rngs.params(), (n, cfg.width)))

        self.table = embeddings(cfg.vocab, 0.02)
        self.positions = embeddings(cfg.max_length, cfg.positions_init)
        self.norm = Norm(cfg.width, eps=cfg.norm_eps)
        keys = jax.random.split(rngs.params(), cfg.blocks)
        self.blocks = nnx.vmap(lambda key: TextBlock(cfg, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, tokens: Array, positions: Array, dtype: Any) -> Array:
        """The mean over a text's tokens (Flamingo §B.1.3): i32[B, T] → f32[B, width].

        Args:
          tokens: i32[B, T].
          positions: i32[B, T], -1 at padding.
          dtype: of the computation.
        """
        valid = positions >= 0
        x = self.table[...][tokens] + self.positions[...][jnp.maximum(positions, 0)]
        x = self.norm(x, dtype)
        graph, state = nnx.split(self.blocks)
        mask = valid[:, None, None, :]
        x, _ = jax.lax.scan(
            lambda x, layer: (nnx.merge(graph, layer)(x, mask, dtype), None), x, state
        )
        weight = valid[..., None].astype(jnp.float32)
        total = jnp.sum(x.astype(jnp.float32) * weight, axis=1)
        return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
