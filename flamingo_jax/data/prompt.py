"""Prompts: lists of text, pictures and clips in any order, as tokens and pixels.

In text `<EOC>` is the end of a chunk and `<image>` announces a medium; `text(s)` escapes both. A
medium brings its own `<image>`: one written out may only stand right before the medium it announces
(`["<image>", cat]` is `[cat]`). Nothing else is added but `<BOS>`; few-shot prompts are laid out as
pages were in training when each text ends in `<EOC>` before the next picture:

    [cat, "a cat<EOC>", dog, "a dog<EOC>", bird]

Every token sees the last medium at or before it.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from flamingo_jax.data import images, video
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.tokenizer import EOC, IMAGE, Tokenizer
from flamingo_jax.errors import InputError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_FRAMES = 512  # of one clip
_CONTROL = re.compile(f"({re.escape(EOC)}|{re.escape(IMAGE)})")
_TAKES = "give text, a PIL image, a pathlib.Path, Video(path), u8[Y, X, 3] or u8[F, Y, X, 3]"


class Text(str):
    """Text in which nothing is a control token; `text` makes it."""


def text(plain: str) -> Text:
    """Text in which "<EOC>" and "<image>" are plain characters."""
    return Text(plain)


@dataclasses.dataclass(frozen=True)
class Video:
    """A clip in a file.

    Attributes:
      path: the file.
      frames: at most so many, from the beginning; None = as many as the model was trained with.
      fps: frames a second.
      start: the second at which what is shown begins.
      end: the second before which it ends; None = the clip's end.
    """

    path: str | os.PathLike[str]
    frames: int | None = None
    fps: float = 1.0
    start: float = 0.0
    end: float | None = None

    def __post_init__(self):
        """Refuses what cannot be shown."""
        if self.frames is not None and not 1 <= self.frames <= MAX_FRAMES:
            raise InputError(f"Video(frames={self.frames}): from 1 to {MAX_FRAMES} can be shown")
        if not 0 < self.fps <= 1000:
            raise InputError(f"Video(fps={self.fps}): give frames a second, above 0, at most 1000")
        if not 0 <= self.start < (math.inf if self.end is None else self.end):
            raise InputError(
                f"Video(start={self.start}, end={self.end}): give seconds, 0 ≤ start < end"
            )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A prompt as tokens.

    Attributes:
      tokens: the ids.
      media_of_token: for each token the medium it sees, from 1; 0 = none.
      media: the media as they were given, in order.
    """

    tokens: list[int]
    media_of_token: list[int]
    media: list[Any]


def lay_out(items: Sequence[Any], tokenizer: Tokenizer, where: str = "the prompt") -> Layout:
    """Turns a prompt into tokens; pictures are not read yet.

    Args:
      items: texts and media in reading order.
      tokenizer: the language model's.
      where: how errors call this prompt.

    Raises:
      InputError: for an item of another kind, or an `<image>` without its medium.
    """
    if not isinstance(items, list | tuple):
        raise InputError(f"{where} is a {type(items).__name__}, not a list of texts and media")
    laid = Layout([], [], [])
    run: list[str] = []  # plain text not yet encoded: neighbours are encoded together

    def add(tokens: Sequence[int]) -> None:
        laid.tokens.extend(tokens)
        laid.media_of_token.extend([len(laid.media)] * len(tokens))

    def flush() -> None:
        add(tokenizer.encode("".join(run)))
        run.clear()

    if tokenizer.bos is not None:
        add([tokenizer.bos])
    announced = False
    for number, item in enumerate(items):
        if not isinstance(item, str):
            _check_kind(item, f"{where}, item {number}")
            flush()
            laid.media.append(item)
            add(tokenizer.image)
            announced = False
            continue
        _check_no_file(item, f"{where}, item {number}")
        pieces = [item] if isinstance(item, Text) else _CONTROL.split(item)
        for place, piece in enumerate(pieces):
            control = place % 2 == 1
            if announced and piece:
                raise InputError(_lonely(where))
            if control and piece == IMAGE:
                announced = True
            elif control:
                flush()
                add([tokenizer.eoc])
            else:
                run.append(piece)
    if announced:
        raise InputError(_lonely(where))
    flush()
    return laid


