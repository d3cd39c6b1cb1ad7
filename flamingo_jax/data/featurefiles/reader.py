"""A finished folder of features: what it holds, and the features of one medium by its key."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.featurefiles import layout
from flamingo_jax.data.prepare import manifest
from flamingo_jax.errors import InputError

OPEN_SHARDS = 256
MAX_BYTES = 1 << 28  # of a manifest
_NAME = re.compile(r"features-[0-9]{6,}\.bin")


@dataclasses.dataclass(frozen=True)
class Found:
    """A row of the index: the medium's first frame, its frames, why there are none, check sums."""

    first: int
    frames: int
    reason: int
    crc: int
    data: int


class FeatureFolder:
    """A finished folder; safe to use from many threads.

    Attributes:
      path: where it is.
      plan: what the features depend on.
      counts: media, versions of them, frames.
      bytes: of all features.
      bad: versions of media without features, by reason.
      shape: (P, E).
    """

    def __init__(self, path: pathlib.Path, content: Mapping[str, Any]) -> None:
        if content["format"] != layout.FORMAT:
            raise ValueError(f"format {content['format']!r}, not {layout.FORMAT}")
        self.path = path
        self.plan: Mapping[str, Any] = content["plan"]
        self.counts = {name: _whole(content["counts"][name]) for name in content["counts"]}
        self.bad = {str(reason): _whole(count) for reason, count in content["bad"].items()}
        self.bytes = _whole(content["bytes"])
        self.shape: tuple[int, int] = (_whole(self.plan["shape"][0]), _whole(self.plan["shape"][1]))
        self._reasons = ["", *map(str, content["reasons"])]
        self._frame = 2 * self.shape[0] * self.shape[1]
        frames = [_whole(row["frames"]) for row in content["shards"]]
        self._names = [str(row["name"]) for row in content["shards"]]
        for name, count, row in zip(self._names, frames, content["shards"], strict=True):
            if not _NAME.fullmatch(name) or row["bytes"] != count * self._frame:
                raise ValueError(f"a shard {name!r} of {row['bytes']!r} bytes")
        self._firsts = [0, *itertools.accumulate(frames)]
        self._handle = functools.lru_cache(maxsize=OPEN_SHARDS)(_open)
        _check_files(path, self._names, [count * self._frame for count in frames])
        if manifest.sha256_of(path / layout.INDEX) != content["index_sha256"]:
            raise ValueError(f"{layout.INDEX} is not that of the manifest")
        self._index = layout.mapped(path / layout.INDEX)

    @property
    def shards(self) -> int:
        """How many files of features there are."""
        return len(self._names)

    def find(self, key: tuple[int, int]) -> Found | None:
        """The row of a `key_of`, or None."""
        high, low = (np.uint64(half) for half in key)
        column = self._index[0]
        at = int(np.searchsorted(column, high))
        while at < len(column) and column[at] == high:
            if self._index[1, at] == low:
                first, packed, data = (int(value) for value in self._index[2:, at])
                return Found(first, packed >> 32 & 0xFFFF, packed >> 48, packed & 0xFFFFFFFF, data)
            at += 1
        return None

    def read(self, found: Found, name: str) -> np.ndarray:
        """bf16[f, P, E] of a row, read-only; `name` is told of in errors.

        Raises:
          BadRecord: if the medium could not be decoded, or its features are damaged.
        """
        if found.reason:
            reason = self._reasons[min(found.reason, len(self._reasons) - 1)]
            raise BadRecord(reason, name)
        shard = bisect.bisect_right(self._firsts, found.first) - 1
        size, place = found.frames * self._frame, (found.first - self._firsts[shard]) * self._frame
        where = self._names[min(shard, self.shards - 1)]
        try:
            file = self._handle(self.path / where)  # held by its name, or it may be closed
            data = os.pread(file.fileno(), size, place)
        except OSError as error:
            raise BadRecord("damaged features", f"{name}: {where}: {error.strerror}") from error
        if len(data) != size or zlib.crc32(data) != found.crc:
            raise BadRecord("damaged features", f"{name}: {where} at byte {place}")
        return np.frombuffer(data, ml_dtypes.bfloat16).reshape(found.frames, *self.shape)

    def table(self, dataset: str, split: str) -> FeatureFileTable:
        """The features of a dataset's split."""
        return FeatureFileTable(self, dataset, self.plan["datasets"][dataset]["group"], split)


class FeatureFileTable:
    """The features of one dataset's split; `data.rows.Features`."""

    def __init__(self, folder: FeatureFolder, dataset: str, group: int, split: str) -> None:
        self._folder, self._dataset, self._group, self._split = folder, dataset, group, split
        self.shape = folder.shape

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray:
        """bf16[f, P, E] of (medium's key, version), read-only.

        Raises:
          BadRecord: if the medium could not be decoded, or its features are damaged.
          InputError: if the folder does not know the medium.
        """
        return self._folder.read(self._find(*key), key[0])

    def _find(self, key: str, version: int) -> Found:
        found = self._folder.find(layout.key_of(self._group, self._split, key, version))
        if found is None:
            raise InputError(
                f"config.data.features={str(self._folder.path)!r} has no features of the medium "
                f"{key!r}, version {version}, of the {self._split} split of dataset "
                f"{self._dataset!r}: the dataset has changed since; prepare its features again "
                "into another folder"
            )
        return found

    def check(self, media: Iterable[Medium], version: int) -> None:
        """Compares some media with those that were encoded.

        Raises:
          InputError: if one is absent, or has the key of one that was encoded and other data.
        """
        for medium in media:
            if self._find(medium.key, version).data != layout.data_digest(medium):
                raise InputError(
                    f"config.data.features={str(self._folder.path)!r}: the medium {medium.key!r} "
                    f"of dataset {self._dataset!r} is not the one that was encoded, its data "
                    "differ; give the dataset's own path, or prepare its features again into "
                    "another folder"
                )


def open_features(folder: str | pathlib.Path) -> FeatureFolder:
    """Opens a finished folder: its manifest and its index are verified, its shards' lengths too.

    Raises:
      InputError: if it is half prepared or no such folder, or a file is missing or damaged.
    """
    path = pathlib.Path(folder).expanduser()
    file = path / layout.MANIFEST
    if not file.is_file():
        if (path / manifest.PLAN).is_file():
            raise InputError(
                f"{str(folder)!r} is half prepared: it has no {layout.MANIFEST}; run the same "
                "prepare features again, which goes on where it stopped"
            )
        raise InputError(
            f"{str(folder)!r} has no {layout.MANIFEST}; give a folder that prepare features "
            "finished"
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("too many bytes")
        written = file.read_bytes()
        content = json.loads(written.decode("utf-8"))
        if written != manifest.canonical(content) or content.pop("check") != layout.digest(content):
            raise ValueError(f"{layout.MANIFEST} is not what was written")
        return FeatureFolder(path, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{str(folder)!r} is damaged ({error!r}); fetch it again, or run the same prepare "
            "features"
        ) from error


def _open(path: pathlib.Path) -> io.FileIO:
    # Closed when the last thread is done with it, also if it falls out of the cache before.
    return open(path, "rb", buffering=0)


def _check_files(folder: pathlib.Path, names: list[str], sizes: list[int]) -> None:
    for name, size in zip(names, sizes, strict=True):
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} has not the length that the manifest gives it")


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} for a count")
    return value
