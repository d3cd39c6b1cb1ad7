"""The dim letters of the whole project, and the batch every floor passes around.

One legend, used in docstrings, einsum strings and the sharding table alike:

| letter | dim | letter | dim |
|---|---|---|---|
| `B` | sequences in a batch | `V` | the language model's own vocabulary |
| `T` | text tokens (queries) | `W` | new tokens, beyond the frozen vocabulary |
| `S` | keys and values attended to | `L` | language-model blocks |
| `M` | media (images or clips) per sequence | `G` | repeats of a scanned group |
| `F` | frames per medium | `N` | attention heads |
| `Y X C` | pixel rows, columns, channels | `K` | key/value heads |
| `P` | visual features (positions) per frame | `H` | width of a head |
| `R` | latents per medium | `I` | hidden width of a feed-forward layer |
| `D` | width of the language model | `A` | joint width of the contrastive space |
| `E` | width of the vision features and the resampler | `O` | any other output width |
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any
"""A `jax.Array`, a `numpy.ndarray`, or (when only shapes are known) a `jax.ShapeDtypeStruct`."""

Params = dict[str, Any]
"""A nested dict of arrays; the keys joined by `/` are the parameter's path."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One dataset's batch: text, its media, and which token sees which medium.

    Attributes:
      tokens: i32[B, T] token ids; ids of new tokens follow the frozen vocabulary (`V`, `V + 1`, …).
      positions: i32[B, T] position of a token in its sequence; -1 marks padding, left or right.
      media: u8[B, M, F, Y, X, C] pixels, or cached vision features bf16[B, M, F, P, E].
      frames: i32[B, M] valid frames of each medium; 0 = there is no such medium.
      media_of_token: i32[B, T] the medium a token attends to, counted from 1; 0 = none.
      loss_mask: f32[B, T] 1 where the token is a target of the loss (the token itself, not the
        position that predicts it).
    """

    tokens: Array
    positions: Array
    media: Array
    frames: Array
    media_of_token: Array
    loss_mask: Array


def abstract_batch(
    batch: int,
    length: int,
    media: tuple[int, int],
    image_size: int,
    features: tuple[int, ...] | None = None,
    sharding: Any = None,
) -> Batch:
    """A batch of ShapeDtypeStructs.

    Args:
      batch: B.
      length: T.
      media: M and F.
      image_size: Y and X.
      features: P and E, where the media are cached features in place of pixels.
      sharding: of all its arrays.
    """

    def array(dtype: Any, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *dims), dtype, sharding=sharding)

    pixels = (jnp.uint8, *media, image_size, image_size, 3)
    return Batch(
        tokens=array(jnp.int32, length),
        positions=array(jnp.int32, length),
        media=array(*pixels) if features is None else array(jnp.bfloat16, *media, *features),
        frames=array(jnp.int32, media[0]),
        media_of_token=array(jnp.int32, length),
        loss_mask=array(jnp.float32, length),
    )


def flatten_paths(tree: Params, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {"a/b/c": leaf}, in sorted order of the paths' keys."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(tree[key], dict):
            flat.update(flatten_paths(tree[key], path))
        else:
            flat[path] = tree[key]
    return flat


def unflatten_paths(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten_paths`."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def map_paths(function: Any, tree: Params) -> Params:
    """Maps `function(path, leaf)` over nested dicts, keeping their structure."""
    return unflatten_paths({p: function(p, leaf) for p, leaf in flatten_paths(tree).items()})


def merge_trees(*trees: Params) -> Params:
    """Joins trees with disjoint leaves into one.

    Raises:
      ValueError: if two trees hold the same path.
    """
    flat: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten_paths(tree).items():
            if path in flat:
                raise ValueError(f"the parameter {path!r} is in two of the trees to be merged")
            flat[path] = leaf
    return unflatten_paths(flat)
