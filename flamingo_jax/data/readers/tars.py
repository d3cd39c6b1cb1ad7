"""WebDataset tars: random access to samples and files, by an index that is made once a shard.

A sample is a run of members that share a key: the name up to the first dot of its last component.
What follows that dot, in lower case, is the field: "a/12.seg.png" is "seg.png" of "a/12". As in
WebDataset, directories, names without a dot or with nothing before it, and `__meta__` are passed
over, and a key that comes back later in a shard is another sample ("a/12.1": no key has a dot).

Members' data come from byte ranges; no member is extracted, followed or decompressed. A sample of
which a member is a link, a device, sparse, or named outside its folder, and one that has a field
twice, is a BadRecord. Of a shard that is cut or damaged, what comes before stays readable; its last
sample, of which nobody knows whether it is whole, is a BadRecord (also where a shard merely lacks
the blocks of zeros at its end), and `TarReader.damage` names such shards.

The index (`tarindex`) is kept (`kept`) beside its shard or in a cache.
"""

from __future__ import annotations

import concurrent.futures
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import compression, files, kept, paths, tarindex
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

MAX_BYTES = 1 << 30  # of a sample's members together
Progress = Callable[[int, int], None]
"""(shards done, shards in all) → None; called in the thread that opens."""


class _Tar:
    """A shard and its index."""

    def __init__(self, shard: paths.Shard, label: str, cache: str) -> None:
        self.shard, self.label = shard, label
        self._index = kept.Index(
            shard,
            tarindex.FORM,
            "samples",
            lambda: tarindex.build(shard),
            tarindex.Index,
            cache,
        )
        self.samples = self._index.count
        self.fault = str(self._index.facts.get("fault", ""))

    def index(self) -> tarindex.Index:
        return self._index.get()

    def sample(self, place: int, max_bytes: int) -> Record:
        index = self.index()
        first, last = int(index.starts[place]), int(index.starts[place + 1])
        key, members = "", {}  # field → member
        for member in range(first, last):
            name = index.name(member)
            if split := tarindex.split_name(name):
                if members and split[0] != key:  # by an index that is not ours
                    raise BadRecord("shard has changed", f"{self.label}/{name}")
                key, field = split
                if index.kinds[member] or field in members:
                    reason = tarindex.KINDS[index.kinds[member]] or "field twice in a sample"
                    raise BadRecord(reason, f"{self.label}/{name}")
                members[field] = member
        if not members:
            raise BadRecord("shard has changed", f"{self.label}, sample {place}")
        if repeat := int(index.repeats[place]):
            key += f".{repeat}"
        if self.fault and place == self.samples - 1:
            raise BadRecord(self.fault, f"{self.label}/{key} may not be whole")
        wanted = sum(int(index.sizes[member]) for member in members.values())
        if wanted > max_bytes:
            raise BadRecord("too many bytes in a sample", f"{self.label}/{key}: {wanted:,}")
        final = max(members.values())
        span = int(index.offsets[final]) + int(index.sizes[final]) - int(index.offsets[first])
        span += tarindex.BLOCK
        # One read for all, unless much lies between that is none of the sample's.
        window = tarindex.Window(self.shard, span if span <= 2 * wanted + (1 << 16) else 0)
        fields = {field: index.data(window, member) for field, member in members.items()}
        return Record(f"{self.label}/{key}", fields)


class TarReader:
    """Samples of any number of tars (`record.Reader`); see `open_tars`."""

    def __init__(self, tars: Sequence[_Tar], max_bytes: int = MAX_BYTES) -> None:
        self._tars = tars
        self._max_bytes = max_bytes
        self._shards = files.ShardIndex(
            [tar.shard.path for tar in tars], [tar.samples for tar in tars]
        )

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        shard, place = self._shards.locate(index)
        return self._tars[shard].sample(place, self._max_bytes)

    def damage(self) -> dict[str, str]:
        """{shard: what ails it} of shards that are cut or damaged: samples may be missing."""
        return {tar.shard.path: tar.fault for tar in self._tars if tar.fault}

    def files(self) -> TarFiles:
        """The same tars' members by name."""
        return TarFiles(self._tars, self._max_bytes)


