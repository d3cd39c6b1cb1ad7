"""Plain text, for the language stage."""

from __future__ import annotations

import dataclasses

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Document
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.readers.record import Files, Record


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Where the text is, and how long it must be.

    Attributes:
      texts: fields that may hold it; the first that is there and not null is taken. "json.text" is
        the key `text` of the JSON in the field "json".
      strip: is white space around it taken off?
      min_characters: a shorter text is not used, nor one of white space alone.
    """

    texts: tuple[str, ...] = ("txt", "text", "content", "json.text")
    strip: bool = False
    min_characters: int = 1

    def __post_init__(self) -> None:
        fields.check_names("texts: texts", self.texts)
        most = fields.MAX_CHARACTERS
        fields.check_range("texts: min_characters", self.min_characters, 0, most)

    def needed(self) -> tuple[tuple[str, ...], ...]:
        """Fields of a record, of each group one."""
        return (self.texts,)


def parse(record: Record, options: TextOptions, files: Files | None = None) -> Document:
    """The text of a record; `files` are not used: every corpus is called alike.

    Raises:
      BadRecord: if it has none, it is no text, or too short.
    """
    field, value = fields.first_present(record, options.texts, "no text")
    text = fields.text(value, f"{record.key}, {field}")
    if options.strip:
        text = text.strip()
    if not text or text.isspace():
        raise BadRecord("no text", f"{record.key}, {field}")
    if len(text) < options.min_characters:
        raise Dropped("text too short", f"{record.key}, {field}: {len(text)} characters")
    return Document((text,), record.key)
