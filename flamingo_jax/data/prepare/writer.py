"""One shard of prepared documents: written whole or not at all, and kept if it is there.

Shard k holds what is kept of the records [k·n, (k+1)·n) of its source, so that its bytes depend on
nothing else. Beside it lies its account, `shard-….json`: counts, the file's sha256, the first
records that were not used. The account is in place before the shard gets its name: a shard
counts only if both are there and agree.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from flamingo_jax.data.document import Document, Medium, Source
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.prepare import duplicates, filters, manifest
from flamingo_jax.data.readers import codec

# Compiled and without stubs: type checkers do not find it by an import statement.
_MODULE = importlib.import_module("array_record.python.array_record_module")
OPTIONS = "group_size:1,zstd:3,max_parallelism:1"
"""A record a group, so that one can be read alone; the file holds these words, and no time or
number of processors: the same records make the same bytes."""
LISTED = 20
"""So many records that were not used are listed by name in a shard's account."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a source is cut into shards.

    Attributes:
      folder: where they are.
      records: of the source.
      shard_size: n, records of the source a shard.
      plan: the sha256 of the plan; shards of another are not kept.
    """

    folder: pathlib.Path
    records: int
    shard_size: int
    plan: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.records // self.shard_size)

    def path(self, number: int) -> pathlib.Path:
        """The file of a shard."""
        return self.folder / manifest.shard_name(number, self.shards)

    def range(self, number: int) -> range:
        """The records of the source that a shard is made of."""
        begin = number * self.shard_size
        return range(begin, min(begin + self.shard_size, self.records))


class _Account:
    """Counts while a shard is written."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(manifest.COUNTS, 0)
        self.dropped: collections.Counter[str] = collections.Counter()
        self.bad: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.rejects: list[list[Any]] = []

    def keep(self, filtered: filters.Filtered) -> None:
        """Counts a document that is stored."""
        self.counts["documents"] += 1
        for item in filtered.document.items:
            if isinstance(item, Medium):
                self.counts["clips" if item.kind == "clip" else "images"] += 1
            else:
                self.counts["characters"] += len(item)
        self.left_out.update(filtered.left_out)

    def reject(self, index: int, error: BadRecord) -> None:
        """Counts a record that is not."""
        (self.dropped if isinstance(error, Dropped) else self.bad)[error.reason] += 1
        if len(self.rejects) < LISTED:
            self.rejects.append([index, error.reason, error.detail])


def make_record(
    document: Document, options: filters.FilterOptions, index: duplicates.Index | None = None
) -> tuple[bytes, filters.Filtered]:
    """A document as it is stored, with what was kept of it.

    Raises:
      BadRecord: if it is not kept (`Dropped`) or cannot be used.
    """
    filtered = filters.apply(document, options, index)
    return codec.encode(filtered.document), filtered


def make_shard(
    source: Source,
    layout: Layout,
    number: int,
    options: filters.FilterOptions,
    index: duplicates.Index | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Writes a shard, unless it is there already.

    Args:
      source: of the documents.
      layout: which of them, and where to.
      number: of the shard.
      options: what is kept.
      index: of evaluation images.
      check: called before each record; what it raises ends the writing.

    Returns:
      The shard's account.

    Raises:
      OSError: if the folder cannot be written.
    """
    if (there := kept(layout, number)) is not None:
        return there
    account = _Account()
    path = layout.path(number)
    path.unlink(missing_ok=True)  # a damaged one, or its new account would speak of the old file
    with manifest.replaced(path) as temporary:
        with _opened(temporary) as write:
            for place in layout.range(number):
                check()
                account.counts["records"] += 1
                try:
                    data, filtered = make_record(source[place], options, index)
                except BadRecord as error:
                    account.reject(place, error)
                    continue
                write(data)
                account.keep(filtered)
        found = {
            "plan": layout.plan,
            "name": path.name,
            "bytes": temporary.stat().st_size,
            "sha256": manifest.sha256_of(temporary),
            "counts": account.counts,
            "dropped": dict(account.dropped),
            "bad": dict(account.bad),
            "left_out": dict(account.left_out),
            "rejects": account.rejects,
        }
        found["check"] = _digest(found)
        manifest.write(path.with_suffix(".json"), found)
    return found


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Gives the function that adds a record to a new file; the file is closed after the block."""

    def told(step: Callable[..., Any], *values: Any) -> Any:
        try:
            return step(*values)
        except RuntimeError as error:  # all that the library raises
            raise OSError(f"{path}: {error}") from error

    writer = told(_MODULE.ArrayRecordWriter, str(path), OPTIONS)
    try:
        yield lambda data: told(writer.write, data)
    except BaseException:
        with contextlib.suppress(OSError):
            told(writer.close)
        raise
    told(writer.close)


def _digest(account: dict[str, Any]) -> str:
    return hashlib.sha256(manifest.canonical(account)).hexdigest()


def kept(layout: Layout, number: int) -> dict[str, Any] | None:
    """The account of a shard that is whole and of this plan; None for any other."""
    path = layout.path(number)
    try:
        found = read_account(path.with_suffix(".json").read_bytes(), layout, number)
        if found is None or path.stat().st_size != found["bytes"]:
            return None
        return found if manifest.sha256_of(path) == found["sha256"] else None
    except OSError:
        return None


def read_account(written: bytes, layout: Layout, number: int) -> dict[str, Any] | None:
    """A shard's account as it was written; None if it is damaged or of another plan."""
    try:
        found = json.loads(written)
        if written != manifest.canonical(found) or found.pop("check") != _digest(found):
            return None
        if (found["plan"], found["name"]) != (layout.plan, layout.path(number).name):
            return None
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
