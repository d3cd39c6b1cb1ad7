"""ArrayRecord files: raw records by their index, and the documents of prepared shards.

The package's data source takes "[0:10]" at the end of a path for a part of the file, opens missing
and truncated files as empty ones, and an empty reader has an empty record at every place; so its
reader is used here directly, and asked each time how many records it has. Every chunk of a file has
a check sum: what is read is what was written, or an error.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Sequence
from typing import Any

from flamingo_jax.data.document import Document
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import codec, files
from flamingo_jax.errors import InputError

# Compiled and without stubs: type checkers do not find it by an import statement.
_MODULE = importlib.import_module("array_record.python.array_record_module")
OPEN_SHARDS = 256  # at once, each a handle and the places of its records
_GROUPS = re.compile(r"group_size:(\d+)")


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of a shard that follow each other.

    Attributes:
      path: the shard, on a disk: the package that reads it knows no clouds.
      skip: how many records lie before the first.
      take: how many there are; None = all that are left.
    """

    path: str
    skip: int = 0
    take: int | None = None


class RawRecords:
    """The records of parts of ArrayRecord files, as bytes; safe to use from many threads."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Looks at every shard.

        Raises:
          InputError: if one is damaged, shorter than its part, or not made for random access.
        """
        self._parts = tuple(parts)
        counts = [_count(part) for part in self._parts]
        self._shards = files.ShardIndex([part.path for part in self._parts], counts)
        # Its reads do not share a position. One that falls out of the cache is closed when the
        # last thread is done with it.
        self._open = functools.lru_cache(maxsize=OPEN_SHARDS)(_open)

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, index: int) -> tuple[str, bytes]:
        """(key, bytes) of the record at `index`.

        Raises:
          BadRecord: if it cannot be read.
          IndexError: beyond the end.
        """
        number, place = self._shards.locate(index)
        part = self._parts[number]
        place += part.skip
        key = self._shards.key(number, place)
        try:
            reader = self._open(part.path)
            if place >= reader.num_records():  # none, of a file that is not sound
                raise BadRecord("damaged shard", f"{key}: it changed since it was opened")
            return key, reader.read([place])[0]
        except (RuntimeError, OSError) as error:
            raise BadRecord("damaged record", f"{key}: {error}") from error


class ArrayRecordReader:
    """The documents of prepared shards; `document.Source`."""

    def __init__(self, paths: Sequence[str]) -> None:
        shards = files.look(paths, "ArrayRecord", local=True)
        self._records = RawRecords([Part(shard.path) for shard in shards])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        """The document at `index`, files in the order given.

        Raises:
          BadRecord: if the record is damaged or no document.
          IndexError: beyond the end.
        """
        key, data = self._records.read(index)
        try:
            return codec.decode(data)
        except BadRecord as error:
            raise BadRecord(error.reason, f"{key}: {error}") from error


def open_array_records(paths: Sequence[str]) -> ArrayRecordReader:
    """Opens shards of documents as `codec.encode` writes them.

    Args:
      paths: the files; their documents follow each other in this order.

    Raises:
      InputError: if a file is missing, in a cloud, damaged, or not made for random access.
    """
    return ArrayRecordReader(paths)


def _open(path: str) -> Any:
    options = "readahead_buffer_size:0,max_parallelism:0"  # for random access
    return _MODULE.ArrayRecordReader(path, options, file_reader_buffer_size=1 << 15)


def _count(part: Part) -> int:
    """How many records a part has."""
    reader = _open(part.path)
    count = reader.num_records()
    if not reader.ok():
        raise InputError(
            f"{part.path!r} is no ArrayRecord file or a truncated one; "
            "fetch or prepare it again, or leave it out"
        )
    group = _GROUPS.search(reader.writer_options_string() or "")
    if group and group[1] != "1":
        raise InputError(
            f"{part.path!r} has its records in groups of {group[1]}, of which one cannot be "
            "read alone; write it again with the option 'group_size:1'"
        )
    left = count - part.skip
    if left < (part.take or 0):
        raise InputError(
            f"{part.path!r} has {count} records, {part.skip + (part.take or 0)} are needed; "
            "prepare it again"
        )
    return left if part.take is None else part.take
