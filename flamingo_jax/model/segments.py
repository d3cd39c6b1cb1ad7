"""Segments: how LM blocks and gated cross-attention layers follow one another, and their scan.

A model is a list of segments [gated layer + k blocks] × repeats, so that the paper's placement
(before blocks 0, k, 2k, …; a last group may be short) and OpenFlamingo's ((i + 1) % k == 0) are
data. Parameters are stacked [L, …] and [n, …] whatever the segments; they are cut up here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from flamingo_jax.model import layers
from flamingo_jax.model.language import Place
from flamingo_jax.shapes import Array

REMAT: dict[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(*layers.ATTENTION),
    # By name: JAX's policies for products do not see into `products.dot`'s own rule.
    "dots": jax.checkpoint_policies.save_only_these_names(layers.PRODUCT),
}
"""What is kept inside a layer beside the stream before it: rows of config.py's `model.remat`."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """`repeats` groups, each a gated layer (or none) followed by `blocks` LM blocks."""

    has_xattn: bool
    blocks: int
    repeats: int


def segments(blocks: int, every: int, offset: int = 0) -> tuple[Segment, ...]:
    """Gated layers before blocks offset, offset + every, … of `blocks`.

    `segments(80, 7)` is the paper's 80B: 11 groups of 7 and one of 3, 12 gated layers.
    `segments(32, 4, 3)` is OpenFlamingo's 9B.

    Raises:
      ValueError: if `every` < 1 or `offset` is not in 0 … every - 1.
    """
    if every < 1 or not 0 <= offset < every:
        raise ValueError(f"gated layers every {every} blocks from block {offset} make no sense")
    found = [Segment(False, min(offset, blocks), 1)] if offset else []
    left = max(blocks - offset, 0)
    if left // every:
        found.append(Segment(True, every, left // every))
    if left % every:
        found.append(Segment(True, left % every, 1))
    return tuple(found)


def xattn_layers(parts: tuple[Segment, ...]) -> int:
    """n, the number of gated layers."""
    return sum(s.repeats for s in parts if s.has_xattn)


def _cut(tree: Any, start: int, repeats: int, each: int) -> Any:
    """Leaves [L, …] → [repeats, each, …] from `start` on; no copy where all of it is taken."""

    def cut(leaf: Array) -> Array:
        part = leaf if repeats * each == leaf.shape[0] else leaf[start : start + repeats * each]
        return part.reshape(repeats, each, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def _join(parts: list[Any]) -> Any:
    """The inverse of `_cut` over all segments: [[repeats, each, …], …] → [L, …]."""
    flat = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), part) for part in parts]
    if len(flat) == 1:
        return flat[0]
    return jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *flat)


GatedStep = Callable[[Any, Array, Any], Array]
"""(gated layer's module, x [B, T, D], its cached keys and values or None) → x."""


def run(
    parts: tuple[Segment, ...],
    blocks: nnx.Module,
    xattn: nnx.Module | None,
    x: Array,
    where: Place,
    *,
    gated: GatedStep | None = None,
    cache: tuple[Array, Array] | None = None,
    media_cache: Any = None,
    remat: str = "none",
    unroll: bool = False,
    constrain: Callable[[Array], Array] = lambda x: x,
    dtype: Any,
) -> tuple[Array, tuple[Array, Array] | None]:
    """Runs all blocks over the residual stream, one `lax.scan` a segment.

    Args:
      parts: the segments.
      blocks: the stacked LM blocks [L, …].
      xattn: the stacked gated layers [n, …], or None: the bare LM run in the same segments.
      x: [B, T, D].
      where: positions and masks of the self-attention.
      gated: how a gated layer is applied.
      cache: self-attention keys and values [L, B, S, K, H] each, or None.
      media_cache: whatever `gated` takes a layer, stacked [n, …], or None.
      remat: "none" or a key of `REMAT`: what the backward finds kept.
      unroll: lay the groups out one after another in the program: faster for a few small ones,
        where stacking what the backward needs costs as much as computing it.
      constrain: applied to x after each layer (a sharding constraint).
      dtype: of the computation.

    Returns:
      x [B, T, D] and the caches as they are afterwards.
    """
    block_graph, block_state = nnx.split(blocks)
    xattn_graph, xattn_state = nnx.split(xattn) if xattn is not None else (block_graph, None)

    def one_block(x: Array, layer: tuple[Any, Any]) -> tuple[Array, Any]:
        state, kept = layer
        x, kept = nnx.merge(block_graph, state)(x, where, kept, dtype)
        return constrain(x), kept

    def one_gated(x: Array, layer: tuple[Any, Any]) -> Array:
        assert gated is not None
        return constrain(gated(nnx.merge(xattn_graph, layer[0]), x, layer[1]))

    def group(x: Array, layer: tuple[Any, Any, Any, Any]) -> tuple[Array, Any]:
        block_part, kept, xattn_part, media = layer
        if xattn_part is not None and gated is not None:
            x = one_gated(x, (xattn_part, media))
        return jax.lax.scan(one_block, x, (block_part, kept), unroll=unroll)

    if remat != "none":
        # A layer at a time, not a group: one layer's values exist at once in the backward. In a
        # loop nothing can merge what is computed again with what was; laid out, it would be.
        again = functools.partial(jax.checkpoint, policy=REMAT[remat], prevent_cse=unroll)
        one_block, one_gated = again(one_block), again(one_gated)

    first_block, first_gated, caches = 0, 0, []
    for part in parts:
        sizes = (first_block, part.repeats, part.blocks)
        xattn_part = media = None
        if part.has_xattn and xattn_state is not None:
            take = (first_gated, part.repeats, 1)
            xattn_part = jax.tree.map(lambda a: a[:, 0], _cut(xattn_state, *take))
            media = jax.tree.map(lambda a: a[:, 0], _cut(media_cache, *take))
            first_gated += part.repeats
        parted = (_cut(block_state, *sizes), _cut(cache, *sizes), xattn_part, media)
        x, kept = jax.lax.scan(group, x, parted, unroll=unroll)
        caches.append(kept)
        first_block += part.repeats * part.blocks
    return x, None if cache is None else _join(caches)
