"""Pairs of an image and a text: ALIGN, LTIP, LAION, COCO in WebDataset, Parquet or JSON lines.

Sets differ in the names of their fields, in how many captions there are, and in how long these may
be: all three are options. The paper's space before a text is not added here but to rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Document
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.randomness import generator
from flamingo_jax.data.readers.record import Files, Record

CHOICES = ("first", "random", "longest")


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """Where a pair's two halves are, and which texts are used.

    Attributes:
      media: fields that may hold the medium (encoded bytes, {"bytes", "path"} or a file's name);
        the first that is there and not null is taken.
      captions: fields that may hold the caption, a list or an object of captions, likewise;
        "json.caption" is the key `caption` of the JSON in the field "json".
      choice: of several captions that may be used, the "first", a "random" one (the same at every
        visit) or the "longest".
      seed: what a random one is drawn from, with the record's key.
      strip: is white space around a caption taken off?
      min_characters: a caption shorter than this is not used, nor an empty one.
      max_characters: nor one longer than this.
    """

    corpus: ClassVar[str] = "pairs"
    media: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "image", "image_path")
    captions: tuple[str, ...] = ("txt", "text", "caption", "captions", "json.caption")
    choice: str = "first"
    seed: int = 0
    strip: bool = True
    min_characters: int = 1
    max_characters: int = 100_000

    def __post_init__(self) -> None:
        corpus, most = self.corpus, fields.MAX_CHARACTERS
        fields.check_names(f"{corpus}: media", self.media)
        fields.check_names(f"{corpus}: captions", self.captions)
        fields.check_choice(f"{corpus}: choice", self.choice, CHOICES)
        fields.check_range(f"{corpus}: max_characters", self.max_characters, 1, most)
        fields.check_range(f"{corpus}: min_characters", self.min_characters, 0, self.max_characters)

    def needed(self) -> tuple[tuple[str, ...], ...]:
        """Fields of a record, of each group one."""
        return self.media, self.captions


def parse(record: Record, options: PairOptions, files: Files | None = None) -> Document:
    """The image and the caption of a record.

    Raises:
      BadRecord: if it lacks either, it is malformed, or no caption may be used.
    """
    return parse_kind(record, options, files, "image")


def parse_kind(record: Record, options: PairOptions, files: Files | None, kind: str) -> Document:
    """A medium of some kind ("image" or "clip") and its caption; see `parse`."""
    text = caption(record, options)
    field, value = fields.first_present(record, options.media, f"no {kind}")
    return Document((fields.medium(value, record, field, files, kind), text), record.key)


def caption(record: Record, options: PairOptions) -> str:
    """The caption of a record.

    Raises:
      BadRecord: if it has none that may be used, or one is no text.
    """
    field, value = fields.first_present(record, options.captions, "no text")
    texts = [
        fields.text(candidate, f"{record.key}, {field}")
        for candidate in _candidates(value, f"{record.key}, {field}")
    ]
    if options.strip:
        texts = [text.strip() for text in texts]
    low, high = max(options.min_characters, 1), options.max_characters
    usable = [text for text in texts if low <= len(text) <= high]
    if not usable:
        longest = max(map(len, texts), default=0)
        if not longest:
            raise BadRecord("no text", f"{record.key}, {field}")
        reason = "text too short" if longest < low else "text too long"
        raise Dropped(reason, f"{record.key}, {field}: {longest} characters")
    if options.choice == "longest":
        return max(usable, key=len)
    if options.choice == "random" and len(usable) > 1:
        return usable[generator("caption", options.seed, record.key).integers(len(usable))]
    return usable[0]


def _candidates(value: Any, where: str) -> list[Any]:
    """The captions that a field holds, in its order; nulls are none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, list | tuple):
        value = [value]
    listed = fields.listed(value, where, fields.MAX_PLACES)
    return [candidate for candidate in listed if candidate is not None]
