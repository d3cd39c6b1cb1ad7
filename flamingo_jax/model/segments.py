"""Segments: how LM blocks and gated cross-attention layers follow one another, and their scan.

A model is a list of segments [gated layer + k blocks] × repeats, so that the paper's placement
(before blocks 0, k, 2k, …; a last group may be short) and OpenFlamingo's ((i + 1) % k == 0) are
data. Parameters are stacked [L, …] and [n, …] whatever the segments. A loop takes one layer at a
time out of the whole stack, by its number: a group or a segment cut out of it would be a copy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import lax

from flamingo_jax import offload
from flamingo_jax.model import layers
from flamingo_jax.model.language import Kept, Place
from flamingo_jax.shapes import Array


def _all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps all but a layer's weights, which are taken again: kept they would be a second stack."""
    rule = params.get("call_jaxpr")  # of `_layer_of`, where no gradient is asked of it
    names = {primitive.name} if rule is None else {one.primitive.name for one in rule.eqns}
    return not names & {"dynamic_slice", "squeeze", "device_put"}


REMAT: dict[str, Any] = {
    "none": _all_but_weights,
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
    """Leaves [L, …] → [repeats, each, …] from `start` on."""

    def cut(leaf: Array) -> Array:
        return leaf[start : start + repeats * each].reshape(repeats, each, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


@jax.custom_vjp
def _layer_of(own: Array | None, stack: Array, number: Array) -> Array:
    """stack[number], of [L, …]; its gradient is that of `own`, the same layer cut out of the stack.

    A loop's forward pass reads the stack, so that `own` is nowhere computed. In the backward pass
    the gradient of what a loop runs over is written layer by layer; that of a whole stack which it
    indexes would be summed up anew, all of it, at each layer.
    """
    del own
    first = (number, *[0] * (stack.ndim - 1))
    return offload.bring(lax.squeeze(lax.dynamic_slice(stack, first, (1, *stack.shape[1:])), [0]))


def _layer_of_forward(own: Array | None, stack: Array, number: Array) -> tuple[Array, None]:
    return _layer_of(own, stack, number), None


def _layer_of_backward(_: None, g: Array) -> tuple[Array, None, None]:
    return g, None, None


_layer_of.defvjp(_layer_of_forward, _layer_of_backward)


class _Stack:
    """Stacked layers [L, …] of which a loop takes one at a time."""

    def __init__(self, module: nnx.Module):
        self._graph, state = nnx.split(module)
        self._own, self._tree = jax.tree.flatten(state)
        self._leaves = [lax.stop_gradient(leaf) for leaf in self._own]

    def part(self, start: int, repeats: int, each: int) -> tuple[Any, Array]:
        """What a loop over those layers runs over: the gradient's way, and numbers i32[…]."""
        # What lies on the hosts is frozen.
        own = [None if offload.on_host(leaf) else leaf for leaf in self._own]
        numbers = start + jax.numpy.arange(repeats * each).reshape(repeats, each)
        return _cut(own, start, repeats, each), numbers

    def layer(self, taken: tuple[Any, Array]) -> Any:
        """The module of one layer."""
        own, number = taken
        pairs = zip(own, self._leaves, strict=True)
        leaves = [_layer_of(mine, stack, number) for mine, stack in pairs]
        return nnx.merge(self._graph, self._tree.unflatten(leaves))


def _laid_out(body: Callable[[Any, Any], Any], x: Any, xs: Any, count: int) -> tuple[Any, Any]:
    """`lax.scan(body, x, xs)` over `count` layers without a loop.

    A leaf [count, …] is split, so that its gradient is put together once, by concatenation; by
    index it would be the sum of `count` whole arrays, each zero but for one layer.
    """
    leaves, kind = jax.tree.flatten(xs)
    parts = [lax.split(leaf, (1,) * count) for leaf in leaves]
    told = []
    for layer in range(count):
        x, y = body(x, kind.unflatten([lax.squeeze(part[layer], [0]) for part in parts]))
        told.append(y)
    return x, jax.tree.map(lambda *ys: jax.numpy.stack(ys), *told)


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
    cache: Kept | None = None,
    media_cache: Any = None,
    remat: str = "none",
    unroll: bool = False,
    unroll_blocks: bool = False,
    constrain: Callable[[Array], Array] = lambda x: x,
    dtype: Any,
) -> tuple[Array, Kept | None]:
    """Runs all blocks over the residual stream, one `lax.scan` a segment.

    Args:
      parts: the segments.
      blocks: the stacked LM blocks [L, …].
      xattn: the stacked gated layers [n, …], or None: the bare LM run in the same segments.
      x: [B, T, D].
      where: positions and masks of the self-attention.
      gated: how a gated layer is applied.
      cache: `language.Kept` of all blocks, each stacked [L, …], or None.
      media_cache: whatever `gated` takes a layer, stacked [n, …], or None.
      remat: a key of `REMAT`: what the backward finds kept.
      unroll: lay the groups out one after another in the program: faster for a few small ones,
        where stacking what the backward needs costs as much as computing it.
      unroll_blocks: lay a group's blocks out, but not the groups: what the backward needs of a
        block is then written once, where it is a loop's result that an outer loop collects it is
        copied; compiling takes longer with the blocks of a group.
      constrain: applied to x after each layer (a sharding constraint).
      dtype: of the computation.

    Returns:
      x [B, T, D], and keys and values [L, B, S, K, H] as they are afterwards.
    """
    block_stack = _Stack(blocks)
    gated_stack = None if xattn is None or gated is None else _Stack(xattn)

    def one_block(x: Array, layer: tuple[Any, Any]) -> tuple[Array, Any]:
        taken, kept = layer
        x, kept = block_stack.layer(taken)(x, where, kept, dtype)
        return constrain(x), kept

    def one_gated(x: Array, layer: tuple[Any, Any]) -> Array:
        assert gated_stack is not None and gated is not None
        taken, media = layer
        return constrain(gated(gated_stack.layer(taken), x, media))

    def group(x: Array, layer: tuple[Any, Any, Any]) -> tuple[Array, Any]:
        block_part, kept, gated_part = layer
        if gated_part is not None:
            x = one_gated(x, gated_part)
        if unroll_blocks and not unroll:
            return _laid_out(one_block, x, (block_part, kept), len(block_part[1]))
        return lax.scan(one_block, x, (block_part, kept), unroll=unroll)

    if remat != "none" or not unroll:
        # A layer at a time, not a group: one layer's values exist at once in the backward. In a
        # loop nothing can merge what is computed again with what was; laid out, it would be.
        again = functools.partial(jax.checkpoint, policy=REMAT[remat], prevent_cse=unroll)
        one_block, one_gated = again(one_block), again(one_gated)

    first_block, first_gated, caches = 0, 0, []
    for part in parts:
        sizes = (first_block, part.repeats, part.blocks)
        gated_part = None
        if part.has_xattn and gated_stack is not None:
            take = (first_gated, part.repeats, 1)
            gated_part = (gated_stack.part(*take), _cut(media_cache, *take))
            gated_part = jax.tree.map(lambda a: a[:, 0], gated_part)
            first_gated += part.repeats
        parted = (block_stack.part(*sizes), _cut(cache, *sizes), gated_part)
        x, kept = lax.scan(group, x, parted, unroll=unroll)
        caches.append(kept)
        first_block += part.repeats * part.blocks
    return x, None if cache is None else _join(caches)
