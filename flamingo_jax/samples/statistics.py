"""What is measured over the first documents of a dataset's order."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from flamingo_jax import progress
from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Document, Medium, Source
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.order import endless
from flamingo_jax.data.rows import DatasetSpec, make_row
from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.report.datasets import Drop, Statistics


def measure(
    source: Source,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    seed: int,
    documents: int,
) -> Statistics:
    """Statistics over the first documents of a dataset's order, each of them once."""
    shuffled = not getattr(source, "ordered", False)
    order = endless(len(source), seed, spec.name, shuffled)
    count = min(documents, len(source))
    counted: list[_Counts] = []
    drops: dict[tuple[str, bool], Drop] = {}
    with progress.bar(f"documents of {spec.name}", count, unit="documents") as bar:
        for number in range(count):
            index = cast(int, order[number])
            try:
                counted.append(_count(source[index], spec, tokenizer, seed, number))
            except BadRecord as error:
                by_rule = isinstance(error, Dropped)
                example = f"document {index:,}: {error.detail}" if error.detail else ""
                first = Drop(error.reason, 0, by_rule, example)
                drop = drops.get((error.reason, by_rule), first)
                drops[error.reason, by_rule] = dataclasses.replace(drop, count=drop.count + 1)
            bar.advance(number + 1)
    return Statistics(
        documents=count,
        whole=[one.whole for one in counted],
        used=[one.used for one in counted],
        held=[one.held for one in counted],
        media=[one.media for one in counted],
        sizes=[size for one in counted for size in one.sizes],
        drops=list(drops.values()),
    )


class _Counts(NamedTuple):
    """Of one document; see `Statistics`."""

    whole: int
    used: int
    held: int
    media: int
    sizes: list[tuple[int, int]]


def _count(
    document: Document, spec: DatasetSpec, tokenizer: Tokenizer, seed: int, number: int
) -> _Counts:
    """Counts what a document holds; BadRecord if it cannot be used."""
    row = make_row(document, spec, tokenizer, seed, number)
    media = [item for item in document.items if isinstance(item, Medium)]
    texts = [item for item in document.items if isinstance(item, str)]
    # No tokenizer makes more tokens than bytes, but for a mark at the beginning of a text.
    letters = sum(len(text.encode("utf-8", "replace")) for text in texts)
    longest = 16 + 2 * letters + len(document.items) * (4 + len(tokenizer.image))
    small = dataclasses.replace(spec, image_size=1, frames=1, augment=AugmentSpec())
    whole = dataclasses.replace(small, images=max(len(media), 1), length=longest)
    laid = make_row(numbered(document), whole, tokenizer, seed, number)
    sizes = map(stored_size, media if spec.media else ())
    return _Counts(
        whole=int((laid["positions"] >= 0).sum()),
        used=int((row["positions"] >= 0).sum()),
        held=len(media),
        media=int((row["frames"] > 0).sum()),
        sizes=[size for size in sizes if size],
    )


def numbered(document: Document) -> Document:
    """The document with media of one pixel coloured by their place: a row tells which it shows."""
    items: list[str | Medium] = []
    place = 0
    for item in document.items:
        if isinstance(item, Medium):
            pixel = np.array([place >> 16, place >> 8 & 255, place & 255], np.uint8)
            item = Medium(pixel.reshape(1, 1, 1, 3), item.key, item.kind)
            place += 1
        items.append(item)
    return Document(tuple(items), document.key)


def stored_size(medium: Medium) -> tuple[int, int] | None:
    """(width, height) of a medium as it is stored, from its header; None if it cannot be read."""
    data = medium.data
    if isinstance(data, np.ndarray):
        height, width = data.shape[-3:-1] if data.ndim > 2 else data.shape
        return int(width), int(height)
    try:
        if isinstance(data, str):
            with open(data, "rb") as file:
                return _size_in(file, medium.kind)
        return _size_in(io.BytesIO(data), medium.kind)
    except Exception:  # decoders raise anything on broken bytes
        return None


def _size_in(file: Any, kind: str) -> tuple[int, int] | None:
    if kind != "clip":
        with Image.open(file) as image:
            return image.size
    import av

    with av.open(file, io_open=_refuse) as container:
        context = container.streams.video[0].codec_context
        return context.width, context.height


def _refuse(url: str, *_: Any) -> Any:
    # Playlists can name other files and addresses.
    raise OSError(f"a video may not open {url!r}")
