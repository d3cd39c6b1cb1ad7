"""All pictures of the demo with what is known of each, and who may see them."""

from __future__ import annotations

import collections
import dataclasses
import functools

import numpy as np

from flamingo_jax.data.document import Medium
from flamingo_jax.data.openmoji import pictures, splits
from flamingo_jax.data.openmoji.facts import Facts
from flamingo_jax.data.openmoji.names import Name


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture.

    Attributes:
      code: its code points in hexadecimal, joined by "-".
      name: the name and its parts; `name.text` is the caption.
      facts: colours, shape and size, from the pixels.
      group: "train", "combinations" or "concepts" (see `splits`).
      split: "train", "validation" or "test".
      medium: the picture as documents hold it, u8[1, Y, X, 3], key "openmoji/CODE".
    """

    code: str
    name: Name
    facts: Facts
    group: str
    split: str
    medium: Medium

    @property
    def pixels(self) -> np.ndarray:
        """u8[Y, X, 3]."""
        return np.asarray(self.medium.data)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """The pictures, in the order of their code points."""

    pictures: tuple[Picture, ...]
    image_size: int

    def of(self, split: str, *groups: str) -> tuple[Picture, ...]:
        """The pictures of a split; of the given groups, if any are given."""
        return tuple(
            p for p in self.pictures if p.split == split and (not groups or p.group in groups)
        )

    def families(self, *split: str) -> dict[str, tuple[Picture, ...]]:
        """The pictures of each family; of the given splits, if any are given."""
        members = collections.defaultdict(list)
        for picture in self.pictures:
            if not split or picture.split in split:
                members[picture.name.family].append(picture)
        return {family: tuple(group) for family, group in members.items()}


@functools.lru_cache(maxsize=2)
def load(image_size: int) -> Collection:
    """Draws everything (some seconds); later calls of the process return the same collection.

    Raises:
      InputError: if a package is missing or `image_size` is out of bounds.
    """
    drawings = pictures.draw_all(image_size)
    return Collection(
        tuple(
            Picture(
                code=drawing.code,
                name=drawing.name,
                facts=drawing.facts,
                group=group,
                split=split,
                medium=Medium(_frozen(drawing.pixels[None]), f"openmoji/{drawing.code}"),
            )
            for drawing, (group, split) in zip(drawings, splits.assign(drawings), strict=True)
        ),
        image_size,
    )


def caption(picture: Picture) -> str:
    """The canonical text of a picture: what alt texts mostly are, and what scoring uses."""
    return picture.name.text


def _frozen(pixels: np.ndarray) -> np.ndarray:
    """Read-only, because every document with the picture shares it."""
    pixels = np.ascontiguousarray(pixels)
    pixels.setflags(write=False)
    return pixels
