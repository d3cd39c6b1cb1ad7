"""Media as they are stored, which is always as encoded bytes, and what their header tells."""

from __future__ import annotations

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from flamingo_jax.data import images
from flamingo_jax.data.corpora import fields
from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord


def as_bytes(medium: Medium) -> Medium:
    """The medium with its file read; one picture given as pixels becomes a PNG, which loses none.

    Raises:
      BadRecord: if its file is missing, it is empty or too large, or a clip has no file.
    """
    kind, data = medium.kind, medium.data
    if isinstance(data, np.ndarray):
        data = _png(data, medium)
    elif isinstance(data, str):
        data = _read(pathlib.Path(data), medium)
    if not data:
        raise BadRecord(f"empty {kind}", medium.key)
    fields.check_bytes(len(data), kind, medium.key)
    return medium if data is medium.data else dataclasses.replace(medium, data=data)


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as the header tells; nothing is decoded.

    Raises:
      BadRecord: if it is no image, or one of more pixels than are ever decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise BadRecord("too many pixels in an image", str(error)) from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise BadRecord("not an image", str(error)) from error
    if width * height > images.MAX_PIXELS:
        raise BadRecord("too many pixels in an image", f"{width} x {height}")
    return width, height


def _read(path: pathlib.Path, medium: Medium) -> bytes:
    try:
        fields.check_bytes(path.stat().st_size, medium.kind, medium.key)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        if isinstance(error, BadRecord):
            raise
        raise BadRecord(f"missing {medium.kind} file", medium.key) from error


def _png(pixels: np.ndarray, medium: Medium) -> bytes:
    frame = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    if medium.kind != "image":
        raise BadRecord("clip without a file", f"{medium.key}: pixels are not stored")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        form = f"{pixels.dtype}{list(pixels.shape)}"
        raise BadRecord("pixels of a wrong form", f"{medium.key}: {form}")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(file, format="PNG")
    return file.getvalue()
