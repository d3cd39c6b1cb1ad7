"""Fingerprints of arrays: 64 bits that do not depend on the mesh, computed where the array lives.

The fingerprint of an array is two sums modulo 2³², written as 16 hex digits. With an element's
raw bits as `word` (zero-extended to u32; 64-bit elements are two words along a last dim) and its
row-major index as (`high`, `low`), split as `index_words` says, they add up over all elements

    mix(word ^ key ^ mix(high + SEED_A))    and    mix(word ^ key · ODD ^ mix(high + SEED_B))

where key = mix(low), and mix is the bijection that MurmurHash3 ends with (fmix32, Austin Appleby,
public domain). As it is bijective, one changed element always shows; other changes (elements
exchanged, pairs of flipped signs, to which a sum of bits times odd weights is blind) escape with
a probability of about 2⁻⁶⁴.

The sums are associative, so a sharded array is summed where its shards are and only the two words
travel. Shape and dtype are no part of a fingerprint; `signature` and `digest` hold those.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax import offload
from flamingo_jax.shapes import Array

SEED_A, SEED_B, ODD = 0x243F6A88, 0x85A308D3, 0x9E3779B1
"""π's first digits, and a prime near 2³²/φ: nothing up our sleeve. Changing one orphans files."""

DIGEST_DIGITS = 32
"""Hex digits of a tree's digest (128 bits of its sha256)."""


@dataclasses.dataclass(frozen=True)
class Pending:
    """Fingerprints under way on the devices.

    Attributes:
      paths: the leaves' paths.
      sums: u32[2] of each leaf, on the devices, replicated.
    """

    paths: tuple[str, ...]
    sums: list[Array]


def tree_leaves(tree: Any) -> dict[str, Any]:
    """Flattens any pytree to {"a/b/0/c": leaf}: keys, indices and field names joined by `/`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def start_fingerprints(tree: Any) -> Pending:
    """Starts the fingerprints of all leaves, without waiting for them.

    Once this returns the leaves may be donated: the calls already hold their buffers. There is one
    program for each shape, dtype and sharding, which moments share with their parameters and a
    stage with the next: one for a whole tree would be compiled anew for every tree.

    Args:
      tree: arrays on one set of devices, sharded in any way; bool, integers and floats of 8 to 64
        bits.

    Raises:
      TypeError: for a leaf of another dtype, or of 64 bits where JAX has them switched off.
    """
    leaves = tree_leaves(tree)
    for path, leaf in leaves.items():
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise TypeError(f"{path} is {leaf.dtype}, which JAX would narrow; cast it before")
    return Pending(tuple(leaves), [_start(leaf) for leaf in leaves.values()])


def finish_fingerprints(pending: Pending) -> dict[str, str]:
    """Waits for started fingerprints: {path: 16 hex digits}."""
    sums = jax.device_get(pending.sums)
    return {path: f"{a:08x}{b:08x}" for path, (a, b) in zip(pending.paths, sums, strict=True)}


def fingerprints(tree: Any) -> dict[str, str]:
    """{path: 16 hex digits} of a tree's leaves; see `start_fingerprints`."""
    return finish_fingerprints(start_fingerprints(tree))


def signature(tree: Any) -> dict[str, str]:
    """{path: "float32[2,3]"} of a tree's leaves, which may be abstract."""
    return {
        path: f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in tree_leaves(tree).items()
    }


def parse_signature(text: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype that a row of `signature` holds.

    Raises:
      ValueError: if `text` is no such row.
    """
    name, bracket, rest = text.partition("[")
    if not bracket or not rest.endswith("]"):
        raise ValueError(f"{text!r} is not of the form dtype[shape]")
    shape = tuple(int(size) for size in rest[:-1].split(",") if size)
    try:
        return shape, np.dtype(jnp.dtype(name))
    except TypeError as error:
        raise ValueError(f"{text!r} names no dtype") from error


def digest(prints: Mapping[str, str], signatures: Mapping[str, str]) -> str:
    """The digest of a whole tree from its leaves' paths, shapes, dtypes and fingerprints."""
    rows = [f"{path} {signatures[path]} {prints[path]}\n" for path in sorted(prints)]
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:DIGEST_DIGITS]


