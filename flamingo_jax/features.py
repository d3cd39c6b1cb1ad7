"""Vision features computed once: every version of every picture through the frozen encoder.

With a frozen encoder the features of a picture never change, so a run that sees few distinct
pictures (K augmented versions of each) encodes them before its first step rather than at each one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from flamingo_jax import assemble, progress
from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.rows import DatasetSpec, render_version
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.shapes import Array, Params

Key = tuple[str, int]
"""(a medium's key, its version); version -1 is the picture as it is, without augmentation."""

BATCH = 128
"""Frames encoded at once; the last batch is filled up, so that one shape is compiled."""


def encoder(c: Any, vision: Params) -> Callable[[np.ndarray], Array]:
    """The jitted frozen encoder: u8[N, Y, X, 3] → [N, P, E] in its own dtype.

    Args:
      c: the finished config.
      vision: the encoder's parameters.
    """
    compiled = _compiled_encoder(assemble.vision_config(c), c.model.vision.dtype)
    return lambda pixels: compiled(vision, pixels)


@functools.cache
def _compiled_encoder(cfg: VisionConfig, dtype: str) -> Any:
    graph, _ = nnx.split(nnx.eval_shape(lambda: VisionTower(cfg, rngs=nnx.Rngs(0))))
    return jax.jit(lambda params, pixels: nnx.merge(graph, params)(pixels, jnp.dtype(dtype)))


def encode_all(
    encode: Callable[[np.ndarray], Array],
    media: Iterable[tuple[Key, np.ndarray]],
    total: int,
    title: str = "features",
) -> dict[Key, np.ndarray]:
    """Runs the encoder over all media.

    Args:
      encode: u8[BATCH, Y, X, 3] → [BATCH, P, E], jitted.
      media: (key, u8[F, Y, X, 3]) pairs.
      total: how many pairs there are, for the progress bar.
      title: of the bar.

    Returns:
      {key: bf16[F, P, E]}.
    """
    found: dict[Key, list[np.ndarray]] = {}

    def keep(keys: list[Key | None], encoded: Array) -> None:
        features = np.asarray(encoded).astype(ml_dtypes.bfloat16)
        for place, key in enumerate(keys):
            if key is not None:
                found.setdefault(key, []).append(features[place])

    with progress.bar(title, total, unit="media") as bar:
        running: tuple[list[Key | None], Array] | None = None
        for keys, frames in _batches(media):
            # The next pictures are decoded while the device computes.
            before, running = running, (keys, encode(frames))
            if before is not None:
                keep(*before)
                bar.advance(len(found))
        if running is not None:
            keep(*running)
            bar.advance(len(found))
    return {key: np.stack(parts) for key, parts in found.items()}


def _batches(
    media: Iterable[tuple[Key, np.ndarray]],
) -> Iterator[tuple[list[Key | None], np.ndarray]]:
    """Frames of all media in batches of one size; the last is padded and its padding has no key."""
    keys: list[Key | None] = []
    frames: list[np.ndarray] = []
    for key, pixels in media:
        for frame in pixels:
            keys.append(key)
            frames.append(frame)
            if len(frames) == BATCH:
                yield keys, np.stack(frames)
                keys, frames = [], []
    if frames:
        padding = BATCH - len(frames)
        yield keys + [None] * padding, np.stack(frames + [frames[-1]] * padding)


class FeatureTable:
    """Cached features of one dataset, as the data floor reads them."""

    def __init__(self, found: dict[Key, np.ndarray], bad: dict[Key, str], shape: tuple[int, int]):
        """Shares the run's tables of features and of reasons why there are none.

        `shape` is (P, E).
        """
        self._found, self._bad, self.shape = found, bad, shape

    def __getitem__(self, key: Key) -> np.ndarray:
        """bf16[f, P, E].

        Raises:
          BadRecord: if the medium could not be decoded.
        """
        if key in self._bad:
            raise BadRecord(self._bad[key], key[0])
        return self._found[key]


def rendered(
    wanted: dict[Key, tuple[Medium, DatasetSpec]], seed: int, bad: dict[Key, str]
) -> Iterator[tuple[Key, np.ndarray]]:
    """Yields (key, u8[F, Y, X, 3]) of the media that can be decoded; `bad` gets why others cannot.

    Args:
      wanted: {(medium's key, version): (medium, how its dataset shows it)}.
      seed: the run's.
      bad: is filled with {key: reason}.
    """
    for key, (medium, spec) in wanted.items():
        try:
            pixels = render_version(medium, spec, seed, key[1])
        except BadRecord as error:
            bad[key] = error.reason
        else:
            yield key, pixels


def channel_statistics(features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, f32[E] each, in one pass with f64 sums."""
    count, total, square = 0, np.zeros(()), np.zeros(())
    for part in features:
        rows = part.reshape(-1, part.shape[-1]).astype(np.float64)
        count += len(rows)
        total = total + rows.sum(0)
        square = square + np.square(rows).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - np.square(mean), 1e-6))
    return mean.astype(np.float32), deviation.astype(np.float32)