class TarFiles:
    """Members of tars by their full name (`record.Files`), "a/1.jpg" or "shard-0.tar/a/1.jpg".

    A name that several shards have needs its shard before it; within a shard the last one counts,
    as when a tar is extracted.
    """

    def __init__(self, tars: Sequence[_Tar], max_bytes: int = MAX_BYTES) -> None:
        self._tars = tars
        self._max_bytes = max_bytes
        self._labels = {tar.label: tar for tar in tars}
        self._lock = threading.Lock()
        self._table: tuple[np.ndarray, np.ndarray] | None = None

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
          BadRecord: if there is none, it is no plain file, is too large, or was cut.
        """
        if not isinstance(name, str):
            raise BadRecord("no such file", repr(name))
        tar, member = self._find(name)
        index = tar.index()
        if kind := int(index.kinds[member]):
            raise BadRecord(tarindex.KINDS[kind], name)
        if index.sizes[member] > self._max_bytes:
            raise BadRecord("too many bytes in a file", name)
        return index.data(
            tarindex.Window(tar.shard, int(index.sizes[member]) + tarindex.BLOCK), member
        )

    def _find(self, name: str) -> tuple[_Tar, int]:
        shard, slash, rest = name.partition("/")
        while slash:
            if shard in self._labels and (tar := self._labels[shard]):
                if (member := _last(tar.index(), tarindex.plain_name(rest))) is not None:
                    return tar, member
            more, slash, rest = rest.partition("/")
            shard += "/" + more
        plain = tarindex.plain_name(name)
        hashes, tars = self._hashes()
        check = np.uint32(_hash(plain))
        first, end = (int(np.searchsorted(hashes, check, side)) for side in ("left", "right"))
        candidates = (self._tars[number] for number in np.unique(tars[first:end]))
        found = [
            (tar, member) for tar in candidates if (member := _last(tar.index(), plain)) is not None
        ]
        if len(found) > 1:
            raise BadRecord("file in several shards", f"{name}; say which: {found[0][0].label}/…")
        if not found:
            raise BadRecord("no such file", name)
        return found[0]

    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all names, ascending, and the places of the shards that have them."""
        with self._lock:
            if self._table is None:
                each = [tar.index().hashes for tar in self._tars]
                hashes = np.concatenate(each)
                order = np.argsort(hashes, kind="stable")
                numbers = np.repeat(np.arange(len(each), dtype=np.uint32), [len(h) for h in each])
                self._table = hashes[order], numbers[order]
            return self._table


def _hash(name: str) -> int:
    return zlib.crc32(name.encode(errors="backslashreplace"))


def _last(index: tarindex.Index, name: str) -> int | None:
    """The last member of that name."""
    for member in np.flatnonzero(index.hashes == _hash(name))[::-1]:
        if index.name(int(member)) == name:
            return int(member)
    return None


def open_tars(
    pattern: str | Sequence[str],
    cache: str = "",
    max_bytes: int = MAX_BYTES,
    threads: int = 8,
    progress: Progress | None = None,
) -> TarReader:
    """Opens WebDataset tars, indexing those that were not indexed before.

    Args:
      pattern: see `paths.expand`; folders and globs give their files in .tar. Or the shards.
      cache: a folder for indexes, which lie beside their shards without it; see `kept.Kept`.
      max_bytes: a sample of more than this in all is a BadRecord.
      threads: so many shards are opened at once.
      progress: told of each shard that is open.

    Raises:
      InputError: if a shard is missing, compressed or no tar, or none has a sample.
    """
    reader = TarReader(_open(pattern, cache, threads, progress), max_bytes)
    if not len(reader):
        where = repr(pattern if isinstance(pattern, str) else pattern[0])
        raise InputError(
            f"the tars of {where} hold no samples; members need names like 00012.jpg, 00012.txt"
        )
    return reader


def open_tar_files(
    pattern: str | Sequence[str],
    cache: str = "",
    max_bytes: int = MAX_BYTES,
    threads: int = 8,
    progress: Progress | None = None,
) -> TarFiles:
    """Opens tars of files that records elsewhere name; arguments and errors as of `open_tars`."""
    return TarFiles(_open(pattern, cache, threads, progress), max_bytes)


def _open(
    pattern: str | Sequence[str], cache: str, threads: int, progress: Progress | None
) -> list[_Tar]:
    shards = paths.expand(pattern, (".tar",)) if isinstance(pattern, str) else list(pattern)
    for path in shards:
        compression.refuse(path)
    found = files.look(shards, "tar")
    names = files.shard_names(shards)
    tars = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for tar in pool.map(_Tar, found, names, [cache] * len(shards)):
            tars.append(tar)
            if progress is not None:
                progress(len(tars), len(shards))
    return tars
