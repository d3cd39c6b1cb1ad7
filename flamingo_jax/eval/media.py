"""Pictures and clips to media tokens, each distinct one once, whatever prompts they stand in."""

from __future__ import annotations

import collections
import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.eval.rows import Graph, multiple, placed, power_of_two
from flamingo_jax.shapes import Array, Params

CHUNKS = (16, 4, 1)
"""Media encoded at once: few shapes are compiled."""

FRAMES = 64
"""No more frames than this at once; a longer clip is encoded alone."""

KEPT_BYTES = 1 << 27
"""How much of media tokens an encoder keeps for later calls, those used last."""


@functools.partial(jax.jit, static_argnames="graph")
def _media_tokens(graph: Graph, params: Params, pixels: Array, frames: Array) -> Array:
    """u8[n, F, Y, X, 3], valid frames i32[n] → [n, R, D]."""
    model = graph.model(params)
    return model.resample(model.encode(pixels[:, None]), frames[:, None])


@functools.partial(jax.jit, static_argnames="graph")
def _pooled(graph: Graph, params: Params, pixels: Array, frames: Array) -> Array:
    """u8[n, F, Y, X, 3], valid frames i32[n] → f32[n, E], the mean over positions and frames."""
    features = graph.model(params).encode(pixels[:, None])[:, 0].astype(jnp.float32)
    valid = jnp.arange(pixels.shape[1]) < frames[:, None]
    sums = jnp.sum(jnp.mean(features, axis=2) * valid[..., None], axis=1)
    return sums / jnp.maximum(frames, 1)[:, None]


class MediaEncoder:
    """The vision encoder and the resampler of one model, and what they have seen lately."""

    def __init__(self, graph: Graph, params: Params):
        """Takes a model that can see.

        Raises:
          ValueError: for a resampler that embeds a medium's place in its sequence: its tokens
            cannot be kept for other places.
        """
        config = graph.config
        if config.resampler is not None and config.resampler.max_media:
            raise ValueError("media tokens that depend on a medium's place cannot be kept")
        self._graph, self._params = graph, params
        self._kept = _Kept(KEPT_BYTES)
        self._lock = threading.Lock()

    def media_tokens(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The media tokens [R, D] of each u8[f, Y, X, 3], in the model's dtype.

        Threads may share an encoder: one at a time gets what it asks for.
        """
        with self._lock:
            return self._rows(_media_tokens, media, self._kept)

    def pooled(self, media: Sequence[np.ndarray]) -> np.ndarray:
        """f32[n, E]: each medium's vision features, averaged over positions and frames."""
        return np.stack(self._rows(_pooled, media, _Kept(0)))

    def _rows(self, encode: Any, media: Sequence[np.ndarray], kept: _Kept) -> list[np.ndarray]:
        """What `encode` makes of each medium, of each distinct one once.

        Rounding depends on how many are encoded at once, and on the place among them. Hence chunks
        are those of all that is asked for, in an order of its own, and are kept and found as a
        whole: the rows are the same whatever was asked before, as after a kill, when nothing is
        kept.
        """
        keys = [_digest(pixels) for pixels in media]
        distinct = dict(zip(keys, media, strict=True))
        found: dict[bytes, np.ndarray] = {}
        for F, members in _by_frames(distinct):
            n = _at_once(len(members), F)
            for start in range(0, len(members), n):
                chunk = tuple(members[start : start + n])
                rows = kept.get(chunk)
                if rows is None:
                    rows = self._run(encode, *_padded([distinct[key] for key in chunk], n, F))
                    kept.put(chunk, rows)
                found.update(zip(chunk, rows, strict=False))
        return [found[key] for key in keys]

    def _run(self, encode: Any, pixels: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Of media filled up to what can be split over the model's mesh."""
        n = len(frames)
        more = multiple(n, self._graph.layout.shards) - n
        pixels, frames = (
            np.pad(a, ((0, more), *((0, 0),) * (a.ndim - 1))) for a in (pixels, frames)
        )
        found = encode(self._graph, self._params, *placed(self._graph, (pixels, frames)))
        return np.asarray(found[:n])


class _Kept:
    """The rows of chunks, those used last."""

    def __init__(self, most_bytes: int):
        self._most, self._bytes = most_bytes, 0
        self._rows: collections.OrderedDict[tuple[bytes, ...], np.ndarray] = (
            collections.OrderedDict()
        )

    def get(self, chunk: tuple[bytes, ...]) -> np.ndarray | None:
        if chunk in self._rows:
            self._rows.move_to_end(chunk)
        return self._rows.get(chunk)

    def put(self, chunk: tuple[bytes, ...], rows: np.ndarray) -> None:
        self._rows[chunk] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._most:
            _, oldest = self._rows.popitem(last=False)
            self._bytes -= oldest.nbytes


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _by_frames(media: Mapping[bytes, np.ndarray]) -> list[tuple[int, list[bytes]]]:
    """Media that are padded to the same number of frames, in the order of their digests."""
    groups: dict[int, list[bytes]] = {}
    for key in sorted(media):
        groups.setdefault(power_of_two(len(media[key])), []).append(key)
    return sorted(groups.items())


def _at_once(count: int, F: int) -> int:
    """How many of `count` media of F frames are encoded at once: at most a quarter is filled up."""
    fits = (n for n in CHUNKS if n * F <= FRAMES and 4 * multiple(count, n) <= 5 * count)
    return next(fits, 1)


def _padded(media: Sequence[np.ndarray], n: int, F: int) -> tuple[np.ndarray, np.ndarray]:
    """(u8[n, F, Y, X, 3], valid frames i32[n]) of at most n media, filled up with 0."""
    pixels = np.zeros((n, F, *media[0].shape[1:]), np.uint8)
    frames = np.zeros((n,), np.int32)
    for row, own in enumerate(media):
        pixels[row, : len(own)] = own
        frames[row] = len(own)
    return pixels, frames
