"""Names, keys and digests of a folder of features."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flamingo_jax.data.document import Medium
from flamingo_jax.data.prepare import manifest

MANIFEST = "features.json"
INDEX = "index.npy"
FORMAT = 1
COLUMNS = 5
_HEAD = 1 << 20  # of a file that a digest takes, with its length


def key_of(group: int, split: str, key: str, version: int) -> tuple[int, int]:
    """The hash that a medium's version is found by, as two halves of 64 bits.

    `group` keeps apart media of different origins that have the same key.
    """
    text = f"{group}\0{split}\0{version}\0{key}".encode("utf-8", "surrogatepass")
    hashed = hashlib.blake2b(text, digest_size=16).digest()
    return int.from_bytes(hashed[:8], "little"), int.from_bytes(hashed[8:], "little")


def data_digest(medium: Medium) -> int:
    """64 bits of a medium's data, not decoded: of a file its beginning and its length.

    0 where the file cannot be read.
    """
    data = medium.data
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).tobytes()
    elif isinstance(data, str):
        try:
            with open(data, "rb") as file:
                head = file.read(_HEAD)
                data = head + os.fstat(file.fileno()).st_size.to_bytes(8, "little")
        except (OSError, ValueError):
            return 0
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def shard_name(number: int) -> str:
    """The name of a shard's features."""
    return f"features-{number:06d}.bin"


def part_rows(folder: pathlib.Path, account: Mapping[str, Any]) -> np.ndarray:
    """A shard's rows of the index, u64[5, rows], in a map of the file."""
    return mapped((folder / account["name"]).with_suffix(".npy"))


def mapped(path: pathlib.Path) -> np.ndarray:
    """Rows of an index, u64[5, rows], in a map of a file; ValueError if it holds others."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype != np.uint64 or rows.ndim != 2 or rows.shape[0] != COLUMNS:
        raise ValueError(f"{path.name} holds {rows.dtype}{list(rows.shape)}")
    return rows


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def digest(value: Mapping[str, Any]) -> str:
    """The sha256 of a value's JSON."""
    return hashlib.sha256(manifest.canonical(value)).hexdigest()


def short(value: Any) -> str:
    """A plan's value as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
