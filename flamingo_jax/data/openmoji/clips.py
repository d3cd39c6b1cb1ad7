"""Clips of eight frames: a picture that moves, grows or shrinks, or one that follows another.

Every chosen picture appears with every motion, so that the picture says nothing about the motion.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flamingo_jax.data.document import Medium
from flamingo_jax.data.openmoji.collection import Picture, caption

FRAMES = 8
MOTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
}
MOTION_PROMPT = "It"
"""How a clip's text that begins with the motion begins; " moves left" follows."""

_SIDE = 0.5  # of a moving picture, as a share of the frame's
_SMALLEST = 0.3  # of a growing picture, at its first frame
_MOTION_FIRST = 0.6  # of the texts begin with the motion, the others with the name
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a clip shows: one picture and a motion, or two pictures one after the other ("then")."""

    pictures: tuple[Picture, ...]
    motion: str

    @property
    def key(self) -> str:
        """ "openmoji-clip/CODE-left", "openmoji-clip/CODE-then-CODE"."""
        if self.motion == "then":
            return f"openmoji-clip/{self.pictures[0].code}-then-{self.pictures[1].code}"
        return f"openmoji-clip/{self.pictures[0].code}-{self.motion}"

    @property
    def medium(self) -> Medium:
        """The clip as documents hold it, u8[F, Y, X, 3] on white; drawn at each call."""
        return Medium(_frames(self), self.key, kind="clip")


def all_motions(pictures: Sequence[Picture]) -> list[Clip]:
    """Every picture with every motion."""
    return [Clip((picture,), motion) for picture in pictures for motion in MOTIONS]


def one_motion_each(pictures: Sequence[Picture]) -> list[Clip]:
    """A motion for each picture, all motions equally often."""
    motions = list(MOTIONS)
    return [Clip((p,), motions[i % len(motions)]) for i, p in enumerate(pictures)]


def successions(pictures: Sequence[Picture]) -> list[Clip]:
    """The pictures in pairs, each pair in both orders."""
    pairs = list(zip(pictures[::2], pictures[1::2], strict=False))
    return [
        Clip(pair, "then") for first, second in pairs for pair in ((first, second), (second, first))
    ]


def sentence(rng: random.Random, clip: Clip) -> str:
    """What happens in a clip, in words."""
    if clip.motion == "then":
        return succession_text(*clip.pictures)
    name, moves = caption(clip.pictures[0]), MOTIONS[clip.motion]
    if rng.random() < _MOTION_FIRST:
        return f"{MOTION_PROMPT} {moves}: {name}."
    return f"{name} {moves}."


def succession_text(first: Picture, second: Picture) -> str:
    """ "First a, then b." """
    return f"First {caption(first)}, then {caption(second)}."


def _frames(clip: Clip) -> np.ndarray:
    """u8[F, Y, X, 3]."""
    if clip.motion == "then":
        halves = [np.repeat(p.pixels[None], FRAMES // 2, axis=0) for p in clip.pictures]
        return np.concatenate(halves)
    pixels = clip.pictures[0].pixels
    size = len(pixels)
    frames = np.full((FRAMES, size, size, 3), 255, np.uint8)
    if clip.motion in _DIRECTIONS:
        rows, columns = _DIRECTIONS[clip.motion]
        side = round(_SIDE * size)
        small, room = _reduced(pixels, side), size - side
        # Where it stays across the motion, 0 … room: by the key, so that a clip is always the same.
        across = random.Random(clip.key).randint(0, room)
        for i in range(FRAMES):
            along = round(room * i / (FRAMES - 1))
            along = along if rows + columns > 0 else room - along
            top, left = (along, across) if rows else (across, along)
            frames[i, top : top + side, left : left + side] = small
        return frames
    for i in range(FRAMES):
        share = i / (FRAMES - 1) if clip.motion == "grow" else 1 - i / (FRAMES - 1)
        side = round(size * (_SMALLEST + (1 - _SMALLEST) * share))
        start = (size - side) // 2
        frames[i, start : start + side, start : start + side] = _reduced(pixels, side)
    return frames


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.HAMMING))
