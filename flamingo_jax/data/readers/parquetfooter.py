"""How many values the columns of a Parquet file hold, from its footer.

pyarrow tells too, but there a footer that contradicts itself ends the whole process. Footers are
written in Thrift's compact protocol (the ids of fields are those of parquet.thrift).
"""

from __future__ import annotations

from typing import Any

from flamingo_jax.data.readers.paths import Shard

_TAIL = 8  # u32 length of the footer, "PAR1"
_DEEPEST = 16
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _STRUCT = (9, 10), 12
_ROW_GROUPS, _COLUMNS, _META_DATA, _NUM_VALUES = 4, 1, 3, 5


def most_values(shard: Shard) -> list[int]:
    """The most values (elements of lists and nulls included) of any column, by row group.

    Raises:
      ValueError, LookupError, TypeError: if the footer is none.
      BadRecord: if the file is shorter, or cannot be read.
    """
    size = shard.size()
    length = int.from_bytes(shard.read(size - _TAIL, 4), "little")
    about = _Footer(shard.read(size - _TAIL - length, length)).struct()
    return [
        max((column[_META_DATA][_NUM_VALUES] for column in group[_COLUMNS]), default=0)
        for group in about[_ROW_GROUPS]
    ]


class _Footer:
    """Values of the compact protocol, one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """{id of a field: its value}; texts are left out."""
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind in _BOOLEANS else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self._data):  # no element is smaller than a byte
                raise ValueError("a list longer than the footer")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _BINARY:
            length = self._varint()  # which moves on itself
            self._at += length
        elif kind in (*_BOOLEANS, _BYTE, _DOUBLE):
            self._at += 8 if kind == _DOUBLE else 1
        else:
            raise ValueError(f"a value of the kind {kind}")
        return None

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise ValueError("an endless number")

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