def encode_continuation(continuation: str, tokenizer: Tokenizer, where: str) -> list[int]:
    """The ids of text that follows a prompt; `<EOC>` in it is parsed.

    Raises:
      InputError: for what is no text, or announces a medium.
    """
    if not isinstance(continuation, str):
        raise InputError(f"{where} is a {type(continuation).__name__}, not text")
    pieces = [continuation] if isinstance(continuation, Text) else _CONTROL.split(continuation)
    ids: list[int] = []
    for place, piece in enumerate(pieces):
        if place % 2 == 1 and piece == IMAGE:
            raise InputError(_lonely(where))
        ids += [tokenizer.eoc] if place % 2 == 1 else tokenizer.encode(piece)
    return ids


def _lonely(where: str) -> str:
    return (
        f"{where}: {IMAGE} stands without its medium; put the picture itself right after it, or "
        "escape the text with flamingo_jax.text"
    )


def _check_no_file(item: str, where: str) -> None:
    """A picture's path given as a string would go unseen."""
    if isinstance(item, Text) or any(c.isspace() for c in item):
        return
    path = pathlib.Path(item)
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and path.is_file():
        raise InputError(
            f"{where} is the text {item!r}, which names a file; give pathlib.Path({item!r}) to "
            "show it, or flamingo_jax.text for the text"
        )


def _check_kind(item: Any, where: str) -> None:
    if isinstance(item, bytes) or not (
        isinstance(item, Image.Image | os.PathLike | Video) or hasattr(item, "__array__")
    ):
        raise InputError(f"{where} is a {type(item).__name__}; {_TAKES}")


def read_medium(
    item: Any, size: int, resize: str, frames: int, where: str = "the prompt"
) -> np.ndarray:
    """A medium of a prompt as u8[f, size, size, 3]; pictures have one frame.

    Args:
      item: a PIL image, a path, a `Video`, or pixels u8[Y, X, 3] or u8[F, Y, X, 3].
      size: Y and X of the result.
      resize: pad, crop or squash (see `images.decode`).
      frames: of a clip that names no number itself; clips of pixels keep all theirs.
      where: how errors call the item.

    Raises:
      InputError: for a missing, broken or too large file, or an array of another form.
    """
    try:
        if isinstance(item, Video):
            count = item.frames or frames
            part = item.start, item.end
            return video.frames(os.fspath(item.path), count, size, resize, item.fps, part=part)
        if isinstance(item, Image.Image):
            return images.decode(_pixels(item), size, resize)[None]
        if isinstance(item, os.PathLike):
            path = os.fspath(item)
            if pathlib.PurePath(path).suffix.lower() in VIDEO_SUFFIXES:
                return video.frames(path, frames, size, resize)
            return images.decode(path, size, resize)[None]
        _check_kind(item, where)
        return _from_array(np.asarray(item), size, resize, where)
    except BadRecord as error:
        raise InputError(f"{where}: {error}; {_TAKES}") from error


def _from_array(pixels: np.ndarray, size: int, resize: str, where: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        shape = ", ".join(map(str, pixels.shape))
        raise InputError(f"{where} is an array {pixels.dtype}[{shape}]; {_TAKES}")
    if pixels.ndim == 3:
        return images.decode(pixels, size, resize)[None]
    if len(pixels) > MAX_FRAMES:
        raise InputError(f"{where} is a clip of {len(pixels)} frames; at most {MAX_FRAMES}")
    return video.frames(pixels, len(pixels), size, resize)


def _pixels(image: Image.Image) -> np.ndarray | bytes:
    """What `images.decode` takes: an array where that says all, else a lossless file in memory."""
    if image.width * image.height > images.MAX_PIXELS:
        raise BadRecord("too many pixels in an image", f"{image.width} x {image.height}")
    try:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data and image.mode != "RGBA":
            image = image.convert("RGBA")
        if image.mode in ("YCbCr", "HSV"):  # which no lossless file holds
            image = image.convert("RGB")
        if image.mode in ("L", "RGB", "RGBA"):
            return np.asarray(image)
        file = io.BytesIO()
        image.save(file, "TIFF")
        return file.getvalue()
    except (OSError, SyntaxError, ValueError) as error:
        raise BadRecord("broken or truncated image", str(error)) from error
