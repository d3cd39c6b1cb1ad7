"""A document as bytes, the records of prepared shards.

    "FLD1" · u32 length of the header · header · payload · u32 CRC-32 of all before

Integers are little endian. The header is JSON in UTF-8, keys sorted and without spaces:
{"items": [["text", 11], ["image", 5403, "0001.jpg"], …], "key": "page 7"}, each item with the
length of its bytes, which follow each other in the payload: a text in UTF-8, a medium as it was
encoded. The same document has the same bytes, and no others are decoded: a change of the format is
a change of the first four bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord

MAX_BYTES = 1 << 30  # of one document
KINDS = ("image", "clip")
_MAGIC = b"FLD1"
_LENGTH = struct.Struct("<I")
_START = len(_MAGIC) + _LENGTH.size


def encode(document: Document) -> bytes:
    """The bytes of a document.

    Raises:
      BadRecord: if a text is no Unicode text (half a surrogate pair) or the whole is too large.
      TypeError: if a medium is a path or pixels: whoever prepares shards reads the bytes first.
      ValueError: if a medium is neither an image nor a clip.
    """
    header, payload = _parts(document)
    parts = [_MAGIC, _LENGTH.pack(len(header)), header, *payload]
    if sum(map(len, parts)) + _LENGTH.size > MAX_BYTES:
        raise BadRecord("document too large", document.key)
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, _LENGTH.pack(checksum)])


def decode(data: bytes) -> Document:
    """The document of `encode`'s bytes.

    Raises:
      BadRecord: "damaged record" for any other bytes.
    """
    if len(data) < _START + _LENGTH.size or len(data) > MAX_BYTES or data[:4] != _MAGIC:
        raise BadRecord("damaged record", f"{len(data)} bytes that begin with {data[:4]!r}")
    view = memoryview(data)
    body = view[: -_LENGTH.size]
    if _LENGTH.unpack(view[len(body) :])[0] != zlib.crc32(body):
        raise BadRecord("damaged record", "its check sum is wrong")
    end = _START + _LENGTH.unpack(body[len(_MAGIC) : _START])[0]
    try:
        document = _document(json.loads(bytes(body[_START:end]).decode("utf-8")), body[end:])
        header, _ = _parts(document)
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # BadRecord is a ValueError
        raise BadRecord("damaged record", str(error)) from error
    if end > len(body) or header != body[_START:end]:
        raise BadRecord("damaged record", "its header is not as it is written")
    return document


def _parts(document: Document) -> tuple[bytes, list[bytes]]:
    """The header and the pieces of the payload."""
    items: list[list[Any]] = []
    payload: list[bytes] = []
    try:
        for item in document.items:
            if isinstance(item, Medium):
                if not isinstance(item.data, bytes):
                    kind = type(item.data).__name__
                    raise TypeError(f"medium {item.key!r} is a {kind}; only bytes are encoded")
                if item.kind not in KINDS:
                    raise ValueError(f"medium {item.key!r} is a {item.kind!r}; {KINDS}")
                payload.append(item.data)
                items.append([item.kind, len(item.data), item.key])
            else:
                payload.append(item.encode("utf-8"))
                items.append(["text", len(payload[-1])])
        about = {"items": items, "key": document.key}
        header = json.dumps(about, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return header.encode("utf-8"), payload
    except UnicodeEncodeError as error:
        raise BadRecord("broken text", f"{document.key!r}: {error.reason}") from error


def _document(about: Any, payload: memoryview) -> Document:
    """The document that a header tells of; what is wrong with its types ends in an exception.

    Lengths that are not the items' are found when the header is compared with the document's own.
    """
    items: list[str | Medium] = []
    place = 0
    for kind, length, *rest in about["items"]:
        data = bytes(payload[place : place + length])
        place += length
        if kind == "text":
            items.append(data.decode("utf-8"))
        else:
            (key,) = rest
            items.append(Medium(data, _text(key), kind))
    if place != len(payload):
        raise ValueError(f"{len(payload) - place} bytes belong to no item")
    return Document(tuple(items), _text(about["key"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a key that is a {type(value).__name__}")
    return value
