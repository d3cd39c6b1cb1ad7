"""Attention in one kernel, without scores in memory: Splash on TPUs, cuDNN's on GPUs.

Which calls of `attention.attend` a kernel takes is one sentence each; all others stay plain:

- splash: no bias, a mask that is segments (or none), and at least half a block, 64, of queries and
  of keys.
- cudnn: no bias, bf16 or f16, heads of at most 128 that 8 divides, and even numbers of queries and
  of keys.

So Transformer-XL's relative positions (a bias), `attend="upto"` on TPUs (no equality of segments)
and decoding with a cache (a query or few at a time) are plain. What kernels compute differs from
the plain form by rounding: scores are of scaled queries, and weights are f32 where they meet the
values. No array of theirs is of T · S elements (cuDNN's mask is).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax.layout import Layout
from flamingo_jax.model.masks import BLIND, UNSEEN, Mask, Segments
from flamingo_jax.shapes import Array

BLOCK, MOST = 128, 512
"""Splash's blocks: lanes of a TPU's registers, and the longest block by default."""

Kernel = Callable[[Array, Array, Array, "Mask | None", float, Layout], Array]
"""(q, k, v, mask, scale, layout) → [B, T, N, H]: as `attention.attend`."""


def kernel_of(attention: str, platform: str) -> str:
    """`Layout.attention` for a config's "plain" or "fused"; a CPU has no kernel, and is plain."""
    fused = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    return fused.get(platform, "plain") if attention == "fused" else "plain"


def takes(
    q: Array, k: Array, mask: Mask | None, bias: Array | None, layout: Layout
) -> Kernel | None:
    """The layout's kernel, if it has a form for a call of `attention.attend`; else None."""
    kernel, form = FORMS.get(layout.attention, (None, None))
    if kernel is None or form is None or bias is not None or q.shape[0] % layout.shards:
        return None
    return kernel if form(q, k, mask) else None


def _splash_form(q: Array, k: Array, mask: Mask | None) -> bool:
    short = min(q.shape[1], k.shape[1]) < BLOCK // 2
    return not short and (mask is None or mask.segments is not None)


def _cudnn_form(q: Array, k: Array, mask: Mask | None) -> bool:
    del mask  # any
    half = q.dtype in (jnp.bfloat16, jnp.float16) and k.dtype == q.dtype
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    return half and even and q.shape[3] <= 128 and q.shape[3] % 8 == 0


def blocks(length: int) -> tuple[int, int]:
    """(block, padded length) for so many queries or keys: as few blocks as `MOST` allows."""
    number = -(-length // MOST)
    block = -(-length // (number * BLOCK)) * BLOCK
    return block, number * block


def splash(q: Array, k: Array, v: Array, mask: Mask | None, scale: float, layout: Layout) -> Array:
    """JAX's Splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`).

    Queries and keys are padded to whole blocks. Off TPUs the kernel is interpreted, for tests.
    """
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    segments = None if mask is None else mask.segments
    if segments is None:
        segments = Segments(jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32))
    ways = layout.tensor
    if K % ways and N % ways == 0:  # each device needs the keys of its own queries' heads
        k, v = (jnp.repeat(a, N // K, axis=2) for a in (k, v))
    seeing = segments.queries >= 0

    def own(q: Array, k: Array, v: Array, queries: Array, keys: Array) -> Array:
        return _splash(q, k, v, queries, keys, segments.causal, layout.platform != "tpu")

    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    out = layout.each(own, (scaled, k, v), (segments.queries, segments.keys))
    # A query without any key is else the mean of all; what is not taken has no gradient either.
    return jnp.where(seeing[:, :, None, None], out, 0)


def _splash(
    q: Array, k: Array, v: Array, queries: Array, keys: Array, causal: bool, interpret: bool
) -> Array:
    """Of one device's rows and heads: [B, T, N, H], [B, S, K, H], i32[B, T], i32[B, S]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (T, N), S = q.shape[1:3], k.shape[1]
    (block_q, all_q), (block_k, all_k) = blocks(T), blocks(S)
    order = masks.CausalMask if causal else masks.FullMask
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([order((all_q, all_k))] * N),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def padded(a: Array, to: int, value: int = 0) -> Array:
        widths = ((0, 0), (0, to - a.shape[1]), *((0, 0),) * (a.ndim - 2))
        return jnp.pad(a, widths, constant_values=value)

    ids = kernels.SegmentIds(padded(queries, all_q, BLIND), padded(keys, all_k, UNSEEN))
    heads = (jnp.swapaxes(padded(a, to), 1, 2) for a, to in ((q, all_q), (k, all_k), (v, all_k)))
    out: Any = jax.vmap(kernel)(*heads, ids)  # [B, N, T', H]
    return jnp.swapaxes(out, 1, 2)[:, :T]


def cudnn(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | None,
    scale: float,
    layout: Layout,
    implementation: Any = "cudnn",
) -> Array:
    """cuDNN's attention through `jax.nn.dot_product_attention`, which splits it over a mesh."""
    del layout
    dense = None
    if mask is not None:
        dense = jnp.broadcast_to(mask.dense, (q.shape[0], mask.shape[1], q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=dense, scale=scale, implementation=implementation
    )
    if dense is None:
        return out
    # A query without any key is else the mean of all; what is not taken has no gradient either.
    return jnp.where(jnp.swapaxes(jnp.any(dense, axis=-1), 1, 2)[..., None], out, 0)


FORMS: dict[str, tuple[Kernel, Callable[[Array, Array, Mask | None], bool]]] = {
    "splash": (splash, _splash_form),
    "cudnn": (cudnn, _cudnn_form),
}
"""`Layout.attention` → (kernel, whether it has a form for q, k and a mask); "plain" has no row."""
