"""Shards of features, each written whole or not at all, and the index of all of them.

A shard holds so many media in the order in which they are met, all versions of each. Its account
is in place before the shard gets its name: a shard counts only if both are there and agree.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.featurefiles import layout
from flamingo_jax.data.prepare import manifest
from flamingo_jax.errors import InputError

LISTED = 20
"""So many media that could not be decoded are listed by name in a shard's account."""
SORTED_AT_ONCE = 1 << 22
"""Rows of the index that are in memory while it is made."""


class NewShard:
    """A shard while it is written; see `new_shard`."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = self.frames = self.media = 0
        self.after: tuple[int, ...] = ()
        self.rows: list[tuple[int, ...]] = []
        self.reasons: dict[str, int] = {}
        self.bad: collections.Counter[str] = collections.Counter()
        self.rejects: list[list[str]] = []
        self.account: dict[str, Any] = {}

    def add(self, key: tuple[int, int], data: int, features: np.ndarray) -> None:
        """Appends bf16[f, P, E] of a version of a medium; `data` is its `data_digest`."""
        raw = np.ascontiguousarray(features).view(np.uint8).reshape(-1).data
        frames = len(features)
        self.rows.append((*key, self.frames, frames << 32 | zlib.crc32(raw), data))
        self.frames += frames
        self.bytes += len(raw)
        self.sha256.update(raw)
        while raw:
            raw = raw[self._file.write(raw) :]

    def reject(self, key: tuple[int, int], data: int, name: str, error: BadRecord) -> None:
        """Records why a version of a medium has no features."""
        reason = self.reasons.setdefault(error.reason, len(self.reasons) + 1)
        self.rows.append((*key, self.frames, reason << 48, data))
        self.bad[error.reason] += 1
        if len(self.rejects) < LISTED:
            self.rejects.append([name, error.reason, error.detail])


@contextlib.contextmanager
def new_shard(folder: pathlib.Path, number: int, plan: str) -> Iterator[NewShard]:
    """Gives a shard to add media to; it counts once the block has ended, and not at all before.

    Args:
      folder: where it is to be.
      number: of the shard.
      plan: the sha256 of the folder's plan.

    Raises:
      OSError: if the folder cannot be written.
    """
    path = folder / layout.shard_name(number)
    path.unlink(missing_ok=True)  # a damaged one, or its new account would speak of the old file
    with manifest.replaced(path) as temporary:
        with open(temporary, "wb", buffering=0) as file:
            shard = NewShard(file)
            yield shard
        part = path.with_suffix(".npy")
        rows = np.array(shard.rows, np.uint64).reshape(-1, layout.COLUMNS).T
        with manifest.replaced(part) as draft, open(draft, "wb") as file:
            np.save(file, np.ascontiguousarray(rows[:, np.lexsort(rows[1::-1])]))
        account = {
            "plan": plan,
            "name": path.name,
            "after": list(shard.after),
            "media": shard.media,
            "versions": len(shard.rows),
            "frames": shard.frames,
            "bytes": shard.bytes,
            "sha256": shard.sha256.hexdigest(),
            "index_sha256": manifest.sha256_of(part),
            "reasons": list(shard.reasons),
            "bad": dict(shard.bad),
            "rejects": shard.rejects,
        }
        check = layout.digest(account)
        manifest.write(path.with_suffix(".json"), account | {"check": check})
        shard.account = account


def kept(folder: pathlib.Path, number: int, plan: str) -> dict[str, Any] | None:
    """The account of a shard that is whole and of this plan; None for any other."""
    path = folder / layout.shard_name(number)
    try:
        written = path.with_suffix(".json").read_bytes()
        found = json.loads(written)
        if written != manifest.canonical(found) or found.pop("check") != layout.digest(found):
            return None
        if (found["plan"], found["name"]) != (plan, path.name):
            return None
        if path.stat().st_size != found["bytes"] or manifest.sha256_of(path) != found["sha256"]:
            return None
        sound = manifest.sha256_of(path.with_suffix(".npy")) == found["index_sha256"]
        return found if sound else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def whole_shards(folder: pathlib.Path, plan: str) -> list[dict[str, Any]]:
    """The accounts of the shards that are whole, from the first to the one before a gap.

    What lies behind the gap is removed: which media it holds follows from the shards before it.
    """
    accounts = []
    while (account := kept(folder, len(accounts), plan)) is not None:
        accounts.append(account)
    for path in folder.glob("features-*[0-9].*"):
        if int(path.stem.removeprefix("features-")) >= len(accounts):
            path.unlink()
    return accounts


def finish(folder: pathlib.Path, plan: Mapping[str, Any], accounts: list[dict[str, Any]]) -> None:
    """Writes the index of all shards, and then the manifest.

    Raises:
      InputError: if no medium has features.
    """
    bad: collections.Counter[str] = collections.Counter()
    for account in accounts:
        bad.update(account["bad"])
    totals = {
        name: sum(account[name] for account in accounts) for name in ("media", "versions", "frames")
    }
    if not totals["frames"]:
        most = ", ".join(f"{count} times {reason}" for reason, count in bad.most_common(3))
        raise InputError(
            f"none of {totals['media']} media has features: {most or 'there are none'}"
        )
    reasons = sorted(bad)
    _write_index(folder, accounts, reasons)
    content = {
        "format": layout.FORMAT,
        "plan": plan,
        "counts": totals,
        "bytes": sum(account["bytes"] for account in accounts),
        "bad": bad,
        "reasons": reasons,
        "index_sha256": manifest.sha256_of(folder / layout.INDEX),
        "shards": [
            {name: account[name] for name in ("name", "frames", "bytes", "sha256")}
            for account in accounts
        ],
    }
    manifest.write(folder / layout.MANIFEST, content | {"check": layout.digest(content)})


def _write_index(
    folder: pathlib.Path, accounts: list[dict[str, Any]], reasons: Sequence[str]
) -> None:
    """Sorts the rows of all shards, as many at a time as share the first bits of their hashes."""
    count = sum(account["versions"] for account in accounts)
    firsts = list(itertools.accumulate((a["frames"] for a in accounts), initial=0))
    pieces = -(-count // SORTED_AT_ONCE)
    bounds = np.array([(piece << 64) // pieces for piece in range(1, pieces)], np.uint64)
    shift = np.uint64(48)
    with manifest.replaced(folder / layout.INDEX) as temporary:
        made = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint64, shape=(layout.COLUMNS, count)
        )
        done = 0
        for piece in range(pieces):
            found = []
            for account, first in zip(accounts, firsts, strict=False):
                rows = layout.part_rows(folder, account)
                cuts = [0, *np.searchsorted(rows[0], bounds), rows.shape[1]]
                rows = np.array(rows[:, cuts[piece] : cuts[piece + 1]])
                rows[2] += np.uint64(first)
                own = (0, *(reasons.index(reason) + 1 for reason in account["reasons"]))
                renamed = np.array(own, np.uint64)[(rows[3] >> shift).astype(np.int64)]
                rows[3] = renamed << shift | rows[3] & np.uint64((1 << 48) - 1)
                found.append(rows)
            rows = np.concatenate(found, axis=1)
            made[:, done : done + rows.shape[1]] = rows[:, np.lexsort(rows[1::-1])]
            done += rows.shape[1]
        made.flush()
