"""The index of a tar: where its members and samples lie, read from headers.

`tarfile.TarInfo` reads single headers. `tarfile.TarFile` is not used: it takes a damaged header for
the end, and follows chains of headers without bound. Here both make the tar a damaged one, of which
what comes before stays readable.
"""

from __future__ import annotations

import collections
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import compression, paths
from flamingo_jax.errors import InputError

FORM = "flamingo_jax tar index 1"  # the number is raised when an index would come out otherwise
BLOCK = 512  # a tar is made of such
_MAX_HEADER = 1 << 20  # bytes of a long name or of a pax header
_MAX_CHAIN = 8  # headers before a member's own
_MAX_TAIL = 1 << 20  # zeros after the last member: `tar` writes up to 10,240
_PIECE = {True: 1 << 22, False: 1 << 13}  # bytes fetched at once while indexing, by "is it remote?"
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__(?:$|/)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ERRORS = "backslashreplace"  # names that are not UTF-8 stay readable
_DTYPES = {"offsets": "<i8", "sizes": "<i8", "ends": "<i8", "checks": "<u4", "hashes": "<u4"}
_DTYPES["kinds"] = "|u1"
_CUT = "truncated tar"
_DAMAGED = "damaged tar"
# What is the matter with a member; an index holds the place in this list.
KINDS = (
    "",
    _CUT,
    "unsafe name in a tar",
    "link in a tar",
    "sparse file in a tar",
    "no plain file",
)


class _Damaged(Exception):
    """Where a tar cannot be followed further."""


class Index:
    """What is known of a shard's members and samples.

    Attributes:
      offsets: i64[members] of the header before the data.
      sizes: i64[members] bytes that can be read: 0 of members of other kinds than 0.
      ends: i64[members] of names, in the bytes of all `names`.
      starts: i64[samples + 1] the first member of each sample, and the end.
      checks: u32[members] CRC-32 of the header: is it still the same tar?
      hashes: u32[members] CRC-32 of the name.
      repeats: u32[samples] how often the sample's key came before.
      kinds: u8[members] places in `KINDS`.
    """

    def __init__(self, arrays: dict[str, np.ndarray], samples: int) -> None:
        self.offsets, self.sizes, self.ends = (
            arrays[name] for name in ("offsets", "sizes", "ends")
        )
        self.starts, self.repeats = arrays["starts"], arrays["repeats"]
        self.checks, self.hashes, self.kinds = (arrays[n] for n in ("checks", "hashes", "kinds"))
        self._names = arrays["names"].tobytes()
        members = len(self.ends)
        # An index may be a stranger's.
        sound = len(self.starts) == samples + 1 and len(self.repeats) == samples
        for edges, end in ((self.starts, members), (self.ends, len(self._names))):
            steps = np.diff(edges.astype(np.int64), prepend=0, append=end)
            sound &= bool(steps.min(initial=0) >= 0)
        for array in (self.offsets, self.sizes, self.checks, self.hashes, self.kinds):
            sound &= len(array) == members
        if not sound or self.kinds.max(initial=0) >= len(KINDS):
            raise ValueError("an index that makes no sense")

    def name(self, member: int) -> str:
        """A member's full name."""
        start = int(self.ends[member - 1]) if member else 0
        return self._names[start : int(self.ends[member])].decode(errors="replace")

    def data(self, window: Window, member: int) -> bytes:
        """A plain member's bytes, if its header is the one that was indexed."""
        offset, size = int(self.offsets[member]), int(self.sizes[member])
        if zlib.crc32(window.read(offset, BLOCK)) == self.checks[member]:
            data = window.read(offset + BLOCK, size)
            if len(data) == size:
                return data
        raise BadRecord("shard has changed", f"{window.shard.path}: {self.name(member)}")


