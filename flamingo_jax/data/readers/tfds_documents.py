"""Documents as examples of TFDS sets: how they are laid out, and the source that reads them.

    {"key": "page 7",
     "items": {"kind": ["text", "image"], "text": ["A cat", ""],
               "data": [b"", b"\\xff\\xd8…"], "key": ["", "0001.jpg"]}}

The lists of `items` go together, an entry for each item in reading order. Media are bytes as they
were encoded, not TFDS's images: those are decoded by whoever reads them, clips and some formats
not at all.
"""

from __future__ import annotations

from typing import Any

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import codec
from flamingo_jax.data.readers.record import Reader, Record
from flamingo_jax.errors import InputError

FIELDS = ("items", "key")
_EMPTY = {"kind": "text", "text": "", "data": b"", "key": ""}


def make_example(document: Document) -> dict[str, Any]:
    """The example of a document whose media are bytes."""
    items = [
        {"kind": item.kind, "data": item.data, "key": item.key}
        if isinstance(item, Medium)
        else {"text": item}
        for item in document.items
    ]
    return {"key": document.key, "items": [_EMPTY | item for item in items]}


def read_example(record: Record) -> Document:
    """The document of an example.

    Raises:
      BadRecord: "damaged record" for fields that no document has.
    """
    try:
        items = record.fields["items"]
        rows = zip(*(items[name] for name in _EMPTY), strict=True)
        return Document(tuple(_item(*row) for row in rows), _checked(record.fields["key"], str))
    except (TypeError, ValueError, KeyError) as error:
        raise BadRecord("damaged record", f"{record.key}: {error}") from error


def _item(kind: Any, text: Any, data: Any, key: Any) -> str | Medium:
    for value, wanted in ((text, str), (data, bytes), (key, str)):
        _checked(value, wanted)
    if kind == "text" and not (data or key):
        return text
    if kind in codec.KINDS and data and not text:
        return Medium(data, key, kind)
    raise ValueError(f"an item of the kind {kind!r} with a text of {len(text)}, {len(data)} bytes")


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__}, not {kind.__name__}")
    return value


class TfdsDocuments:
    """The documents of a set; `document.Source`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Document:
        """The document at `index`, in the order of the set.

        Raises:
          BadRecord: if the example is damaged or no document.
          IndexError: beyond the end.
        """
        return read_example(self._reader[index])


def open_documents(name: str, data_dir: str, split: str) -> TfdsDocuments:
    """Opens a set of documents, as `data.tfds_builders` makes them; see `tfds_reader.open_tfds`.

    Raises:
      InputError: if there is no such set, version or split, or its examples are others.
    """
    from flamingo_jax.data.readers import tfds_reader

    reader = tfds_reader.open_tfds(name, data_dir, split)
    if tuple(sorted(reader.names)) != FIELDS:
        raise InputError(
            f"the set {name!r} in {data_dir!r} has {', '.join(reader.names)}, which are no "
            "prepared documents; name its corpus, such as source='pairs'"
        )
    return TfdsDocuments(reader)
