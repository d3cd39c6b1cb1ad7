"""Files: the shards that a user names, and the files that a record names.

The key of a record is "SHARD/PLACE", whichever reader it comes from. SHARD is the shard's path
below the folder that holds all shards ("0003.parquet", or "train/0003.parquet" where another lies
in "extra"), so that keys do not change when the folder moves or comes from a cloud. PLACE is the
record's number in its shard, in five digits or more: "0003.parquet/00012"; of a sample in a tar it
is the sample's own key.
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import itertools
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import paths
from flamingo_jax.errors import InputError

MAX_BYTES = 1 << 30  # of one file that a record names: a long clip
_THREADS = 8  # that look at shards: of a cloud each look is a journey
_DRIVE = re.compile(r"[A-Za-z]:")
A = TypeVar("A")
B = TypeVar("B")


class ShardIndex:
    """Which shard a record lies in, and what the record is called.

    Attributes:
      names: of the shards, see `shard_names`.
    """

    def __init__(self, shards: Sequence[str], counts: Sequence[int]) -> None:
        """Takes the shards' paths, in their order, and how many records each has."""
        self.names = shard_names(shards)
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, place in it) of a record; IndexError outside 0 ≤ index < len."""
        return locate(self._ends, index)

    def key(self, shard: int, place: int) -> str:
        """The key of a record: "shard-0003.parquet/00012"."""
        return f"{self.names[shard]}/{place:05d}"


def shard_names(shards: Sequence[str]) -> tuple[str, ...]:
    """The shards' paths below the folder that holds them all, with "/" between their parts."""
    if not shards:
        return ()
    parts = [_whole(shard).split("/") for shard in shards]
    first, last = min(parts), max(parts)
    common = 0
    while common < min(len(first), len(last)) - 1 and first[common] == last[common]:
        common += 1
    return tuple("/".join(part[common:]) for part in parts)


def _whole(shard: str) -> str:
    return shard if paths.is_url(shard) else pathlib.Path(os.path.abspath(shard)).as_posix()


def locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """(part, place in it) of the element `index` of parts that follow each other.

    Args:
      ends: how many elements there are up to the end of each part.
      index: 0 ≤ index < ends[-1]; IndexError outside.
    """
    count = ends[-1] if ends else 0
    if not 0 <= index < count:
        raise IndexError(f"record {index} of {count}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def look(shards: Sequence[str], kind: str, local: bool = False) -> list[paths.Shard]:
    """The shards of a reader, after a look at each.

    Args:
      shards: paths and URLs of files.
      kind: what they should be, for messages: "Parquet".
      local: are they read from disks alone?

    Raises:
      InputError: if there are none, one is missing or no file, or one is named twice.
    """
    if not shards:
        raise InputError(f"there are no {kind} files to read; check the dataset's path")
    for shard in shards if local else ():
        paths.refuse_url(shard, f"{kind} files")
    counts = collections.Counter(map(_whole, shards))
    for shard, count in counts.items():
        if count > 1:
            raise InputError(f"{kind} file {shard!r} is named twice; name it once")
    found = [paths.Shard(shard) for shard in shards]
    at_once(paths.Shard.size, found)
    return found


def at_once(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """What a function gives for each of the items, in their order, by some threads."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


class FolderFiles:
    """The files of a folder by their names in it; `record.Files`.

    A name comes from data that anybody may have written. One that is absolute, has "..", a drive
    letter, a backslash or a NUL, or leads out of the folder by a link, is refused.
    """

    def __init__(self, root: str, limit: int = MAX_BYTES) -> None:
        """Takes the folder and the largest size of a file in bytes.

        Raises:
          InputError: if there is no such folder.
        """
        if not os.path.isdir(root):
            raise InputError(f"there is no folder {root!r}; check the dataset's path to its files")
        self._root = pathlib.Path(root).resolve()
        self._limit = limit

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          BadRecord: if there is no such file, it is too large, or the name leaves the folder.
        """
        path = self._resolve(name)
        # A pipe would wait for ever without O_NONBLOCK; what has become a link since it was
        # resolved is not followed.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadRecord("missing file", f"{name!r} is not a file")
                data = file.read(self._limit + 1) if status.st_size <= self._limit else None
        except OSError as error:
            raise BadRecord("missing file", f"{name!r}: {error.strerror}") from error
        if data is None or len(data) > self._limit:
            raise BadRecord("file too large", f"{name!r} has more than {self._limit} bytes")
        return data

    def _resolve(self, name: str) -> pathlib.Path:
        checked_name(name)
        try:
            path = (self._root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # loops of links, lone surrogates
            raise BadRecord("missing file", f"{name!r}: {error}") from error
        if not path.is_relative_to(self._root):
            raise BadRecord("unsafe file name", f"{name!r} leads out of the folder")
        return path


def checked_name(name: str) -> str:
    """A name that stays in the folder it is looked up in, links aside.

    Raises:
      BadRecord: for one that is absolute, or has "..", a drive letter, a backslash or a NUL.
    """
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise BadRecord("unsafe file name", repr(name))
    if "\\" in name or "\0" in name or _DRIVE.match(name):
        raise BadRecord("unsafe file name", repr(name))
    return name
