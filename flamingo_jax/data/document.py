"""What every source returns: a document of text and media, in reading order, not yet decoded."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Medium:
    """An image or a clip.

    Attributes:
      data: encoded bytes, a path, or pixels u8[F, Y, X, 3] (F = 1 for an image).
      key: its name in the source, the same at every visit: feature caches and records go by it.
      kind: "image" or "clip".
    """

    data: bytes | str | np.ndarray
    key: str
    kind: str = "image"


@dataclasses.dataclass(frozen=True)
class Document:
    """Texts and media in reading order.

    A pair is a medium and a text; plain text is one text. Control tokens come from this structure
    alone: a text that happens to hold "<EOC>" holds five plain characters.
    """

    items: tuple[str | Medium, ...]
    key: str


class Source(Protocol):
    """Random access to documents; the same index gives the same document, in any process."""

    def __len__(self) -> int:
        """How many documents there are."""
        ...

    def __getitem__(self, index: int) -> Document:
        """The document at `index`, 0 ≤ index < len."""
        ...
