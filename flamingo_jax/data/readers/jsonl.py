"""JSON lines: any line by its index, through an index of where lines begin.

The index is made once by reading the file through and kept (`kept`) beside it or in a cache. Blank
lines are no records. A `.json` file that holds one list, or one object, is read whole.
"""

from __future__ import annotations

import array
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import compression, files, kept
from flamingo_jax.data.readers.paths import Shard, is_url
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

MAX_LINE = 1 << 27  # bytes; pages with their pictures inside take tens of MB
MAX_JSON = 1 << 28  # bytes of a .json file
FORM = "flamingo_jax line index 1"  # the number is raised when an index would come out otherwise
_PIECE = {True: 1 << 22, False: 1 << 18}  # bytes fetched at once while indexing, by "is it remote?"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MARK = b"\xef\xbb\xbf"  # of UTF-8, which some programs put first


class JsonlReader:
    """The objects of JSON files; `record.Reader`. NaN and Infinity are read as floats."""

    def __init__(self, paths: Sequence[str], cache: str = "") -> None:
        shards = files.look(paths, "JSON")
        self._files = files.at_once(lambda shard: _open(shard, cache), shards)
        self._shards = files.ShardIndex(paths, [len(file) for file in self._files])

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        """The object at `index`, files in the order given.

        Raises:
          BadRecord: if its line cannot be read, is too long, not UTF-8, not JSON or not an object.
          IndexError: beyond the end.
        """
        shard, place = self._shards.locate(index)
        key = self._shards.key(shard, place)
        return Record(key, _parse(self._files[shard].read(place, key), key))


def open_jsonl(paths: Sequence[str], cache: str = "") -> JsonlReader:
    """Opens files of one JSON object a line, or `.json` files of one list or one object.

    Args:
      paths: the files; their records follow each other in this order.
      cache: a folder for indexes, which lie beside their files without it; see `kept.Kept`.

    Raises:
      InputError: if a file is missing or compressed, or a `.json` file is too large or malformed.
    """
    return JsonlReader(paths, cache)


def _open(shard: Shard, cache: str) -> _Lines | _Whole:
    compression.refuse(shard.path)
    whole = shard.path.lower().endswith(".json")
    return _Whole(shard) if whole else _Lines(shard, cache)


class _Lines:
    """A file of one object a line."""

    def __init__(self, shard: Shard, cache: str) -> None:
        self._shard = shard
        self._index = kept.Index(shard, FORM, "records", lambda: _scan(shard), self._starts, cache)

    def _starts(self, arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
        """i64[n] where each line begins that is not blank."""
        starts = arrays["starts"]
        steps = np.diff(starts, prepend=-1, append=self._shard.size())
        if len(starts) != count or steps.min() <= 0:
            raise ValueError("an index that makes no sense")
        return starts

    def __len__(self) -> int:
        return self._index.count

    def read(self, place: int, key: str) -> bytes:
        starts, size = self._index.get(), self._shard.size()
        start = int(starts[place])
        end = int(starts[place + 1]) if place + 1 < len(starts) else size
        # With what stands before it: is it still where a line begins?
        before = min(start, 1)
        data = self._shard.read(start - before, min(end - start, MAX_LINE + 1) + before)
        line, newline, rest = data[before:].partition(b"\n")
        if len(line) > MAX_LINE:
            raise BadRecord("line too long", f"{key}: more than {MAX_LINE} bytes")
        # Nothing but blank lines may follow, or the lines are others than they were.
        if data[:before] not in (b"", b"\n") or not (newline or end == size) or rest.strip():
            raise BadRecord("shard has changed", f"{key}: no line from {start} to {end}")
        return line if start else line.removeprefix(_MARK)


class _Whole:
    """A file of one list of objects, or of one object."""

    def __init__(self, shard: Shard) -> None:
        if shard.size() > MAX_JSON:
            raise InputError(
                f"{shard.path!r} has more than {MAX_JSON >> 20} MB in one piece; "
                "write it as one object a line, in a .jsonl file"
            )
        try:
            data = shard.read(0, shard.size())
            compression.refuse(shard.path, data)
            whole = json.loads(data.removeprefix(_MARK).decode("utf-8"))
            objects = whole if isinstance(whole, list) else [whole]
            # Kept as text, so that whoever gets a record has it to himself.
            self._lines = [json.dumps(item).encode() for item in objects]
        except InputError:
            raise
        except BadRecord as error:
            raise InputError(
                f"{shard.path!r} cannot be read: {error}; mend it or leave it out"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{shard.path!r} is not one piece of JSON ({error}); "
                "if it has one object a line, name it .jsonl"
            ) from error

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, place: int, key: str) -> bytes:
        return self._lines[place]


def _parse(line: bytes, key: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        fields = json.loads(text)
        # Half a pair of \ud83d\ude00 is a str that no tokenizer and no file takes.
        if _SURROGATE.search(text):
            json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"{key}: {error}") from error
    except UnicodeEncodeError as error:
        raise BadRecord("broken text", f"{key}: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord("not JSON", f"{key}: {error}") from error
    if not isinstance(fields, dict):
        raise BadRecord("not an object", f"{key}: a {type(fields).__name__}")
    return fields


def _scan(shard: Shard) -> kept.Made:
    """Reads a file through, in pieces: ({"records": n}, {"starts": i64[n]}).

    Raises:
      InputError: if it is compressed.
      BadRecord: if it cannot be read.
    """
    starts = array.array("q")
    start = at = 0  # of the line, of the piece
    blank = True
    size, most = shard.size(), _PIECE[is_url(shard.path)]
    while at < size:
        piece = shard.read(at, min(most, size - at))
        if not at:
            compression.refuse(shard.path, piece)
        begin = 0
        while begin < len(piece):
            newline = piece.find(b"\n", begin)
            end = newline if newline >= 0 else len(piece)
            blank = blank and (begin == end or piece[begin:end].isspace())
            if newline >= 0:
                if not blank:
                    starts.append(start)
                start, blank = at + end + 1, True
            begin = end + 1
        at += len(piece)
    if not blank:
        starts.append(start)
    return {"records": len(starts)}, {"starts": np.array(starts, "<i8")}
