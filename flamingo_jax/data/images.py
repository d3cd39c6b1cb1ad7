"""Pictures: from any encoded bytes to u8[Y, X, 3] of one size.

JPEGs are decoded by libjpeg-turbo, in simplejpeg (the extra `fast`) where that is installed and in
Pillow elsewhere and for what simplejpeg leaves: the pixels are the same. Nine tenths of the time go
into that and into resizing, by Pillow's filters over all pixels that are brought together
(antialiased): bicubic, or Hamming's, which is quicker. Decoding at half the scale saves half of
both and is sharper than the filter: `experiments/benchmarks/data.py` prints by how much, and
DECISIONS.md says what was chosen.
"""

from __future__ import annotations

import functools
import io
import math
import pathlib
import stat
import threading
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from flamingo_jax.data.faults import BadRecord

POLICIES = ("pad", "crop", "squash")
FILTERS = {"": Image.Resampling.BICUBIC, ":hamming": Image.Resampling.HAMMING}
RESIZES = tuple(policy + suffix for suffix in FILTERS for policy in POLICIES)
MAX_PIXELS = 1 << 26  # of one picture: 8192 × 8192, 200 MB decoded
MAX_BYTES = 1 << 27  # of one encoded picture
# Those of pictures on the web and in data sets. Not among them are EPS, for which Pillow starts
# Ghostscript, and what other programs have left behind.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP"),
)
_WHITE = (255, 255, 255)
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale if so many times what is wanted are left: with
# less, a last step of resizing is too short to hide what is sharper than the filter's own result.
_LEFT = 4 / 3
# Segments of JPEGs without a word on colours or turning: SOF0…2, APP0, COM, DQT, DHT, DRI, SOS.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_PLAIN = _FRAMES | frozenset((0xE0, 0xFE, 0xDB, 0xC4, 0xDD, 0xDA))
_LEAST = 8  # pixels a side: from there on simplejpeg's scales cannot be mistaken for each other
_MAX_SCRATCH = 1 << 22  # bytes that a thread keeps
_held = threading.local()


def decode(
    data: bytes | str | np.ndarray,
    size: int,
    resize: str = "pad",
    background: tuple[int, int, int] = _WHITE,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes a picture and brings it to size × size.

    Every mode of Pillow is taken: palettes, alpha, grey of 1, 8 and 16 bits, CMYK. EXIF orientation
    is applied, an animation gives its first frame, a JPEG is decoded at a reduced scale where that
    suffices.

    Args:
      data: encoded bytes, a path, or pixels u8[Y, X], u8[Y, X, 1 | 3 | 4] or u8[1, Y, X, 3].
      size: Y and X of the result.
      resize: "pad" keeps the aspect and fills up with the picture's mean colour (Flamingo v1 §4.1),
        "crop" keeps it and cuts the middle out, "squash" does not keep it; with ":hamming" behind
        it by that filter, which is quicker than bicubic.
      background: what transparent pixels are laid over, 0…255.
      out: u8[size, size, 3] that may be written into.

    Returns:
      u8[size, size, 3], `out` where that was used.

    Raises:
      BadRecord: for what is no picture, is truncated, missing, or too large.
    """
    if isinstance(data, np.ndarray):
        pixels = data[0] if data.ndim == 4 and len(data) == 1 else data
        if pixels.shape == (size, size, 3) and pixels.dtype == np.uint8:
            return pixels
        return fit(_to_rgb(_from_array(pixels), background), size, resize)
    encoded = _read(data)
    image = _plain_jpeg(encoded, size, resize)
    if image is not None:
        return fit(image, size, resize, out)
    image = _open(encoded)
    _bound(image.size)
    try:
        image.draft(None, _draft_size(image.size, size, resize))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return fit(_to_rgb(image, background), size, resize, out)
    except BadRecord:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise BadRecord("broken or truncated image", str(error)) from error


def _plain_jpeg(encoded: bytes, size: int, resize: str) -> Image.Image | None:
    """An upright JPEG in colour without a flaw, by simplejpeg; None for all else: that is Pillow's.

    The pixels are Pillow's, and no picture is used that Pillow would not use.
    """
    fast = _simplejpeg()
    if fast is None:
        return None
    stored = _plain_size(encoded)
    if stored is None or min(stored) < _LEAST:
        return None
    _bound(stored)
    scale = _scale_of(stored, _draft_size(stored, size, resize))
    width, height = -(-stored[0] // scale), -(-stored[1] // scale)
    # Four bytes a pixel, as Pillow holds them: from three it would have to spread them out.
    least = {"min_height": height, "min_width": width, "buffer": _scratch(height * width * 4)}
    try:
        pixels = fast.decode_jpeg(encoded, "RGBX", **least)
    except ValueError:  # of libjpeg's warnings, too, after which a picture may be whole
        return None
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX")


def _scratch(size: int) -> bytearray | None:
    """This thread's memory for pixels that are copied at once; None for more than is to be kept.

    What was written a picture ago is still in the processor's caches.
    """
    if size > _MAX_SCRATCH:
        return None
    held: bytearray | None = getattr(_held, "scratch", None)
    if held is None or len(held) < size:
        held = _held.scratch = bytearray(size)
    return held


def _plain_size(encoded: bytes) -> tuple[int, int] | None:
    """The (X, Y) of a JPEG in YCbCr that has no segments before its pixels but plain ones.

    None for all else. Colours numbered 1, 2, 3 are YCbCr, with JFIF's segment or without it, unless
    Adobe's says otherwise, which is not among the plain (libjpeg's `default_decompress_parms`).
    """
    at, size = 2, None
    if encoded[:at] != b"\xff\xd8":
        return None
    for _ in range(32):  # a handful, in most files
        head = encoded[at : at + 19]
        if len(head) < 4 or head[0] != 0xFF or head[1] not in _PLAIN:
            return None
        if head[1] == 0xDA:
            return size
        if head[1] in _FRAMES:
            if size or head[9:11] + head[13:14] + head[16:17] != b"\x03\x01\x02\x03":
                return None
            size = int.from_bytes(head[7:9]), int.from_bytes(head[5:7])
        at += 2 + int.from_bytes(head[2:4])
    return None


def _scale_of(stored: tuple[int, int], least: tuple[int, int]) -> int:
    """The s of the scale 1/s at which Pillow decodes."""
    ratio = min(stored[0] // least[0], stored[1] // least[1])
    return next((s for s in (8, 4, 2) if s <= ratio), 1)


@functools.cache
def _simplejpeg() -> Any:
    """The package of the extra `fast`, or None."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def fit(image: Image.Image, size: int, resize: str, out: np.ndarray | None = None) -> np.ndarray:
    """Brings an RGB picture to u8[size, size, 3]; see `decode` for `resize` and `out`."""
    if resize not in RESIZES:
        raise ValueError(f"resize is {resize!r}; one of {', '.join(RESIZES)}")
    policy, colon, name = resize.partition(":")
    by = FILTERS[colon + name]
    width, height = image.size
    if policy == "squash" or width == height:
        return np.asarray(_scale(image, size, size, by))
    if policy == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return np.asarray(_scale(image, size, size, by, (left, top, left + side, top + side)))
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    padded = np.empty((size, size, 3), np.uint8) if out is None else out
    return _pad(_scale(image, inner_width, inner_height, by), padded)


