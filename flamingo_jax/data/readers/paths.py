"""Where shards are: what a user gives as a path, and reads of any part of a file.

A path is one file, a folder, a glob (`*`, `?`, `[…]`, `**`), a range or list in braces
(`shard-{0000..0999}.tar`, `{train,extra}/*.tar`), or several of these between commas or `::`. A
folder or glob finds only files with the reader's suffixes; a file named in full may be called
anything. Beside local paths there are gs://, s3:// and memory:// (through fsspec, which is imported
for these alone).
"""

from __future__ import annotations

import collections
import contextlib
import glob
import os
import re
import stat
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import compression
from flamingo_jax.errors import InputError

# What pip installs, by protocol.
PACKAGES = {
    "gs": "flamingo_jax[gcs] (pip install gcsfs)",
    "s3": "flamingo_jax[s3] (pip install s3fs)",
    "memory": "flamingo_jax (pip install fsspec)",
}
MAX_SHARDS = 1_000_000  # that one pattern may stand for
MAX_OPEN = 256  # files at once, in this process: many systems allow 1,024 in all
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})(?:\.\.([0-9]{1,18}))?")
# What filesystems call that which changes with a file's content, the surest first.
_STAMPS = ("generation", "etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "created")


def expand(pattern: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """The shards that a pattern stands for.

    Args:
      pattern: see the module. A name that exists as it is written is taken so, braces and all.
      suffixes: what files of folders and globs must end in, (".tar",); none = any file.

    Returns:
      Paths and URLs in alphabetical order, each once. Local ones exist; whether a remote one named
      in full does is seen when it is read.

    Raises:
      InputError: if the pattern is malformed, nothing matches it, or a filesystem's package is
        missing.
    """
    if not pattern.strip() or "\0" in pattern:
        raise InputError(f"{pattern!r} is no path; give a file, a folder or a pattern of shards")
    if not is_url(pattern) and os.path.exists(os.path.expanduser(pattern)):
        return sorted(_local(pattern, suffixes))
    found: set[str] = set()
    missing: list[str] = []
    for part in filter(None, map(str.strip, _split(pattern))):
        for text in _braces(part):
            shards = _remote(text, suffixes) if is_url(text) else _local(text, suffixes)
            found.update(shards)
            if not shards:
                missing.append(text)
            if len(found) > MAX_SHARDS:
                raise InputError(_too_many(pattern))
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"there is no file {missing[0]!r}{more}; check the path {pattern!r}")
    if not found:
        raise InputError(f"{pattern!r} names no shard; give a file, a folder or a pattern")
    return sorted(found)


def is_url(path: str) -> bool:
    """Does a path begin with a protocol?"""
    return _PROTOCOL.match(path) is not None


def refuse_url(path: str, what: str) -> None:
    """Raises InputError for a URL of what is read from disks alone."""
    if is_url(path):
        raise InputError(f"{what} are read from disks alone; copy {path!r} to one")


def _too_many(pattern: str) -> str:
    return f"{pattern!r} stands for more than {MAX_SHARDS:,} shards; split it"


def _split(pattern: str) -> list[str]:
    """Cuts at commas and `::` that stand outside braces."""
    parts, depth, start = [], 0, 0
    for mark in re.finditer(r"[{},]|::", pattern):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth < 0:
            break
        if depth == 0 and mark[0] in (",", "::"):
            parts.append(pattern[start : mark.start()])
            start = mark.end()
    if depth:
        raise InputError(f"braces of {pattern!r} do not pair; write {{0000..0999}} or {{a,b}}")
    return [*parts, pattern[start:]]


def _braces(text: str) -> list[str]:
    """Writes ranges and lists out, innermost first; each round removes one pair from all texts."""
    texts = [text]
    while "{" in texts[0]:
        expanded: list[str] = []
        for one in texts:
            close = one.index("}")
            left = one.rindex("{", 0, close)
            options = _options(one[left + 1 : close], text)
            if len(expanded) + len(options) > MAX_SHARDS:
                raise InputError(_too_many(text))
            expanded += [one[:left] + option + one[close + 1 :] for option in options]
        texts = expanded
    return texts


def _options(inner: str, text: str) -> list[str]:
    """What braces hold, as shells have it: a range padded with zeros if an end of it is."""
    if match := _RANGE.fullmatch(inner):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        way = 1 if first <= last else -1
        numbers = range(first, last + way, way * step)
        if abs(last - first) // step >= MAX_SHARDS:
            raise InputError(_too_many(text))
        padded = any(len(end) > 1 and end[0] == "0" for end in match.group(1, 2))
        width = max(len(match[1]), len(match[2])) if padded else 0
        return [f"{number:0{width}d}" for number in numbers]
    if "," in inner:
        return inner.split(",")
    raise InputError(
        f"{{{inner}}} in {text!r} is neither a range nor a list; write {{0000..0999}} or {{a,b}}"
    )


def _local(text: str, suffixes: tuple[str, ...]) -> list[str]:
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        with _told(path), os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        found = [os.path.join(path, name) for name in names if name[0] != "."]
        return _ending(found, suffixes, text)
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise InputError(f"{text!r} is neither a file nor a folder; give a file of a dataset")
        return [path]
    if glob.has_magic(path):
        with _told(path):
            found = [name for name in glob.iglob(path, recursive=True) if os.path.isfile(name)]
        return _ending(found, suffixes, text)
    return []


def _remote(text: str, suffixes: tuple[str, ...]) -> list[str]:
    files = filesystem(text)
    protocol = text.partition("://")[0].lower()
    with _told(text):
        if glob.has_magic(text):
            listing = list(files.glob(text, detail=True).values())
        elif (suffixes and text.endswith(suffixes)) or not files.isdir(text):
            listing = None
        else:
            listing = files.ls(text, detail=True)
        if listing is None:
            names = [text.partition("://")[2]]
        else:
            names = [one["name"] for one in listing if one["type"] == "file"]
    # Filesystems write one name in several ways; a shard needs one.
    names = [f"{protocol}://{name.lstrip('/')}" for name in names]
    return names if listing is None else _ending(names, suffixes, text)


def _ending(found: list[str], suffixes: tuple[str, ...], text: str) -> list[str]:
    chosen = [path for path in found if not suffixes or path.endswith(suffixes)]
    if not chosen:
        for path in sorted(found):
            if any(suffix in path for suffix in suffixes):
                compression.refuse(path)
        ending = f" that ends in {' or '.join(suffixes)}" if suffixes else ""
        others = ", ".join(sorted(path.rpartition("/")[2] for path in found)[:3])
        beside = f", but {others}" if others else ""
        raise InputError(f"{text!r} holds no file{ending}{beside}; check the path")
    return chosen


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Whatever a filesystem raises while it is asked about `path`, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path!r}; check the dataset's path") from error
    except Exception as error:  # clouds have errors of their own: credentials, network, quota
        reason = str(error) or type(error).__name__
        raise InputError(f"{path!r} cannot be read: {reason}; check path and access") from error


