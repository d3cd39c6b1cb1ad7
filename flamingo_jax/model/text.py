"""The contrastive text encoder: BERT's kind (Devlin et al. 2019), post-norm and bidirectional."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flamingo_jax.model.layers import FeedForward, Linear, Norm, attend
from flamingo_jax.shapes import Array


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower's shape."""

    vocab: int  # V
    width: int
    blocks: int
    heads: int
    hidden: int
    max_length: int
    norm_eps: float = 1e-12


class TextBlock(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + feed-forward(x)); biases everywhere, GELU."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
        """Makes one block; the stack is made by `TextEncoder`."""
        width = cfg.width
        self.query = Linear(width, width, bias=True, rngs=rngs)
        self.key = Linear(width, width, bias=True, rngs=rngs)
        self.value = Linear(width, width, bias=True, rngs=rngs)
        self.out = Linear(width, width, bias=True, rngs=rngs)
        self.norm_attention = Norm(width, eps=cfg.norm_eps)
        self.dense = FeedForward(width, cfg.hidden, bias=True, rngs=rngs)
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
        """Embeddings start normal with deviation 0.02, as BERT's."""
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (cfg.vocab, cfg.width), jnp.float32))
        self.positions = nnx.Param(init(rngs.params(), (cfg.max_length, cfg.width), jnp.float32))
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
