"""Clips with a text: VTP and its like. What a pair is, with a film instead of an image."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flamingo_jax.data.corpora import pairs
from flamingo_jax.data.document import Document
from flamingo_jax.data.readers.record import Files, Record


@dataclasses.dataclass(frozen=True)
class ClipOptions(pairs.PairOptions):
    """As `pairs.PairOptions`, with the fields that films are found in."""

    corpus: ClassVar[str] = "clips"
    media: tuple[str, ...] = ("mp4", "webm", "mkv", "mov", "avi", "video", "clip", "video_path")


def parse(record: Record, options: ClipOptions, files: Files | None = None) -> Document:
    """The clip and the caption of a record.

    Raises:
      BadRecord: if it lacks either, it is malformed, or no caption may be used.
    """
    return pairs.parse_kind(record, options, files, "clip")