def filesystem(url: str) -> Any:
    """The fsspec filesystem of a URL.

    Raises:
      InputError: if the protocol is not supported, or its package is not installed.
    """
    match = _PROTOCOL.match(url)
    protocol = match[1].lower() if match else ""
    if protocol not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise InputError(f"{url!r} cannot be read; give a local path or a URL of {known}")
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise InputError(
            f"{url!r} needs a package that is not installed; install {PACKAGES[protocol]}"
        ) from error
    except Exception as error:  # clouds have errors of their own
        raise InputError(f"{url!r} cannot be read: {error}; check your access") from error


class Shard:
    """One file, of which any part is read from any number of threads at once.

    Size and stamp are taken when first asked for. What is read later is of that very file: a local
    one that was changed since is refused (a remote one is not asked again; readers check what they
    read).

    Attributes:
      path: a local path or URL.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._remote = is_url(path)
        self._lock = threading.Lock()
        self._facts: tuple[int, str] | None = None
        self._file: _File | None = None

    def size(self) -> int:
        """Bytes of the file.

        Raises:
          InputError: if there is no such file.
        """
        return self._look()[0]

    def stamp(self) -> str:
        """What changes with the file's content: time of change in ns, or a cloud's tag; or "".

        Raises:
          InputError: if there is no such file.
        """
        return self._look()[1]

    def read(self, offset: int, length: int) -> bytes:
        """Reads exactly `length` bytes from `offset` on.

        Raises:
          BadRecord: if the file ends before, was changed, or cannot be read.
        """
        try:
            size = self.size()
        except InputError as error:
            raise BadRecord("shard cannot be read", str(error)) from error
        if offset < 0 or length < 0 or offset + length > size:
            raise BadRecord("beyond the end of a shard", f"{self.path} at {offset} + {length}")
        try:
            data = self._fetch(offset, length) if length else b""
        except BadRecord:
            raise
        except Exception as error:  # clouds have errors of their own
            raise BadRecord("shard cannot be read", f"{self.path}: {error}") from error
        if len(data) != length:
            raise BadRecord("shard has changed", f"{self.path} ends early")
        return data

    def _look(self) -> tuple[int, str]:
        if self._facts is not None:  # asked for several times a record
            return self._facts
        with self._lock:
            if self._facts is None:
                with _told(self.path):
                    self._facts = self._look_remotely() if self._remote else self._look_locally()
            return self._facts

    def _look_locally(self) -> tuple[int, str]:
        status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise InputError(f"{self.path!r} is not a file; give a file of a dataset")
        return _facts(status)

    def _look_remotely(self) -> tuple[int, str]:
        info = filesystem(self.path).info(self.path)
        if info.get("type") != "file" or not isinstance(info.get("size"), int):
            raise InputError(f"{self.path!r} is not a file; give a file of a dataset")
        return info["size"], next((f"{key} {info[key]}" for key in _STAMPS if info.get(key)), "")

    def _fetch(self, offset: int, length: int) -> bytes:
        if self._remote:
            return filesystem(self.path).cat_file(self.path, start=offset, end=offset + length)
        file = self._file or self._open()  # held here, so that nobody closes it meanwhile
        if _facts(os.fstat(file.number)) != self._facts:
            raise BadRecord("shard has changed", self.path)
        pieces = []
        while length > 0 and (piece := os.pread(file.number, length, offset)):
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open(self) -> _File:
        with self._lock:
            file = self._file
            if file is None:
                file = self._file = _File(self.path)
                with _OPENED_LOCK:
                    _OPENED.append(weakref.ref(self))
                    oldest = _OPENED.popleft()() if len(_OPENED) > MAX_OPEN else None
                if oldest is not None:
                    oldest._file = None  # closed once the last read of it ends
            return file


class _File:
    """A file's number; closed when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        if self.number >= 0:
            close(self.number)


def _facts(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, f"mtime {status.st_mtime_ns}"


_OPENED: collections.deque[weakref.ref[Shard]] = collections.deque()
_OPENED_LOCK = threading.Lock()
