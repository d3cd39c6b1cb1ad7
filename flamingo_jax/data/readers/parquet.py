"""Parquet files by pyarrow: any row by its index, its row group decoded once and kept for a while.

A row group is the least that can be decoded, so reading in a shuffled order decodes one for almost
every row: files meant for it have small row groups (`prepare` writes ArrayRecord, which has none).
Pages carry checksums only where the writer was asked for them; they are verified then. Without
them a flipped bit in an uncompressed page is a flipped bit in the row.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import files, parquetfooter
from flamingo_jax.data.readers.paths import Shard, is_url
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

CACHE_BYTES = 1 << 28  # of decoded row groups
MAX_GROUP_BYTES = 1 << 31  # of one decoded row group
MAX_GROUP_VALUES = 1 << 27  # of one column of a row group, elements of lists included
_BATCH_ROWS = 64  # decoded between two looks at how much memory it takes
_MAX_STRING, _MAX_LIST = 1 << 27, 1 << 22  # of a footer


class ParquetReader:
    """The rows of Parquet files; `record.Reader`.

    A field is a plain Python value: lists, dicts for structs and maps, str, bytes, None. An image
    of Hugging Face's datasets stays the dict {"bytes": …, "path": …}.

    Attributes:
      names: the columns that every file has.
    """

    def __init__(
        self, paths: Sequence[str], columns: Sequence[str] = (), cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._columns = list(dict.fromkeys(columns))
        # (shard, row group in it, its rows, the most values of a column of it)
        self._groups: list[tuple[int, int, int, int]] = []
        self._files = files.look(paths, "Parquet")
        counts = []
        found = files.at_once(lambda shard: _rows_of_groups(shard, self._columns), self._files)
        self.names = tuple(name for name in found[0][1] if all(name in n for _, n in found))
        for number, (rows, _) in enumerate(found):
            self._groups += [(number, group, *sizes) for group, sizes in enumerate(rows)]
            counts.append(sum(count for count, _ in rows))
        self._shards = files.ShardIndex(paths, counts)
        self._ends = list(itertools.accumulate(count for _, _, count, _ in self._groups))
        self._cache = _Cache(cache_bytes)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        """The row at `index`, files in the order given.

        Raises:
          BadRecord: if its row group or the row itself cannot be decoded.
          IndexError: beyond the end.
        """
        key = self._shards.key(*self._shards.locate(index))
        group, place = files.locate(self._ends, index)
        table = self._cache.get(group, lambda: self._decode(group))
        try:
            fields = table.slice(place, 1).to_pylist(maps_as_pydicts="strict")[0]
        except Exception as error:  # text that is not UTF-8, a key twice in a map, dates in year 0
            raise BadRecord("damaged record", f"{key}: {error}") from error
        return Record(key, fields)

    def _decode(self, number: int) -> Any:
        """A row group as a pyarrow.Table of the wanted columns."""
        import pyarrow

        place, group, rows, values = self._groups[number]
        shard, name = self._files[place], f"{self._shards.names[place]} group {group}"
        try:
            now = Shard(shard.path)
            if (now.size(), now.stamp()) != (shard.size(), shard.stamp()):
                raise BadRecord("shard has changed", f"{name}: since it was opened")
            # A handle for each reading: pyarrow's own has one position for all threads.
            with _open(shard) as file:
                if values > MAX_GROUP_VALUES:
                    raise BadRecord("row group too large", f"{name}: {values} values")
                batches, size = [], 0
                # In batches, as a dictionary of one long text unfolds to any size.
                for batch in file.iter_batches(
                    _BATCH_ROWS, [group], columns=self._columns or None, use_threads=False
                ):
                    size += batch.nbytes
                    if size > MAX_GROUP_BYTES:
                        raise BadRecord("row group too large", f"{name}: {size} bytes and more")
                    batches.append(batch)
                table = pyarrow.Table.from_batches(batches)  # of a group that has rows
        except BadRecord:
            raise
        except Exception as error:  # OSError, ArrowInvalid, ArrowNotImplementedError, MemoryError
            raise BadRecord("damaged row group", f"{name}: {error}") from error
        if table.num_rows != rows:
            raise BadRecord("damaged row group", f"{name}: {table.num_rows} rows of {rows}")
        return table


def open_parquet(paths: Sequence[str], columns: Sequence[str] = ()) -> ParquetReader:
    """Opens Parquet files.

    Args:
      paths: the files; their rows follow each other in this order.
      columns: those that a record shall have, all if none are named. Others are not decoded.

    Raises:
      InputError: if pyarrow is missing, a file is missing, its footer is damaged, or it has not
        the columns.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(
            "reading Parquet needs pyarrow; install flamingo_jax[data] (pip install pyarrow)"
        ) from error
    return ParquetReader(paths, columns)


class _Handle(io.RawIOBase):
    """A remote shard as a file, for one thread; each read is one of the shard's."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self._at = shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._shard.size()}[whence]
        if start + offset < 0:
            raise OSError(f"{self._shard.path!r} has no place {start + offset}")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._shard.size() - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._shard.read(self._at, wanted) if wanted else b""
        self._at += wanted
        return data


def _open(shard: Shard) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(
        _Handle(shard) if is_url(shard.path) else shard.path,
        pre_buffer=False,
        page_checksum_verification=True,
        thrift_string_size_limit=_MAX_STRING,
        thrift_container_size_limit=_MAX_LIST,
    )


def _rows_of_groups(shard: Shard, columns: list[str]) -> tuple[list[tuple[int, int]], list[str]]:
    """((rows, most values of a column) of each row group of a file, the columns that are read)."""
    path = shard.path
    try:
        with _open(shard) as file:
            about = file.metadata
            rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            names, total = file.schema_arrow.names, about.num_rows
        values = parquetfooter.most_values(shard)
    except Exception as error:  # OSError, ArrowInvalid, and what else a footer can be broken in
        raise InputError(
            f"{path!r} cannot be read as Parquet ({error}); fetch it again or leave it out"
        ) from error
    if min(rows, default=0) < 0 or sum(rows) != total or len(values) != len(rows):
        raise InputError(f"{path!r} has a damaged footer; fetch it again or leave it out")
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(
            f"{path!r} has no column {missing[0]!r}; it has {', '.join(map(str, names))}"
        )
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice and (not columns or set(twice) & set(columns)):
        raise InputError(f"{path!r} has two columns {twice[0]!r}; rename one of them")
    return list(zip(rows, values, strict=True)), columns or names


class _Cache:
    """The row groups used last, up to a number of bytes; the very last one however large."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._size = 0
        self._sizes: dict[int, int] = {}
        self._tables: collections.OrderedDict[int, concurrent.futures.Future[Any]]
        self._tables = collections.OrderedDict()

    def get(self, number: int, decode: Callable[[], Any]) -> Any:
        """The table `number`: decoded here, by a thread that asked at the same time, or before."""
        with self._lock:
            future = self._tables.get(number)
            mine = future is None
            if future is None:
                future = self._tables[number] = concurrent.futures.Future()
            self._tables.move_to_end(number)
        if not mine:
            return future.result()
        try:
            table = decode()
        except BaseException as error:
            with self._lock:
                del self._tables[number]
            future.set_exception(error)
            raise
        with self._lock:
            self._sizes[number] = table.nbytes
            self._size += table.nbytes
            for other in [known for known in self._tables if known in self._sizes]:
                if self._size <= self._limit or other == number:
                    break
                del self._tables[other]
                self._size -= self._sizes.pop(other)
        future.set_result(table)
        return table
