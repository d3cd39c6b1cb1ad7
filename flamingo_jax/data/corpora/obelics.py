"""Pages of OBELICS (Laurençon et al., 2023): parallel lists of images and texts, in reading order.

    images  [null,  "images/1.jpg", null,   …]      a name, encoded bytes, or {"bytes", "path"}
    texts   ["A …", null,           "Then …", …]

Exactly one of the two is not null at each place. `metadata`, `general_metadata` and other fields
are not read. A text already holds the blank lines between its paragraphs; where two texts come to
follow each other, as an image between them is left out, a blank line is put between them as well.
"""

from __future__ import annotations

import dataclasses

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Files, Record

MISSING = ("image", "page")


@dataclasses.dataclass(frozen=True)
class ObelicsOptions:
    """Which pages and images are used; the default leaves out only what cannot be had.

    Attributes:
      min_images: a page with fewer is not used.
      max_images: images past so many are left out, their text stays; 0 = no limit (rows have their
        own).
      drop_single: probability that a page with one image is not used (OpenFlamingo's 0.5).
      seed: what that is drawn from, with the record's key.
      missing: what an image that cannot be had takes with it: "image", itself, or "page".
      between: what is put between texts that follow each other.
    """

    min_images: int = 1
    max_images: int = 0
    drop_single: float = 0.0
    seed: int = 0
    missing: str = "image"
    between: str = "\n\n"

    def __post_init__(self) -> None:
        fields.check_range("obelics: min_images", self.min_images, 0, fields.MAX_IMAGES)
        fields.check_range("obelics: max_images", self.max_images, 0, fields.MAX_IMAGES)
        fields.check_range("obelics: drop_single", self.drop_single, 0, 1)
        fields.check_choice("obelics: missing", self.missing, MISSING)


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
    fields.check_page(items, record.key, options.min_images, options.drop_single, options.seed)
    return Document(fields.join(items, options.between), record.key)
