"""Pages of Multimodal C4 (Zhu et al., 2023): sentences, images, and how alike they are.

    text_list          [sentence, …]
    image_info         [{"image_name", "matched_text_index", "matched_sim"}, …]
    similarity_matrix  f[images, sentences] CLIP's cosines

An image is a file by its `image_name`, or stands in `image_base64` (OpenFlamingo's WebDataset
shards). The corpus does not know where on the page an image stood: it is put at a sentence like it.
Sentences are joined by a space, none stands beside an image.

OpenFlamingo numbers images by `image_info` but places them by sentence, so that a page whose
matches are not in order shows the model a wrong image. Here an image stands where it is placed.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.corpora.assignment import optimal
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Files, Record

ASSIGNMENTS = ("given", "best", "optimal")
PLACEMENTS = ("before", "after")
MAX_SIMILARITIES = 1 << 20  # images × sentences: an optimum is sought in seconds at most
_MAX_SIMILARITY = 1e3  # cosines, or hundreds of them


@dataclasses.dataclass(frozen=True)
class Mmc4Options(fields.PageOptions):
    """Which images are used and where they stand; the default is the corpus's own matching.

    Attributes:
      assignment: an image's sentence: "given" by matched_text_index; its "best" one, which several
        images may share; or "optimal", one image a sentence with the greatest sum of similarities,
        among the images that can be had (OpenFlamingo).
      placement: "before" or "after" its sentence.
      min_similarity: an image less like its sentence is left out; -1 = none is.
      min_bytes: an image of fewer encoded bytes is left out.
      max_images: counted when the others are left out, the first in `image_info`.
    """

    corpus: ClassVar[str] = "mmc4"
    assignment: str = "given"
    placement: str = "before"
    min_similarity: float = -1.0
    min_bytes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.check_choice("mmc4: assignment", self.assignment, ASSIGNMENTS)
        fields.check_choice("mmc4: placement", self.placement, PLACEMENTS)
        fields.check_range("mmc4: min_similarity", self.min_similarity, -1, _MAX_SIMILARITY)
        fields.check_range("mmc4: min_bytes", self.min_bytes, 0, math.inf)

    def needed(self) -> tuple[tuple[str, ...], ...]:
        """Fields of a record, of each group one."""
        return ("text_list", "json"), ("image_info", "json")


# open_flamingo/train/data.py (images of "10 KB" are those of 10,999 bytes or fewer) and the
# published command of OpenFlamingo-3B.
OPENFLAMINGO = Mmc4Options(
    assignment="optimal", min_similarity=0.24, min_bytes=11_000, max_images=6, drop_single=0.5
)


def parse(record: Record, options: Mmc4Options, files: Files | None = None) -> Document:
    """The page of a record.

    Args:
      record: with the fields of a page, or a field "json" that holds them.
      options: what is left out and where images stand.
      files: where images are looked up by `image_name`; without them only those can be had that
        the record holds itself.

    Raises:
      BadRecord: if it is malformed (similarities are checked wherever there are any), or not used
        by the options.
    """
    columns = fields.columns(record, ("text_list", "image_info"))
    listed = fields.listed(columns["text_list"], f"{record.key}, text_list", fields.MAX_PLACES)
    sentences = [
        fields.text(sentence, f"{record.key}, sentence {place}")
        for place, sentence in enumerate(listed)
    ]
    infos = fields.listed(columns["image_info"], f"{record.key}, image_info", fields.MAX_IMAGES)
    for info in infos:
        if not isinstance(info, Mapping):
            raise BadRecord("image_info is no list of objects", record.key)
    matrix = columns.get("similarity_matrix")
    if matrix is not None:
        matrix = _similarities(matrix, len(infos), len(sentences), record.key)

    media = _media(record, infos, options, files)
    sentence_of = _sentences_of(record.key, infos, media, matrix, len(sentences), options)
    kept = list(sentence_of)[: options.max_images or None]
    at: list[list[Medium]] = [[] for _ in sentences]
    for place in kept:
        at[sentence_of[place]].append(media[place])

    items: list[str | Medium] = []
    for sentence, beside in zip(sentences, at, strict=True):
        items += [*beside, sentence] if options.placement == "before" else [sentence, *beside]
    fields.check_page(items, record.key, options)
    return Document(fields.join(items, " "), record.key)


def _similarities(value: Any, images: int, sentences: int, key: str) -> np.ndarray:
    """f64[images, sentences]."""
    rows = fields.listed(value, f"{key}, similarity_matrix", fields.MAX_IMAGES)
    if images * sentences > MAX_SIMILARITIES:
        raise BadRecord("too many similarities", f"{key}: {images} x {sentences}")
    if len(rows) != images or any(
        not isinstance(row, list | tuple) or len(row) != sentences for row in rows
    ):
        raise BadRecord("similarities of a wrong shape", f"{key}: not {images} x {sentences}")
    if not all(_is_similarity(value) for row in rows for value in row):
        raise BadRecord("similarities are no numbers", key)
    return np.array(rows, np.float64).reshape(images, sentences)


def _is_similarity(value: Any) -> bool:
    # A comparison, as it is false for NaN and takes integers of any length.
    return type(value) in (int, float) and -_MAX_SIMILARITY <= value <= _MAX_SIMILARITY


def _media(
    record: Record, infos: Sequence[Mapping], options: Mmc4Options, files: Files | None
) -> dict[int, Medium]:
    """The images that can be had and are large enough, by their place in `image_info`."""
    media: dict[int, Medium] = {}
    size = 0
    for place, info in enumerate(infos):
        value = info.get("image_name")
        try:
            if (encoded := info.get("image_base64")) is not None:
                value = {"bytes": _decode(encoded, f"{record.key}, image {place}"), "path": value}
            medium = fields.medium(value, record, place, files)
        except fields.Unresolved:
            if options.missing == "page":
                raise
            continue
        if len(medium.data) >= options.min_bytes:
            media[place] = medium
            size += len(medium.data)
        if size > fields.MAX_PAGE_BYTES:
            raise BadRecord("too many bytes in a page", record.key)
    return media


def _decode(encoded: Any, where: str) -> bytes:
    """The bytes of an `image_base64`; nothing is skipped, unlike with Python's default."""
    if not isinstance(encoded, str):
        raise BadRecord("base64 is no string", f"{where}: {type(encoded).__name__}")
    fields.check_bytes(len(encoded) // 4 * 3 - 2, "image", where)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise BadRecord("broken base64", f"{where}: {error}") from error


def _sentences_of(
    key: str,
    infos: Sequence[Mapping],
    media: Collection[int],
    matrix: np.ndarray | None,
    sentences: int,
    options: Mmc4Options,
) -> dict[int, int]:
    """The sentence of each image that is used, in the order of `image_info`."""
    places = sorted(media)
    if not places or not sentences:
        return {}
    if options.assignment == "given":
        found = [(place, _given(infos[place], sentences, key)) for place in places]
    elif matrix is None:
        raise BadRecord("no similarities", key)
    elif options.assignment == "best":
        found = [(place, int(matrix[place].argmax())) for place in places]
    else:
        found = [(places[row], column) for row, column in optimal(matrix[places])]
    if options.min_similarity <= -1:
        return dict(found)
    given = options.assignment == "given"
    return {
        place: sentence
        for place, sentence in found
        if _similarity(infos[place] if given else {}, matrix, place, sentence, key)
        >= options.min_similarity
    }


def _given(info: Mapping, sentences: int, key: str) -> int:
    index = info.get("matched_text_index")
    if index is None:
        raise BadRecord("no matched_text_index", key)
    if type(index) is not int or not 0 <= index < sentences:
        raise BadRecord("matched_text_index is no sentence", key)
    return index


def _similarity(
    info: Mapping, matrix: np.ndarray | None, place: int, sentence: int, key: str
) -> float:
    """How like its sentence an image is: `matched_sim` if its info has it, else the matrix's."""
    value = info.get("matched_sim")
    if value is None:
        if matrix is None:
            raise BadRecord("no similarities", key)
        return float(matrix[place, sentence])
    if not _is_similarity(value):
        raise BadRecord("similarities are no numbers", key)
    return value
