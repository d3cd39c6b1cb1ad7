"""Pictures: from any encoded bytes to u8[Y, X, 3] of one size."""

from __future__ import annotations

import io
import pathlib
import stat

import numpy as np
from PIL import Image, ImageOps

from flamingo_jax.data.faults import BadRecord

RESIZES = ("pad", "crop", "squash")
MAX_PIXELS = 1 << 26  # of one picture: 8192 × 8192, 200 MB decoded
MAX_BYTES = 1 << 27  # of one encoded picture
# Those of pictures on the web and in data sets. Not among them are EPS, for which Pillow starts
# Ghostscript, and what other programs have left behind.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP"),
)
_WHITE = (255, 255, 255)


def decode(
    data: bytes | str | np.ndarray,
    size: int,
    resize: str = "pad",
    background: tuple[int, int, int] = _WHITE,
) -> np.ndarray:
    """Decodes a picture and brings it to size × size.

    Every mode of Pillow is taken: palettes, alpha, grey of 1, 8 and 16 bits, CMYK. EXIF orientation
    is applied, an animation gives its first frame, a JPEG is decoded at a reduced scale where that
    suffices.

    Args:
      data: encoded bytes, a path, or pixels u8[Y, X], u8[Y, X, 1 | 3 | 4] or u8[1, Y, X, 3].
      size: Y and X of the result.
      resize: "pad" keeps the aspect and fills up with the picture's mean colour (Flamingo v1 §4.1),
        "crop" keeps it and cuts the middle out, "squash" does not keep it.
      background: what transparent pixels are laid over, 0…255.

    Returns:
      u8[size, size, 3].

    Raises:
      BadRecord: for what is no picture, is truncated, missing, or too large.
    """
    if isinstance(data, np.ndarray):
        pixels = data[0] if data.ndim == 4 and len(data) == 1 else data
        if pixels.shape == (size, size, 3) and pixels.dtype == np.uint8:
            return pixels
        return fit(_to_rgb(_from_array(pixels), background), size, resize)
    image = _open(_read(data))
    _bound(image.size)
    try:
        # Decoding at 1/2, 1/4 or 1/8 of the scale, not below twice what is wanted.
        image.draft(None, _draft_size(image.size, size, resize))
        image.load()
        image = ImageOps.exif_transpose(image)
        return fit(_to_rgb(image, background), size, resize)
    except BadRecord:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise BadRecord("broken or truncated image", str(error)) from error


def fit(image: Image.Image, size: int, resize: str) -> np.ndarray:
    """Brings an RGB picture to u8[size, size, 3]; see `decode` for `resize`."""
    width, height = image.size
    if resize == "squash" or width == height:
        return np.asarray(_scale(image, size, size, None))
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return np.asarray(_scale(image, size, size, (left, top, left + side, top + side)))
    if resize != "pad":
        raise ValueError(f"resize is {resize!r}; one of {', '.join(RESIZES)}")
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    inner = np.asarray(_scale(image, inner_width, inner_height, None))
    padded = np.empty((size, size, 3), np.uint8)
    padded[:] = np.rint(inner.mean((0, 1)))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    padded[top : top + inner_height, left : left + inner_width] = inner
    return padded


def _scale(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None
) -> Image.Image:
    if image.size == (width, height) and box is None:
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _draft_size(stored: tuple[int, int], size: int, resize: str) -> tuple[int, int]:
    """At least so many columns and rows should be left by a reduced decoding."""
    if resize != "pad":
        return 2 * size, 2 * size
    longest = max(stored)
    return max(1, 2 * size * stored[0] // longest), max(1, 2 * size * stored[1] // longest)


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
