"""What a folder of prepared documents holds: `manifest.json`, written when all of it is there.

    {"format": 1, "schema": {…}, "plan": {source, split, filters, evaluation, shard_size, records},
     "counts": {records, documents, images, clips, characters}, "bytes": …,
     "dropped": {reason: documents}, "bad": {reason: documents}, "left_out": {reason: media},
     "shards": [{name, documents, bytes, sha256}, …]}

`plan.json` is written before the first shard and stays: a folder that has it without a manifest is
half prepared. Nothing here tells where, when or by how many workers a folder was made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from flamingo_jax.errors import InputError

MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT = 1
COUNTS = ("records", "documents", "images", "clips", "characters")
SUFFIX = ".array_record"
TEMPORARY = ".making-"
"""What names of files begin with that are not whole; nobody reads them."""
MAX_BYTES = 1 << 28  # of a manifest: a million shards

_NAME = re.compile(r"shard-[0-9]{5,}-of-[0-9]{5,}\.array_record")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file of documents; `bytes` and `sha256` are the file's."""

    name: str
    documents: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished folder.

    Attributes:
      folder: where it is.
      plan: what it was made of, and how.
      counts: records read, and documents, images, clips and characters kept.
      bytes: of all shards.
      dropped: documents that filters left out, by reason.
      bad: documents that could not be used, by reason.
      left_out: media left out of documents that were kept, by reason.
      shards: in the order of their documents.
    """

    folder: pathlib.Path
    plan: Mapping[str, Any]
    counts: Mapping[str, int]
    bytes: int
    dropped: Mapping[str, int]
    bad: Mapping[str, int]
    left_out: Mapping[str, int]
    shards: tuple[Shard, ...]

    @property
    def paths(self) -> list[str]:
        """The shards' files."""
        return [str(self.folder / shard.name) for shard in self.shards]


def shard_name(number: int, total: int) -> str:
    """The name of shard `number` of `total`; names sort as numbers do."""
    width = max(5, len(str(total)))
    return f"shard-{number:0{width}d}-of-{total:0{width}d}{SUFFIX}"


def read(folder: str | pathlib.Path, verify: bool = False) -> Manifest:
    """Reads a folder's manifest and looks whether its shards are there in their full length.

    Args:
      folder: of prepared documents.
      verify: are their sha256 checked as well? That reads all of them.

    Raises:
      InputError: if it is half prepared or no such folder, or a file is missing or damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise InputError(
                f"{str(folder)!r} is half prepared: it has no {MANIFEST}; run the same prepare "
                "again, which goes on where it stopped"
            )
        raise InputError(f"{str(folder)!r} has no {MANIFEST}; give a folder that prepare finished")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too many bytes")
        manifest = _parse(folder, json.loads(path.read_bytes().decode("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is damaged ({error!r}); prepare the folder again"
        ) from None
    for shard in manifest.shards:
        _check(folder / shard.name, shard, verify)
    return manifest


def _parse(folder: pathlib.Path, content: Any) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, not {FORMAT}")
    shards = tuple(
        Shard(
            _matching(_NAME, row["name"]),
            _whole(row["documents"]),
            _whole(row["bytes"]),
            _matching(_SHA256, row["sha256"]),
        )
        for row in content["shards"]
    )
    if not isinstance(content["plan"], dict):
        raise TypeError("its plan is no object")
    counts = _counted(content["counts"])
    for name in COUNTS:
        _whole(counts[name])
    manifest = Manifest(
        folder,
        content["plan"],
        counts,
        _whole(content["bytes"]),
        _counted(content["dropped"]),
        _counted(content["bad"]),
        _counted(content["left_out"]),
        shards,
    )
    documents = sum(shard.documents for shard in shards)
    if documents != manifest.counts["documents"]:
        raise ValueError(f"shards of {documents} documents, {manifest.counts['documents']} in all")
    return manifest


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} for {pattern.pattern}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} for a count")
    return value


def _counted(value: Any) -> dict[str, int]:
    return {name: _whole(count) for name, count in value.items()}


def _check(path: pathlib.Path, shard: Shard, verify: bool) -> None:
    try:
        sound = path.stat().st_size == shard.bytes
        sound = sound and (not verify or sha256_of(path) == shard.sha256)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} is missing ({error.strerror}); fetch it again, or run the same prepare"
        ) from error
    if not sound:
        raise InputError(
            f"{str(path)!r} is not as the manifest has it; fetch it again, or run the same prepare"
        )


def canonical(value: Any) -> bytes:
    """JSON that is the same for the same value."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def sha256_of(path: pathlib.Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside `path` to write; it becomes `path` when the block has ended.

    A kill leaves the old file or the new one, in its full length on the disk. Several processes,
    of several machines too, may write the same path: each has its own temporary name.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: pathlib.Path, value: Any) -> None:
    """Replaces a file by a value's canonical JSON; a kill leaves the old one or the new one."""
    with replaced(path) as temporary:
        temporary.write_bytes(canonical(value))


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
