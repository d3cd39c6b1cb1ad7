"""Pages of OBELICS (Laurençon et al., 2023): parallel lists of images and texts, in reading order.

    images  [null,  "images/1.jpg", null,   …]      a name, encoded bytes, or {"bytes", "path"}
    texts   ["A …", null,           "Then …", …]

Exactly one of the two is not null at each place. `metadata`, `general_metadata` and other fields
are not read. A text already holds the blank lines between its paragraphs; where two texts come to
follow each other, as an image between them is left out, a blank line is put between them as well.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Files, Record


@dataclasses.dataclass(frozen=True)
class ObelicsOptions(fields.PageOptions):
    """Which pages and images are used; the default leaves out only what cannot be had.

    Attributes:
      between: what is put between texts that follow each other.
    """

    corpus: ClassVar[str] = "obelics"
    between: str = "\n\n"

    def needed(self) -> tuple[tuple[str, ...], ...]:
        """Fields of a record, of each group one."""
        return ("images", "json"), ("texts", "json")


def parse(record: Record, options: ObelicsOptions, files: Files | None = None) -> Document:
    """The page of a record.

    Args:
      record: with the fields `images` and `texts`, or a field "json" that holds them.
      options: what is left out.
      files: where images given by name are; without them such images cannot be had.

    Raises:
      BadRecord: if it is malformed, or not used by the options.
    """
    columns = fields.columns(record, ("images", "texts"))
    images = fields.listed(columns["images"], f"{record.key}, images", fields.MAX_PLACES)
    texts = fields.listed(columns["texts"], f"{record.key}, texts", fields.MAX_PLACES)
    if len(images) != len(texts):
        raise BadRecord(
            "images and texts of different lengths", f"{record.key}: {len(images)}, {len(texts)}"
        )
    if sum(image is not None for image in images) > fields.MAX_IMAGES:
        raise BadRecord("too many images", record.key)

    items: list[str | Medium] = []
    count, size = 0, 0
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            what = "both an image and a text" if text is not None else "neither image nor text"
            raise BadRecord(f"a place with {what}", f"{record.key}, place {place}")
        if text is not None:
            items.append(fields.text(text, f"{record.key}, text {place}"))
        elif not options.max_images or count < options.max_images:
            try:
                medium = fields.medium(image, record, place, files)
            except fields.Unresolved:
                if options.missing == "page":
                    raise
                continue
            items.append(medium)
            count, size = count + 1, size + len(medium.data)
            if size > fields.MAX_PAGE_BYTES:
                raise BadRecord("too many bytes in a page", record.key)
    fields.check_page(items, record.key, options)
    return Document(fields.join(items, options.between), record.key)
