"""What a picture's pixels say: its two main colours, its shape and its size.

The facts are computed, never looked up by name: a description of a picture nobody has named is as
true as any other.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

COLOURS = (
    "black",
    "white",
    "grey",
    "brown",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
)
SHAPES = ("wide", "tall", "square")
SIZES = ("small", "large")

# Examples of each colour; a pixel takes the name of the nearest one in CIELAB.
_EXAMPLES = {
    "black": "000000 282828 3f3f3f",
    "white": "ffffff",
    "grey": "6a6a6a 9b9b9a bdbdbd d0cfce e2e2e2",
    "brown": "6a462f 8b5a2b a57939 c19a65 debb90",
    "red": "d22f27 ea5a47 781e32 b00000",
    "orange": "e27022 f1b31c f4aa41 ff8c00",
    "yellow": "fcea2b fff2a0 e0d020",
    "green": "b1cc33 5c9e31 186648 30b050",
    "blue": "92d3f5 61b2e4 1e50a0 2060e0",
    "purple": "b399c8 8967aa 5e2b97",
    "pink": "ffa7c0 e67a94 fadcbc ff69b4",
}
_SECOND = 0.12  # the second colour is named where it covers this share of the counted area
_LONG = 1.25  # sides whose ratio exceeds this are wide or tall
_FEW = 8  # with fewer pixels than this, count less strictly
_LARGE = 0.5  # a bounding box of at least this share of the square is large


@dataclasses.dataclass(frozen=True)
class Facts:
    """One picture's facts: `colours` (one or two, the main one first), `shape`, `size`."""

    colours: tuple[str, ...]
    shape: str
    size: str


def measure(pixels: np.ndarray) -> list[Facts]:
    """The facts of pictures of flat colours on a white ground.

    A colour's area is counted where a 5 × 5 neighbourhood has one colour, so that the outlines
    count for nothing (where nothing is left, as in line drawings, all equal neighbours count).
    The ground, i.e. the white that is connected with the border, does not count, and white inside
    outlines counts half: a wheel shows the ground between its spokes.

    Args:
      pixels: u8[B, 128, 128, 3].
    """
    codes = pixels[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes = (codes << 8) | pixels[..., channel]  # u32[B, 128, 128], 0xRRGGBB
    ground = _ground(codes == 0xFFFFFF)  # bool[B, 64, 64], from here on every second pixel
    names = _classes()[_index(codes[:, ::2, ::2])]
    thick, thin = _flat(codes)
    facts = []
    for row in range(len(pixels)):
        for counted in (thick[row] & ~ground[row], thin[row] & ~ground[row], ~ground[row]):
            areas = np.bincount(names[row][counted], minlength=len(COLOURS)).astype(np.float64)
            if areas.sum() >= _FEW:
                break
        areas[COLOURS.index("white")] /= 2
        facts.append(Facts(_main_colours(areas), *_extent(ground[row])))
    return facts


def _main_colours(areas: np.ndarray) -> tuple[str, ...]:
    order = np.argsort(-areas, kind="stable")[:2]
    second = areas[order[1]] >= max(_SECOND * areas.sum(), 1)
    return tuple(COLOURS[i] for i in order[: 1 + second])


def _extent(ground: np.ndarray) -> tuple[str, str]:
    """Shape and size from the box around everything that is not ground: bool[y, x]."""
    rows, columns = np.nonzero(~ground.all(1))[0], np.nonzero(~ground.all(0))[0]
    if not len(rows):
        return "square", "small"
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    shape = "wide" if width > _LONG * height else "tall" if height > _LONG * width else "square"
    return shape, "large" if height * width >= _LARGE * ground.size else "small"


def _flat(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a 5 × 5 and where a 2 × 2 neighbourhood has one colour: bool[B, 64, 64] each."""
    padded = np.pad(codes, ((0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = codes.shape[1:]

    def at(row: int, column: int) -> np.ndarray:
        return padded[:, row + 2 : row + 2 + height : 2, column + 2 : column + 2 + width : 2]

    centre = at(0, 0)
    thick = np.ones(centre.shape, bool)
    for row, column in ((-2, -2), (-2, 2), (2, -2), (2, 2)):
        thick &= at(row, column) == centre
    return thick, (at(0, 1) == centre) & (at(1, 0) == centre)


def _ground(white: np.ndarray) -> np.ndarray:
    """The white connected with the border, bool[B, 64, 64], from bool[B, 128, 128].

    Works on 2 × 2 blocks (a block with any ink is a wall, so that thin lines stay closed). A row of
    64 blocks is one 64-bit word, and all pictures are flooded at once, a block further each turn.
    """
    blocks = white[:, ::2, ::2] & white[:, 1::2, ::2] & white[:, ::2, 1::2] & white[:, 1::2, 1::2]
    border = np.zeros((64, 64), bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    free, one = _words(blocks), np.uint64(1)
    reached = free & _words(border)
    while True:
        further = reached | (reached << one) | (reached >> one)
        further[:, 1:] |= reached[:, :-1]
        further[:, :-1] |= reached[:, 1:]
        further &= free
        if np.array_equal(further, reached):
            break
        reached = further
    octets = np.ascontiguousarray(reached)[..., None].astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little").astype(bool)


def _words(bits: np.ndarray) -> np.ndarray:
    """bool[..., 64] → u64[...], column 0 the lowest bit."""
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")[..., 0].astype(np.uint64)


def _index(codes: np.ndarray) -> np.ndarray:
    """u32[...] 0xRRGGBB → the index in a table of 32 × 32 × 32 colours."""
    return ((codes >> 9) & 0x7C00) | ((codes >> 6) & 0x3E0) | ((codes >> 3) & 0x1F)


@functools.cache
def _classes() -> np.ndarray:
    """u8[32768]: the colour's index of each coarse RGB value, by the nearest example in CIELAB."""
    levels = np.arange(32) * 8 + 4.0
    levels[0], levels[-1] = 0.0, 255.0
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    examples, owners = [], []
    for owner, name in enumerate(COLOURS):
        for code in _EXAMPLES[name].split():
            examples.append([int(code[i : i + 2], 16) for i in (0, 2, 4)])
            owners.append(owner)
    table, known = _lab(grid), _lab(np.array(examples, np.float64))
    nearest = ((table[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    return np.array(owners, np.uint8)[nearest]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """f64[..., 3] sRGB 0…255 → CIELAB (CIE 15:2004, D65)."""
    x = rgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1
    )
