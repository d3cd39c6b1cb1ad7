"""Which documents and images are kept: the filters of M3W (Flamingo v1, appendix A.3.2) and others.

An image that is filtered out of a page leaves its text, and the texts around it become one. A pair
(one medium and one text) is dropped with its medium. Clips are kept as they are. Everything is a
function of the document alone: no draw, no state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from flamingo_jax.data import images
from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.prepare import duplicates, media

SAME_COLOUR = 4
"""0…255: an image no channel of which differs by more, scaled down, has a single colour. A line of
one pixel across 1,000 makes 8; the blocks of a JPEG of one colour make 0 or 1."""


@dataclasses.dataclass(frozen=True)
class FilterOptions:
    """What is kept; the default is the paper's.

    Attributes:
      min_side: an image with a shorter side, in pixels, is left out; 0 = none is.
      max_aspect: an image whose longer side is more than so many shorter ones is; 0 = none is.
      single_colour: is one that has a single colour left out?
      min_images: a document with fewer media left is dropped. One that came without any is plain
        text and is not.
      max_images: a document with more media left is dropped; 0 = no limit.
      language: takes a document's texts, by blank lines apart, and says whether they are kept.
      between: what is put between texts that come to follow each other.
    """

    min_side: int = 64
    max_aspect: float = 3.0
    single_colour: bool = True
    min_images: int = 1
    max_images: int = 0
    language: Callable[[str], bool] | None = None
    between: str = "\n\n"

    def __post_init__(self) -> None:
        fields.check_range("min_side", self.min_side, 0, images.MAX_PIXELS)
        if self.max_aspect:
            fields.check_range("max_aspect", self.max_aspect, 1, images.MAX_PIXELS)
        fields.check_range("min_images", self.min_images, 0, fields.MAX_IMAGES)
        fields.check_range("max_images", self.max_images, 0, fields.MAX_IMAGES)


PAPER = FilterOptions()
KEEP_ALL = FilterOptions(min_side=0, max_aspect=0.0, single_colour=False, min_images=0)
"""Media are not even opened."""


@dataclasses.dataclass(frozen=True)
class Filtered:
    """A document that is kept.

    Attributes:
      document: its media are bytes; unchanged if nothing was left out.
      left_out: the reason of each medium that was.
    """

    document: Document
    left_out: tuple[str, ...] = ()


def apply(
    document: Document, options: FilterOptions = PAPER, index: duplicates.Index | None = None
) -> Filtered:
    """Filters a document.

    Args:
      document: a page, a pair, a clip with a text, or plain text.
      options: what is kept.
      index: images near one of these are left out.

    Raises:
      Dropped: if a filter takes the whole document.
      BadRecord: if it is a pair and its medium cannot be read or decoded.
    """
    texts = [item for item in document.items if isinstance(item, str)]
    if options.language is not None and texts and not options.language("\n\n".join(texts)):
        raise Dropped("language", document.key)
    count = len(document.items) - len(texts)
    if not count:
        return Filtered(document)

    items: list[str | Medium | None] = []
    faults: list[BadRecord] = []
    for item in document.items:
        if isinstance(item, Medium):
            try:
                items.append(_checked(item, options, index))
            except BadRecord as error:
                if count == 1 and len(texts) <= 1:
                    raise
                faults.append(error)
                items.append(None)
        else:
            items.append(item)
    left = count - len(faults)
    if left < options.min_images:
        reason = "too few images" if left else "no images"
        raise Dropped(reason, f"{document.key}: {left} of {count}")
    if options.max_images and left > options.max_images:
        raise Dropped("too many images", f"{document.key}: {left}")
    kept = Document(_closed(items, options.between), document.key)
    return Filtered(kept, tuple(error.reason for error in faults))


def _checked(medium: Medium, options: FilterOptions, index: duplicates.Index | None) -> Medium:
    """The medium with its bytes, if it is kept."""
    medium = media.as_bytes(medium)
    if medium.kind != "image" or not isinstance(medium.data, bytes):
        return medium
    try:
        _check_image(medium.data, options, index)
    except BadRecord as error:
        raise type(error)(error.reason, f"{medium.key}: {error.detail}") from error
    return medium


def _check_image(data: bytes, options: FilterOptions, index: duplicates.Index | None) -> None:
    if options.min_side or options.max_aspect:
        size = media.image_size(data)
        if min(size) < options.min_side:
            raise Dropped("small image", f"{size[0]} x {size[1]}")
        if options.max_aspect and max(size) > options.max_aspect * min(size):
            raise Dropped("narrow image", f"{size[0]} x {size[1]}")
    if not options.single_colour and index is None:
        return
    small = images.decode(data, duplicates.SIDE, "squash")  # u8[32, 32, 3], from a reduced decoding
    if options.single_colour and int(np.ptp(small, axis=(0, 1)).max()) <= SAME_COLOUR:
        raise Dropped("single-colour image")
    if index is not None:
        distance = index.distance(duplicates.perceptual_hash(small))
        if distance <= index.most:
            raise Dropped("near an evaluation image", f"{distance} of 64 bits differ")


def _closed(items: list[str | Medium | None], between: str) -> tuple[str | Medium, ...]:
    """The items without the gaps; texts to both sides of one are joined."""
    closed: list[str | Medium] = []
    gap = False
    for item in items:
        if item is None:
            gap = True
            continue
        last = closed[-1] if closed else None
        if gap and isinstance(item, str) and isinstance(last, str):
            closed[-1] = between.join(filter(None, (last, item)))
        else:
            closed.append(item)
        gap = False
    return tuple(closed)
