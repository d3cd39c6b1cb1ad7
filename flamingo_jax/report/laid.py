"""One row of a batch as the model gets it: its pictures, and each token with what it may see."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flamingo_jax.report import wording
from flamingo_jax.report.charts import color
from flamingo_jax.report.markup import Markup, join, tag

LOSSLESS = 32  # up to this side a picture is embedded as PNG
QUALITY = 90  # of JPEG
LARGEST = 256  # side of an embedded picture; larger ones are made smaller
LARGEST_FRAME = 128  # of a clip's frame
MOST_LETTERS = 200  # of a key or path that is shown
FEW_FRAMES = 3
COARSE = 96  # up to this side pixels are shown as squares

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A medium of a row.

    Attributes:
      seen: u8[f, Y, X, 3] what the model gets, augmented.
      clean: u8[f, Y, X, 3] the same frames without augmentation.
      key: the medium's name in its source.
      stored: its width and height as stored, where known.
      clip: is it a clip?
    """

    seen: np.ndarray
    clean: np.ndarray
    key: str
    stored: tuple[int, int] | None = None
    clip: bool = False


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token.

    Attributes:
      text: what it adds to the text; "" for all but the last of those that make up one character.
      medium: the place in the row of the medium that it sees, from 1; 0 = none.
      target: is it a target of the loss?
      kind: "text", "control", or "image" for a token of an <image>.
    """

    text: str
    medium: int
    target: bool
    kind: str = "text"


@dataclasses.dataclass(frozen=True)
class LaidRow:
    """A row of a batch.

    Attributes:
      number: its place in the dataset's endless order.
      document: the index in the source of what it shows.
      key: the document's.
      pieces: its tokens, without padding.
      length: T.
      pictures: its media, in the row's order.
      following: is text tied to the medium after it?
      replaced: the records that should have stood here, and why they do not.
    """

    number: int
    document: int
    key: str
    pieces: tuple[Piece, ...]
    length: int
    pictures: tuple[Picture, ...] = ()
    following: bool = False
    replaced: tuple[str, ...] = ()


def shown(text: str, most: int = MOST_LETTERS) -> str:
    """Text of data as a page can hold it: no lone surrogates, no control characters, bounded."""
    text = _CONTROLS.sub("\ufffd", text.encode("utf-8", "replace").decode())
    return text if len(text) <= most else text[: most - 1] + "…"


def small(rows: Sequence[LaidRow]) -> bool:
    """Whether two such rows have room beside each other."""
    return all(
        len(row.pictures) < 2 and all(len(picture.seen) <= FEW_FRAMES for picture in row.pictures)
        for row in rows
    )


def card(dataset: str, row: LaidRow) -> Markup:
    """A row: where it comes from, its pictures, its text, and what it holds."""
    form = "row-body"
    if len(row.pictures) > 1:
        form += " stacked"
    elif any(picture.clip for picture in row.pictures):
        form += " clips"
    title = tag(
        "p",
        tag("b", f"{shown(dataset)}, row {row.number:,}"),
        tag("span", f"document {row.document:,}", class_="unit"),
        tag("bdi", shown(row.key), class_="unit key") if row.key else None,
        tag("span", "text tied to the next image", class_="tag") if row.following else None,
        class_="row-title",
    )
    replaced = [
        tag("p", "In place of ", shown(text, 400), class_="note replaced") for text in row.replaced
    ]
    media = [
        _medium(place, picture, row.key) for place, picture in enumerate(row.pictures, start=1)
    ]
    return tag(
        "article",
        title,
        replaced,
        tag(
            "div",
            tag("div", media, class_="row-media") if media else None,
            tag("div", text(row.pieces), tag("p", _holds(row), class_="note"), class_="row-text"),
            class_=form,
        ),
        class_="row page-drawing",
    )


def _holds(row: LaidRow) -> str:
    used, targets = len(row.pieces), sum(piece.target for piece in row.pieces)
    told = [f"{used:,} of {wording.plural(row.length, 'token')}", f"{targets:,} in the loss"]
    return ", ".join([*told, f"{row.length - used:,} padding"])


def _medium(place: int, picture: Picture, document: str) -> Markup:
    """The augmented picture with its number, the clean one beside it, its sizes and its key."""
    key = picture.key.removeprefix(document)  # which stands over it
    frames, side = len(picture.seen), picture.seen.shape[1]
    size = f"{side}×{side}"
    if picture.stored and picture.stored != (side, side):
        size = f"{picture.stored[0]:,}×{picture.stored[1]:,} → {size}"
    if picture.clip:
        size += f", {wording.plural(frames, 'frame')}"
    coarse = "coarse" if side <= COARSE else None
    drawn = [
        tag("img", src=embed(pixels), alt=f"medium {place}, {what}", title=what, class_=coarse)
        for pixels, what in ((picture.seen, "as the model gets it"), (picture.clean, "clean"))
    ]
    return tag(
        "figure",
        tag(
            "div",
            tag("span", drawn[0], tag("b", place), class_="seen"),
            tag("span", drawn[1], class_="clean"),
            class_="both",
        ),
        tag("figcaption", size, " ", tag("bdi", shown(key), class_="key")),
        class_="row-medium clip" if picture.clip else "row-medium",
        style=f"--m:{color(place - 1)};--f:{frames}",
        data_medium=place,
    )


def embed(frames: np.ndarray) -> str:
    """u8[f, Y, X, 3] side by side in one picture, as a data URI."""
    largest = LARGEST if len(frames) == 1 else LARGEST_FRAME
    image = Image.fromarray(np.ascontiguousarray(np.concatenate(list(frames), axis=1)))
    height, side = frames.shape[1], min(frames.shape[1], largest)
    if side < height:
        image = image.resize((side * len(frames), side), Image.Resampling.BICUBIC)
    kind, options = ("png", {}) if side <= LOSSLESS else ("jpeg", {"quality": QUALITY})
    out = io.BytesIO()
    image.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def text(pieces: tuple[Piece, ...]) -> Markup:
    """Each token a span in the colour of the medium that it sees."""
    spans = []
    before = Piece("", 0, False, "control")
    for place, piece in enumerate(pieces):
        spans.append(_span(place, piece, behind_control=before.kind != "text"))
        before = piece
    return tag("p", spans, class_="page-text")


def _span(place: int, piece: Piece, behind_control: bool) -> Markup:
    written = shown(piece.text.replace("\r\n", "\n")).replace("\n", "↵").replace("\t", "⇥")
    if behind_control and written.startswith(" "):
        written = "␣" + written[1:]  # the space that is drawn for pairs can be told by it
    told = f"token {place}: " + (f"sees medium {piece.medium}" if piece.medium else "sees none")
    if not piece.text and piece.kind == "text":
        told += ", a part of the next character"
    number = tag("b", piece.medium) if piece.kind == "image" and piece.medium else None
    names = ["token", "target" if piece.target else "", "" if piece.kind == "text" else "chip"]
    return tag(
        "span",
        join(written, number) if piece.text or piece.kind == "text" else None,
        class_=" ".join([*filter(None, names), *(["image"] if piece.kind == "image" else [])]),
        style=f"--m:{color(piece.medium - 1)}" if piece.medium else None,
        data_medium=piece.medium or None,
        title=told + (", in the loss" if piece.target else ""),
    )


def key() -> Markup:
    """What colours and lines mean."""
    return tag(
        "p",
        "A token has the colour of the image that it sees, and none if it sees none. ",
        tag("span", "Underlined", class_="token target"),
        " ones are targets of the loss, ",
        tag("span", "faint", class_="token"),
        " ones are not; ",
        tag("span", "<EOC>", class_="token chip"),
        " is a control token. A picture stands as the model gets it, with its number, beside (a "
        "clip above) the same without augmentation. ␣: a space that begins a text; ↵: a line "
        "break. Pointing at a token or a picture marks what belongs to it.",
        class_="note wide",
    )