def index_words(shape: tuple[int, ...], limit: int = 1 << 32) -> tuple[Array, Array]:
    """The linear index of every element as (high, low), both u32[*shape].

    `low` is the linear index within as many of the last dims as have at most `limit` elements
    together, `high` the one within the other dims: no two elements share a pair, and `high` is 0
    in arrays of up to `limit` elements.

    Raises:
      ValueError: if the dims cannot be split so (more than `limit`² elements, or nearly so).
    """
    split, size = len(shape), 1
    while split > 0 and size * shape[split - 1] <= limit:
        split -= 1
        size *= shape[split]
    if math.prod(shape[:split]) > limit:
        raise ValueError(f"an array of shape {shape} is too large to be fingerprinted")
    return _linear(shape, range(split)), _linear(shape, range(split, len(shape)))


def _linear(shape: tuple[int, ...], dims: range) -> Array:
    """Σ index[d] · stride[d] over some adjacent dims, row-major: u32[*shape]."""
    index = lax.full(shape, np.uint32(0))
    stride = 1
    for d in reversed(dims):
        along = lax.broadcasted_iota(np.uint32, shape, d)
        index = lax.add(index, lax.mul(along, np.uint32(stride % (1 << 32))))
        stride *= shape[d]
    return index


def _mix(x: Array) -> Array:
    """MurmurHash3's fmix32: a bijection of u32 in which every bit sways every other.

    In `lax`, as the rest: a start traces it for each shape, and operators take 1.6 times as long.
    """

    def folded(x: Array, bits: int) -> Array:
        return lax.bitwise_xor(x, lax.shift_right_logical(x, np.uint32(bits)))

    x = lax.mul(folded(x, 16), np.uint32(0x85EBCA6B))
    x = lax.mul(folded(x, 13), np.uint32(0xC2B2AE35))
    return folded(x, 16)


def _start(x: Any) -> Array:
    """The sums u32[2] of one array, under way."""
    sums = _compiled(_replicated(x))(x)
    if len(sums.devices()) > 1 and next(iter(sums.devices())).platform == "cpu":
        # Simulated devices share a few threads: programs that each wait for all devices could wait
        # for each other.
        sums.block_until_ready()
    return sums


def _words(x: Array) -> Array:
    """Raw bits as u32: [*shape], or [*shape, 2] for elements of 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if not jnp.issubdtype(x.dtype, jnp.integer) and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"arrays of dtype {x.dtype} have no fingerprint")
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _sums(x: Array) -> Array:
    """The two sums of an array: u32[2]."""
    words = _words(offload.bring(x))
    high, low = index_words(words.shape)
    key = _mix(low)
    key_a = lax.bitwise_xor(key, _mix(lax.add(high, np.uint32(SEED_A))))
    key_b = lax.mul(key, np.uint32(ODD))
    key_b = lax.bitwise_xor(key_b, _mix(lax.add(high, np.uint32(SEED_B))))
    zeros = (np.uint32(0), np.uint32(0))
    # One reduction of both sums: on a CPU six times faster than two.
    sums = lax.reduce(
        (_mix(lax.bitwise_xor(words, key_a)), _mix(lax.bitwise_xor(words, key_b))),
        zeros,
        lambda x, y: (lax.add(x[0], y[0]), lax.add(x[1], y[1])),
        tuple(range(words.ndim)),
    )
    return jnp.stack(sums)


def _replicated(x: Any) -> NamedSharding | None:
    """Every process must be able to read the sums: replicated over the mesh, where there is one."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@functools.cache
def _compiled(sharding: NamedSharding | None) -> Any:
    """The jitted `_sums`, with the result's sharding."""
    return jax.jit(_sums, out_shardings=sharding)
