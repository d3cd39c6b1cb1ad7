"""Pictures and clips to media tokens, each distinct one once, whatever prompts they stand in."""

from __future__ import annotations

import collections
import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.eval.rows import Graph, multiple, placed, power_of_two
from flamingo_jax.shapes import Array, Params

CHUNKS = (16, 4, 1)
"""Media encoded at once, as many as are left: nothing is padded, and few shapes are compiled."""

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
        self._kept: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def media_tokens(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The media tokens [R, D] of each u8[f, Y, X, 3], in the model's dtype.

        Threads may share an encoder: one at a time gets what it asks for.
        """
        with self._lock:
            return self._media_tokens(media)

    def _media_tokens(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        keys = [_digest(pixels) for pixels in media]
        new = {key: pixels for key, pixels in zip(keys, media, strict=True)}
        found = {key: self._kept[key] for key in new if key in self._kept}
        missing = [key for key in new if key not in found]
        encoded = _in_chunks(
            functools.partial(self._run, _media_tokens),
            [new[key] for key in missing],
        )
        found.update(zip(missing, encoded, strict=True))
        for key, tokens in found.items():
            self._keep(key, tokens)
        return [found[key] for key in keys]

    def pooled(self, media: Sequence[np.ndarray]) -> np.ndarray:
        """f32[n, E]: each medium's vision features, averaged over positions and frames."""
        keys = [_digest(pixels) for pixels in media]
        distinct = {key: pixels for key, pixels in zip(keys, media, strict=True)}
        run = functools.partial(self._run, _pooled)
        rows = dict(zip(distinct, _in_chunks(run, list(distinct.values())), strict=True))
        return np.stack([rows[key] for key in keys])

    def _run(self, encode: Any, pixels: np.ndarray, frames: np.ndarray) -> Array:
        """Of media filled up to what can be split over the model's mesh."""
        n = len(frames)
        more = multiple(n, self._graph.layout.shards) - n
        pixels, frames = (
            np.pad(a, ((0, more), *((0, 0),) * (a.ndim - 1))) for a in (pixels, frames)
        )
        return encode(self._graph, self._params, *placed(self._graph, (pixels, frames)))[:n]

    def _keep(self, key: bytes, tokens: np.ndarray) -> None:
        if key not in self._kept:
            self._kept_bytes += tokens.nbytes
        self._kept[key] = tokens
        self._kept.move_to_end(key)
        while self._kept_bytes > KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes


def _digest(pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _in_chunks(
    run: Callable[[np.ndarray, np.ndarray], Array], media: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Calls run(u8[n, F, Y, X, 3], i32[n]), n of `CHUNKS`, F a power of two; a row each medium."""
    results: list[np.ndarray | None] = [None] * len(media)
    for F, members in _by_frames(media):
        while members:
            n = next(n for n in CHUNKS if n == 1 or (n <= len(members) and n * F <= FRAMES))
            part, members = members[:n], members[n:]
            pixels = np.zeros((n, F, *media[part[0]].shape[1:]), np.uint8)
            frames = np.asarray([len(media[member]) for member in part], np.int32)
            for row, member in enumerate(part):
                pixels[row, : frames[row]] = media[member]
            rows = np.asarray(run(pixels, frames))
            for row, member in enumerate(part):
                results[member] = rows[row]
    return [result for result in results if result is not None]


def _by_frames(media: Sequence[np.ndarray]) -> Iterable[tuple[int, list[int]]]:
    groups: dict[int, list[int]] = {}
    for member, pixels in enumerate(media):
        groups.setdefault(power_of_two(len(pixels)), []).append(member)
    return sorted(groups.items())