class Window:
    """Reads a shard forwards in pieces, so that what lies close together costs one read."""

    def __init__(self, shard: paths.Shard, piece: int) -> None:
        self.shard = shard
        self._piece = piece
        self._start = 0
        self._held = b""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the shard ends."""
        at = offset - self._start
        if at < 0 or length < 0 or at + length > len(self._held):
            length = max(0, min(length, self.shard.size() - offset))
            if not length:
                return b""
            wanted = min(max(length, self._piece), self.shard.size() - offset)
            self._held, self._start, at = self.shard.read(offset, wanted), offset, 0
        return self._held[at : at + length]


def walk(shard: paths.Shard) -> Iterator[tuple[str, int, int, int, int]]:
    """Yields (name, header's offset, size, CRC of the header, kind) of all but directories.

    Raises:
      _Damaged: after the last member that can be told.
    """
    window = Window(shard, _PIECE[paths.is_url(shard.path)])
    offset, chain = 0, 0
    common: dict[str, str] = {}  # what pax headers say of all members,
    extra: dict[str, str] = {}  # and of the next
    while True:
        block = window.read(offset, BLOCK)
        info = _header(block)
        if info is None:
            rest = shard.size() - offset
            if chain or rest > _MAX_TAIL or window.read(offset, rest).strip(b"\0"):
                raise _Damaged(_DAMAGED)
            return
        data, size = offset + BLOCK, info.size
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"X", b"g"):
            chain += 1
            if chain > _MAX_CHAIN or not 0 <= size <= _MAX_HEADER:
                raise _Damaged(_DAMAGED)
            text = window.read(data, size)
            if len(text) < size:
                raise _Damaged(_CUT)
            if info.type == b"g":
                common |= _pax(text)
                if not common.keys().isdisjoint(("path", "size")):  # one for all members
                    raise _Damaged(_DAMAGED)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                extra.setdefault("path", text.partition(b"\0")[0].decode("utf-8", _ERRORS))
            elif info.type != tarfile.GNUTYPE_LONGLINK:
                extra = _pax(text) | extra  # as with `tarfile`, the first to say something is right
            offset = data + _padded(size)
            continue
        said = common | extra
        name = said.get("GNU.sparse.name", said.get("path", info.name))
        size = _number(said["size"]) if "size" in said else size
        kind = _kind(name, info, any(key.startswith("GNU.sparse.") for key in said))
        if info.type == tarfile.GNUTYPE_SPARSE and block[482]:
            while (more := window.read(data, BLOCK))[504:505] not in (b"", b"\0"):
                data += BLOCK
            data += len(more)
        if not info.isreg() and info.type in tarfile.SUPPORTED_TYPES:
            size = 0  # as `tarfile` has it: links and devices are headers alone
        if size < 0:
            raise _Damaged(_DAMAGED)
        cut = data + size > shard.size()
        if not info.isdir():
            kind = kind or int(cut)
            yield name, offset, 0 if kind else size, zlib.crc32(block), kind
        offset, chain, extra = data + _padded(size), 0, {}


def _header(block: bytes) -> tarfile.TarInfo | None:
    """A header; None for the zeros at a tar's end."""
    if len(block) < BLOCK:
        raise _Damaged(_CUT)
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", _ERRORS)
    except tarfile.HeaderError as error:
        raise _Damaged(_DAMAGED) from error


def _pax(text: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" of a pax header."""
    found, at = {}, 0
    while at < len(text) and text[at]:
        digits, _, _ = text[at : at + 20].partition(b" ")
        end = at + (int(digits) if digits.isdigit() else 0)
        key, equals, value = text[at + len(digits) + 1 : max(at, end - 1)].partition(b"=")
        if not equals or text[end - 1 : end] != b"\n":
            raise _Damaged(_DAMAGED)
        found[key.decode("utf-8", _ERRORS)] = value.decode("utf-8", _ERRORS)
        at = end
    return found


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _Damaged(_DAMAGED)
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _kind(name: str, info: tarfile.TarInfo, sparse: bool) -> int:
    """What is the matter with a member, as a place in `KINDS`."""
    leaves = name.startswith(("/", "\\")) or ".." in re.split(r"[\\/]", name)
    if leaves or "\0" in name or _DRIVE.match(name):
        return 2
    if info.issym() or info.islnk():
        return 3
    if sparse or info.type == tarfile.GNUTYPE_SPARSE:
        return 4
    return 0 if info.isreg() else 5


def plain_name(name: str) -> str:
    """A member's name without the "./" of tars that were made of "."."""
    return re.sub(r"^(?:\./+)+", "", name)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, field) of a member's name; None if it is in no sample."""
    match = None if _META.match(name) else _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def build(shard: paths.Shard) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Indexes a shard: ({"samples": count, "fault": what ails its end}, see `Index`).

    Raises:
      InputError: if it is no tar.
      BadRecord: if it cannot be read.
    """
    rows: list[tuple[int, ...]] = []
    names = bytearray()
    starts, repeats = [], []
    before: collections.Counter[str] = collections.Counter()
    current, fault = None, ""
    try:
        for name, offset, size, check, kind in walk(shard):
            name = plain_name(name)
            split = split_name(name)
            if split and split[0] != current:
                current = split[0]
                starts.append(len(rows))
                repeats.append(before[current])
                before[current] += 1
            encoded = name.encode()
            names += encoded
            rows.append((offset, size, len(names), check, zlib.crc32(encoded), kind))
    except _Damaged as error:
        fault = str(error)
        if not rows:
            raise _no_tar(shard) from error
    columns = zip(*rows, strict=True) if rows else [()] * len(_DTYPES)
    arrays = {
        name: np.array(column, dtype)
        for (name, dtype), column in zip(_DTYPES.items(), columns, strict=True)
    }
    arrays["starts"] = np.array([*starts, len(rows)], "<i8")
    arrays["repeats"] = np.array(repeats, "<u4")
    arrays["names"] = np.frombuffer(bytes(names), "|u1")
    return {"samples": len(repeats), "fault": fault}, arrays


def _no_tar(shard: paths.Shard) -> InputError:
    start = shard.read(0, min(BLOCK, shard.size()))
    compression.refuse(shard.path, start)
    what = "is damaged or cut at its beginning, or no tar" if start else "is empty"
    return InputError(f"{shard.path!r} {what}; make or fetch it again, or leave it out")