def _pad(image: Image.Image, padded: np.ndarray) -> np.ndarray:
    """Lays an RGB picture into the middle of u8[size, size, 3], on its mean colour.

    By bytes where that does: NumPy lets other threads run while it fills an array, and for so short
    a time taking turns costs more than the filling.
    """
    size, (width, height) = len(padded), image.size
    data = image.tobytes()
    rows = np.frombuffer(data, np.uint8).reshape(height, width * 3)
    # Whole rows at a time: to add pixel by pixel takes as long as to decode.
    sums = rows.sum(0, dtype=np.uint16 if height <= 257 else np.uint32)  # 257 · 255 < 65,536
    bar = bytes(round(int(sums[colour::3].sum()) / (height * width)) for colour in range(3))
    top, left = (size - height) // 2, (size - width) // 2
    flat = padded.data.cast("B")
    if left or width < size:
        flat[:] = bar * (size * size)
        padded[top : top + height, left : left + width] = rows.reshape(height, width, 3)
    else:
        begin = top * size * 3
        end = begin + len(data)
        flat[:begin], flat[begin:end] = bar * (top * size), data
        flat[end:] = bar * ((size - top - height) * size)
    return padded


def _scale(
    image: Image.Image,
    width: int,
    height: int,
    by: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    if image.size == (width, height) and box is None:
        return image
    return image.resize((width, height), by, box=box, reducing_gap=3.0)


def _draft_size(stored: tuple[int, int], size: int, resize: str) -> tuple[int, int]:
    """At least so many columns and rows should be left by a reduced decoding."""
    least = _LEFT * size
    if not resize.startswith("pad"):
        return math.ceil(least), math.ceil(least)
    longest = max(stored)
    return max(1, math.ceil(least * stored[0] / longest)), max(
        1, math.ceil(least * stored[1] / longest)
    )


def _read(data: bytes | str) -> bytes:
    if isinstance(data, str):
        path = pathlib.Path(data)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would wait for its writer
                raise BadRecord("missing image file", f"{data!r} is no file")
            if status.st_size > MAX_BYTES:
                raise BadRecord("too many bytes in an image", data)
            return path.read_bytes()
        except BadRecord:
            raise
        except (OSError, ValueError) as error:  # ValueError for a NUL in the name
            raise BadRecord("missing image file", repr(data)) from error
    if len(data) > MAX_BYTES:
        raise BadRecord("too many bytes in an image", f"{len(data)}")
    return data


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadRecord("too many pixels in an image", str(error)) from error
    except Exception as error:  # decoders raise anything on broken bytes
        raise BadRecord("not an image", str(error)) from error


def _bound(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise BadRecord("too many pixels in an image", f"{size[0]} x {size[1]}")
    if min(size) < 1:
        raise BadRecord("empty image")


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise BadRecord("pixels of a wrong form", f"{pixels.dtype}{list(pixels.shape)}")
    _bound(pixels.shape[:2])
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        solid = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(solid, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits or of floats, as u8 (Pillow's own conversion clips at 255)."""
    if np.issubdtype(grey.dtype, np.floating):
        grey = np.nan_to_num(grey)
        top = 1.0 if grey.size and grey.max() <= 1 else 255.0
        return np.clip(np.rint(grey * (255 / top)), 0, 255).astype(np.uint8)
    if grey.dtype.itemsize == 2 or (grey.size and grey.max() > 255):
        grey = np.rint(np.clip(grey, 0, 65535) * (255 / 65535))
    return np.clip(grey, 0, 255).astype(np.uint8)
