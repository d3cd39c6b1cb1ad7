"""Augmentation of pictures and clips: one affine map of the plane and one of the colours.

Scale and shift are one resampling; brightness, contrast, saturation and hue are one 3×4 matrix on
RGB, in this order: hue, saturation, contrast, brightness. Hue turns the plane of I and Q in YIQ,
which keeps luma, rather than HSV's angle; contrast is about the mean luma of the whole clip.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class AugmentSpec:
    """How far each property may be drawn from what it is; the default changes nothing.

    Attributes:
      flip: probability of a horizontal flip.
      brightness: ± added, as a share of the range.
      contrast: ± factor around 1.
      saturation: ± factor around 1.
      hue: ± turns.
      scale: the range that the picture's size is drawn from, 1 = as it is.
      shift: ± share of a side, for each direction.
    """

    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0

    @property
    def identity(self) -> bool:
        """Does it change nothing, whatever is drawn?"""
        amounts = (self.flip, self.brightness, self.contrast, self.saturation, self.hue, self.shift)
        return not any(amounts) and tuple(self.scale) == (1.0, 1.0)


def augment(frames: np.ndarray, spec: AugmentSpec, rng: np.random.Generator) -> np.ndarray:
    """Augments all frames of a clip alike; a pure function of the generator's state.

    What comes into view by a smaller scale or a shift is filled with the mean colour of the border.

    Args:
      frames: u8[F, Y, X, 3].
      spec: the ranges to draw from.
      rng: eight numbers are drawn from it, whatever the spec.

    Returns:
      u8[F, Y, X, 3]; the input itself if the spec changes nothing.
    """
    if spec.identity or not len(frames):
        return frames
    flip, brightness, contrast, saturation, hue, scale, down, right = rng.random(8)
    if flip < spec.flip:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    colours = _colour_matrix(
        spec, frames, *(2 * u - 1 for u in (brightness, contrast, saturation, hue))
    )
    smallest, largest = spec.scale
    size = smallest + (largest - smallest) * scale
    height, width = frames.shape[1:3]
    top, bottom, upper, lower = _span(height, size, spec.shift * (2 * down - 1))
    left, beyond, nearer, farther = _span(width, size, spec.shift * (2 * right - 1))
    box = (nearer, upper, farther, lower)

    out = np.empty_like(frames)
    if (top, bottom, left, beyond) != (0, height, 0, width):
        out[:] = _coloured(_border_mean(frames), colours)
    if bottom <= top or beyond <= left:
        return out
    shape = (beyond - left, bottom - top)
    for frame, result in zip(frames, out, strict=True):
        image = Image.fromarray(frame).resize(shape, Image.Resampling.BILINEAR, box=box)
        if colours is not None:
            image = image.convert("RGB", colours)
        result[top:bottom, left:beyond] = np.asarray(image)
    return out


def _span(side: int, scale: float, shift: float) -> tuple[int, int, float, float]:
    """Along one side: pixels first…stop of the result show start…end of the input.

    The result's coordinate x shows the input's side/2 + (x - side/2 - shift · side) / scale.
    """
    centre = side / 2 + shift * side
    first = max(0, math.ceil(centre - scale * side / 2))
    stop = min(side, math.floor(centre + scale * side / 2))
    source = (side / 2 + (x - centre) / scale for x in (first, stop))
    start, end = (min(max(u, 0.0), float(side)) for u in source)
    return first, stop, start, end


def _colour_matrix(
    spec: AugmentSpec,
    frames: np.ndarray,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> tuple[float, ...] | None:
    """The rows of the 3×4 matrix for Pillow's `convert`; the draws lie in [-1, 1)."""
    if not (spec.brightness or spec.contrast or spec.saturation or spec.hue):
        return None
    matrix = np.eye(3)
    if spec.hue:
        angle = 2 * math.pi * spec.hue * hue
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = _FROM_YIQ @ turn @ _TO_YIQ
    keep = 1 + spec.saturation * saturation
    matrix = (keep * np.eye(3) + (1 - keep) * _LUMA) @ matrix
    factor = 1 + spec.contrast * contrast
    offset = 255 * spec.brightness * brightness
    if spec.contrast:
        # Neither hue nor saturation changes luma, so that the mean is that of the input.
        offset += (1 - factor) * float(_mean_colour(frames) @ _LUMA)
    rows = np.column_stack([factor * matrix, np.full(3, offset)])
    return tuple(rows.ravel().tolist())


def _coloured(colour: np.ndarray, matrix: tuple[float, ...] | None) -> np.ndarray:
    """One colour f64[3] under `_colour_matrix`, as u8[3]."""
    if matrix is not None:
        rows = np.reshape(matrix, (3, 4))
        colour = rows[:, :3] @ colour + rows[:, 3]
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _mean_colour(frames: np.ndarray) -> np.ndarray:
    """f64[3] over u8[..., Y, X, 3]; sums of integers do not depend on the order of adding."""
    width = frames.shape[-2]
    # Adding whole rows first is eight times faster than adding pixels of three numbers.
    by_column = frames.reshape(-1, width * 3).sum(0, dtype=np.uint64)
    return by_column.reshape(width, 3).sum(0) / (frames.size // 3)


def _border_mean(frames: np.ndarray) -> np.ndarray:
    """f64[3] the mean colour of the frames' outermost pixels."""
    upright = frames[:, :, (0, -1)]
    across = frames[:, (0, -1)]
    total = _mean_colour(upright) * upright.size + _mean_colour(across) * across.size
    return total / (upright.size + across.size)
