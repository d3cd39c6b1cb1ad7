"""Annotation files: JSON, JSON lines and CSV, whose every mistake names file, record and field."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from flamingo_jax.errors import InputError

MAX_CELL = 1 << 20  # characters of one cell of a table
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class Fields:
    """A record whose fields are asked for by name and type."""

    __slots__ = ("_values", "_where")

    def __init__(self, value: Any, *where: Any) -> None:
        """Takes what was read there.

        Args:
          value: a dict, or there is an error.
          *where: file and place, for errors, in pieces that are joined: there are millions of
            records, and few of them are wrong.

        Raises:
          InputError: if it is no record.
        """
        self._where = where
        if not isinstance(value, dict):
            raise InputError(f"{self.where} is {_kind(value)}, not a record of named fields")
        self._values = value

    @property
    def where(self) -> str:
        """File and place, for errors: "/data/coco/captions_val2014.json: images[3]"."""
        return "".join(p.where if isinstance(p, Fields) else str(p) for p in self._where)

    def __contains__(self, name: str) -> bool:
        """Is the field there, and not null?"""
        return self._values.get(name) is not None

    def names(self) -> list[str]:
        """The fields' names, in their order."""
        return list(self._values)

    def text(self, name: str, default: str | None = None) -> str:
        """A text, which may be empty; `default` where the field is absent or null."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value if value.isascii() else _sound(value, f"{self.where}: field {name!r}")

    def filled(self, name: str) -> str:
        """A text that is not blank."""
        value = self.text(name)
        if not value.strip():
            raise InputError(f"{self.where}: field {name!r} is empty; a text is needed")
        return value

    def integer(self, name: str) -> int:
        """A whole number; in tables it is a text."""
        value = self._values.get(name)
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        """A finite number; in tables it is a text."""
        value = self._values.get(name)
        try:
            number = math.nan if isinstance(value, bool) or value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(name, "a number")
        return number

    def ident(self, name: str) -> str:
        """An id, a whole number or a text, as a text."""
        value = self._values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "an id")
        return self.text(name)

    def texts(self, name: str, least: int = 0) -> tuple[str, ...]:
        """A list of at least `least` texts."""
        values = self.values(name)
        for place, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.where}: {name}[{place}] is {_kind(value)}, not a text")
            if not value.isascii():
                _sound(value, f"{self.where}: {name}[{place}]")
        if len(values) < least:
            raise InputError(f"{self.where}: {name!r} has {len(values)} texts, not {least} or more")
        return tuple(map(sys.intern, values))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self.values(name)
        places = {str(place): value for place, value in enumerate(values)}
        listed = Fields(places, f"{self.where}: {name!r}")
        return tuple(listed.number(place) for place in places)

    def values(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self._values.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def record(self, name: str) -> Fields:
        """A record within this one."""
        if not isinstance(self._values.get(name), dict):
            raise self._wrong(name, "a record of named fields")
        return Fields(self._values[name], self, ".", name)

    def records(self, name: str) -> Iterator[Fields]:
        """A list of records."""
        for place, value in enumerate(self.values(name)):
            yield Fields(value, self, ": ", name, "[", place, "]")

    def items(self) -> Iterator[tuple[str, Fields]]:
        """The fields of a record whose every field is a record itself."""
        for name, value in self._values.items():
            yield name, Fields(value, self, f": {name!r}")

    def wrong(self, what: str) -> InputError:
        """The error to raise for what no type tells."""
        return InputError(f"{self.where}: {what}")

    def _wrong(self, name: str, wanted: str) -> InputError:
        if name not in self._values:
            return InputError(f"{self.where} has no field {name!r}; it should be {wanted}")
        return InputError(
            f"{self.where}: field {name!r} is {_kind(self._values[name])}, not {wanted}"
        )


def read_json(path: pathlib.Path) -> Fields:
    """A file of one JSON object.

    Raises:
      InputError: if it cannot be read, or holds anything else.
    """
    return Fields(_parsed(_read(path), str(path)), str(path))


def read_json_list(path: pathlib.Path) -> Iterator[Fields]:
    """A file of one JSON list of objects.

    Raises:
      InputError: if it cannot be read, or holds anything else.
    """
    values = _parsed(_read(path), str(path))
    if not isinstance(values, list):
        raise InputError(f"{path} is {_kind(values)}, not a list of records")
    return (Fields(value, path, ": record ", place) for place, value in enumerate(values))


def read_jsonl(path: pathlib.Path) -> Iterator[Fields]:
    """A file of one JSON object a line; blank lines are none.

    Raises:
      InputError: if it cannot be read, or a line holds anything else.
    """
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Fields(_parsed(line, where), where)


def read_csv(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[Fields]:
    """A table with commas whose first line names its columns.

    Args:
      path: the file.
      columns: those that it needs to have.

    Raises:
      InputError: if it cannot be read, a column is missing, or a line has more or fewer cells.
    """
    # Not splitlines(), which cuts at U+2028 and the like, too.
    lines = csv.reader(io.StringIO(_read(path), newline=""), strict=True)
    csv.field_size_limit(MAX_CELL)
    try:
        names = next(lines, [])
        missing = [name for name in columns if name not in names]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; its first line is {names}")
        for cells in lines:
            if cells:
                number = lines.line_num
                if len(cells) != len(names):
                    raise InputError(
                        f"{path}, line {number} has {len(cells)} cells, the first {len(names)}"
                    )
                yield Fields(dict(zip(names, cells, strict=True)), path, ", line ", number)
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: {error}") from error


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not blank, without spaces around them.

    Raises:
      InputError: if it cannot be read.
    """
    return [line.strip() for line in _read(path).split("\n") if line.strip()]


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def _sound(text: str, where: str) -> str:
    """Refuses half a pair of \\ud83d\\ude00: a str that no tokenizer and no file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is no Unicode text: {error.reason}") from error
    return text


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        dict: "a record",
        list: "a list",
        str: "a text",
    }
    shown = f" ({value[:40]!r})" if isinstance(value, str) else ""
    return names.get(type(value), f"the number {value}") + shown
