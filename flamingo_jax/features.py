"""Vision features computed once: every version of every picture through the frozen encoder.

With a frozen encoder the features of a picture never change, so a run that sees few distinct
pictures (K augmented versions of each) encodes them before its first step rather than at each one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flamingo_jax import assemble, fingerprint, offload, progress, sharding
from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.featurefiles import layout
from flamingo_jax.data.featurefiles.reader import open_features
from flamingo_jax.data.prepare import begun
from flamingo_jax.data.rows import DatasetSpec, render_version
from flamingo_jax.errors import InputError
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.shapes import Array, Params

Key = tuple[str, int]
"""(a medium's key, its version); version -1 is the picture as it is, without augmentation."""

BATCH = 128
"""Frames encoded at once, at least; the last batch is filled up: one shape is compiled."""
FRAMES_A_DEVICE = 16
"""Of them, at least."""

K = TypeVar("K")


def batch_size(mesh: Mesh) -> int:
    """Frames encoded at once: a multiple of what the mesh splits a batch's rows into."""
    parts = math.prod(mesh.shape[axis] for axis in sharding.ROWS)
    return max(-(-BATCH // parts), FRAMES_A_DEVICE) * parts


def encoder(c: Any, vision: Params, mesh: Mesh) -> Callable[[np.ndarray], Array]:
    """The jitted frozen encoder: u8[N, Y, X, 3] → [N, P, E] in its own dtype, N = `batch_size`.

    Frames are split over the mesh as the rows of a training batch are. Several processes all give
    the same frames, and all get the features of all.

    Args:
      c: the finished config.
      vision: the encoder's parameters, sharded as in training.
      mesh: the devices.
    """
    compiled = _compiled_encoder(assemble.vision_config(c), c.model.vision.dtype, mesh)
    rows = sharding.rows_sharding(mesh)

    def encode(pixels: np.ndarray) -> Array:
        split = jax.make_array_from_callback(pixels.shape, rows, lambda index: pixels[index])
        return compiled(vision, split)

    return encode


@functools.cache
def _compiled_encoder(cfg: VisionConfig, dtype: str, mesh: Mesh) -> Any:
    graph, _ = nnx.split(nnx.eval_shape(lambda: VisionTower(cfg, rngs=nnx.Rngs(0))))
    alone = jax.process_count() == 1
    return jax.jit(
        lambda p, pixels: nnx.merge(graph, offload.bring(p))(pixels, jnp.dtype(dtype)),
        out_shardings=sharding.rows_sharding(mesh) if alone else sharding.replicated(mesh),
    )


def encoded(
    encode: Callable[[np.ndarray], Array],
    media: Iterable[tuple[K, np.ndarray]],
    batch: int = BATCH,
) -> Iterator[tuple[K, np.ndarray]]:
    """Runs the encoder over media, of which it holds two batches at a time.

    Args:
      encode: u8[batch, Y, X, 3] → [batch, P, E], jitted.
      media: (key, u8[F, Y, X, 3]) pairs; no key is the one before.
      batch: frames encoded at once.

    Yields:
      (key, bf16[F, P, E]) of each, in their order.
    """

    def frames() -> Iterator[tuple[K | None, np.ndarray]]:
        running: tuple[list[K | None], Array] | None = None
        for keys, pixels in _batches(media, batch):
            # The next pictures are decoded while the device computes.
            before, running = running, (keys, encode(pixels))
            if before is not None:
                yield from zip(before[0], _on_host(before[1]), strict=True)
        if running is not None:
            yield from zip(running[0], _on_host(running[1]), strict=True)

    for key, parts in itertools.groupby(frames(), lambda frame: frame[0]):
        if key is not None:
            yield key, np.stack([features for _, features in parts])


def _on_host(features: Array) -> np.ndarray:
    return np.asarray(features).astype(ml_dtypes.bfloat16)


def encode_all(
    encode: Callable[[np.ndarray], Array],
    media: Iterable[tuple[Key, np.ndarray]],
    total: int,
    title: str = "features",
    batch: int = BATCH,
) -> dict[Key, np.ndarray]:
    """Runs the encoder over all media and keeps their features; see `encoded`.

    Args:
      encode: u8[batch, Y, X, 3] → [batch, P, E], jitted.
      media: (key, u8[F, Y, X, 3]) pairs.
      total: how many pairs there are, for the progress bar.
      title: of the bar.
      batch: frames encoded at once.

    Returns:
      {key: bf16[F, P, E]}.
    """
    found: dict[Key, np.ndarray] = {}
    with progress.bar(title, total, unit="media") as bar:
        for key, features in encoded(encode, media, batch):
            found[key] = features
            bar.advance(len(found))
    return found


def _batches(
    media: Iterable[tuple[K, np.ndarray]], batch: int
) -> Iterator[tuple[list[K | None], np.ndarray]]:
    """Frames of all media in batches of one size; the last is padded and its padding has no key."""
    keys: list[K | None] = []
    frames: list[np.ndarray] = []
    for key, pixels in media:
        for frame in pixels:
            keys.append(key)
            frames.append(frame)
            if len(frames) == batch:
                yield keys, np.stack(frames)
                keys, frames = [], []
    if frames:
        padding = batch - len(frames)
        yield keys + [None] * padding, np.stack(frames + [frames[-1]] * padding)


def feature_shape(c: Any) -> tuple[int, int]:
    """(P, E) of a frame's features."""
    vision = assemble.vision_config(c)
    return vision.features(c.data.image_size or c.model.vision.image_size), vision.width


def dependencies(c: Any, stage: assemble.Stage, vision: Params) -> dict[str, Any]:
    """All that features depend on but the media themselves, as JSON.

    Args:
      c: the finished config.
      stage: the Flamingo stage.
      vision: its encoder's parameters.

    Returns:
      encoder {weights, dtype, config}, shape, image_size, resize, datasets {name: {frames,
      versions}}; seed and augment, None where no dataset has augmented versions.
    """
    config = dataclasses.asdict(assemble.vision_config(c).identity())
    specs = [spec for spec in stage.datasets.values() if spec.media]
    drawn = any(spec.versions for spec in specs)
    plan = {
        "encoder": {
            "weights": fingerprint.digest(
                fingerprint.fingerprints(vision), fingerprint.signature(vision)
            ),
            "dtype": c.model.vision.dtype,
            "config": {name: value for name, value in config.items() if value is not None},
        },
        "shape": feature_shape(c),
        "dtype": "bfloat16",
        "image_size": specs[0].image_size,
        "resize": specs[0].resize,
        "seed": c.seed if drawn else None,
        "augment": dataclasses.asdict(specs[0].augment) if drawn else None,
        "datasets": {
            spec.name: {"frames": spec.frames, "versions": spec.versions} for spec in specs
        },
    }
    return layout.plain(plan)


def check_dependencies(folder: str, plan: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares what a folder's features were made with and what this run would make them with.

    Args:
      folder: its name, for errors.
      plan: the folder's.
      wanted: `dependencies` of the run; datasets that only the folder has do not matter.

    Raises:
      InputError: naming the first field that differs, and both values.
    """
    old = {name: plan.get(name) for name in wanted}
    rows = {name: plan["datasets"].get(name) for name in wanted["datasets"]}
    for name, row in rows.items():
        if row is None:
            have = ", ".join(sorted(plan["datasets"]))
            raise InputError(
                f"config.data.features={folder!r} has no dataset {name!r}, only {have}; prepare "
                "the features of this config into another folder"
            )
    fields = {"frames", "versions"}
    old["datasets"] = {
        name: {field: row[field] for field in row.keys() & fields} for name, row in rows.items()
    }
    if not any(row["versions"] for row in wanted["datasets"].values()):
        old |= {"seed": None, "augment": None}  # of datasets that this run has not
    for field, before, now in begun.changes(old, wanted):
        raise InputError(
            f"config.data.features={folder!r} was made with {field}={layout.short(before)} and "
            f"this run has {layout.short(now)}; set it back, or prepare features again into "
            "another folder"
        )


def statistics(c: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean and deviation that the features of config.data.features are standardised by.

    Returns:
      f32[E] each.

    Raises:
      InputError: if they are not standardised.
    """
    found = open_features(c.data.features).plan.get("statistics")
    if found is None:
        raise InputError(
            f"config.data.features={c.data.features!r} was made with "
            "encoder.config.standardise=false and config.model.vision.standardise is true; set "
            "it back, or prepare features again into another folder"
        )
    mean, deviation = (np.asarray(found[name], np.float32) for name in ("mean", "deviation"))
    return mean, deviation


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
