"""The sources of the demo: one for each of the paper's kinds of data, and two for pre-training.

| part | stands for | documents |
|---|---|---|
| `pages` | M3W | pages of 3 to 5 pictures with running text |
| `alt` | ALIGN | a picture and a short, somewhat noisy alt text |
| `descriptions` | LTIP | a picture and two or three sentences computed from its pixels |
| `clips` | VTP | a clip of 8 frames and a sentence |
| `text` | the language model's corpus | long texts without pictures |
| `pairs` | contrastive pre-training | a picture and its name, hard negatives side by side |

All are pure functions of (seed, index). The training documents of every part show and name
training pictures only (`text` also names the held-out concepts). Those of the splits "validation"
and "test" show held-out combinations and do not depend on the seed; `text`'s are other texts of the
same kind.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.openmoji import clips, collection, pages, prose, sentences, splits
from flamingo_jax.data.openmoji.collection import Collection, Picture, caption
from flamingo_jax.errors import InputError

PARTS = ("pages", "alt", "descriptions", "clips", "text", "pairs")
SPLITS = ("train", "validation", "test")

_PAGES = 40_000  # different pages and texts of the training split
_HELD_OUT_PAGES = 500
_ALTS = 8  # texts of each picture
_DESCRIPTIONS = 4
_CLIP_TEXTS = 3
_MOVING = 200  # training pictures that appear with all six motions: 1,200 clips
_SUCCEEDING = 300  # training pictures that appear in pairs, both ways round: 300 clips

BLOCK = 128
"""`pairs` repeats no picture within the rows [128 i, 128 (i + 1)) of its training split."""
_PASSES = 1_000  # of `pairs` over the training pictures
_GROUPED = 0.4  # of each pass, as groups of one family
_GROUP = 6  # pictures of a group, at most


class Part:
    """A source of documents (`flamingo_jax.data.document.Source`).

    Attributes:
      name: "openmoji:PART/SPLIT", the start of the documents' keys.
      ordered: are the documents to be read in their order? Where it is true the order is part of
        the design (which pictures meet in a batch) and a function of (seed, index) already.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        length: int,
        items: Callable[[random.Random, int], Sequence[str | Medium]],
        media: Callable[[], Iterator[Medium]],
        ordered: bool = False,
    ) -> None:
        """`items(rng, index)` makes a document, `media()` goes through all media of the source."""
        self.name, self.ordered = name, ordered
        self._seed, self._length, self._items, self._media = seed, length, items, media

    def __len__(self) -> int:
        """How many documents there are."""
        return self._length

    def __getitem__(self, index: int) -> Document:
        """The document at `index`, 0 ≤ index < len.

        Raises:
          IndexError: beyond the end.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has {self._length} documents, no index {index}")
        rng = random.Random(f"{self.name}/{self._seed}/{index}")
        return Document(tuple(self._items(rng, index)), f"{self.name}/{index}")

    def media(self) -> Iterator[Medium]:
        """All media the documents may hold, each once: what a feature cache has to encode."""
        return self._media()


def open_part(part: str, split: str, seed: int, image_size: int) -> Part:
    """A part of the demo's data.

    Args:
      part: one of PARTS.
      split: "train", "validation" or "test".
      seed: of the training split's documents; the others are the same for all seeds.
      image_size: side of the pictures, in pixels.

    Raises:
      InputError: for another part or split, an image size out of bounds, or a missing package.
    """
    if part not in PARTS:
        raise InputError(f"openmoji has no part {part!r}; there are {', '.join(PARTS)}")
    if split not in SPLITS:
        raise InputError(f"openmoji:{part} has no split {split!r}; there are {', '.join(SPLITS)}")
    known = collection.load(image_size)
    return _MAKERS[part](known, split, seed if split == "train" else 0)


def _shown(known: Collection, split: str) -> tuple[Picture, ...]:
    """The pictures a split's documents show.

    Without raqm there are no pictures with skin tones, hence no combinations; then it is concepts.
    """
    if split == "train":
        return known.of(split)
    return known.of(split, splits.COMBINATIONS) or known.of(split, splits.CONCEPTS)


def _name(part: str, split: str) -> str:
    return f"openmoji:{part}/{split}"


def _pages(known: Collection, split: str, seed: int) -> Part:
    pool = pages.pool(_shown(known, split))
    length = _PAGES if split == "train" else _HELD_OUT_PAGES
    return Part(
        _name("pages", split),
        seed,
        length,
        lambda rng, index: pages.page(rng, pool),
        lambda: (picture.medium for picture in pool.pictures),
    )


def _captions(
    part: str, times: int, text: Callable[[random.Random, Picture], str]
) -> Callable[[Collection, str, int], Part]:
    """A part of single pictures, each with `times` different texts (one where it is held out)."""

    def make(known: Collection, split: str, seed: int) -> Part:
        shown = _shown(known, split)
        return Part(
            _name(part, split),
            seed,
            len(shown) * (times if split == "train" else 1),
            lambda rng, index: _pair(shown[index % len(shown)], rng, text),
            lambda: (picture.medium for picture in shown),
        )

    return make


def _pair(
    picture: Picture, rng: random.Random, text: Callable[[random.Random, Picture], str]
) -> tuple[Medium, str]:
    return picture.medium, text(rng, picture)


def _clips(known: Collection, split: str, seed: int) -> Part:
    made = split_clips(known, split)
    return Part(
        _name("clips", split),
        seed,
        len(made) * (_CLIP_TEXTS if split == "train" else 1),
        lambda rng, index: _told(made[index % len(made)], rng),
        lambda: (clip.medium for clip in made),
    )


def _told(clip: clips.Clip, rng: random.Random) -> tuple[Medium, str]:
    return clip.medium, clips.sentence(rng, clip)


def split_clips(known: Collection, split: str) -> list[clips.Clip]:
    """The clips of a split; the choice of pictures does not depend on a seed."""
    shown = list(_shown(known, split))
    random.Random("openmoji clips").shuffle(shown)
    if split != "train":
        return clips.one_motion_each(shown) + clips.successions(shown[: len(shown) // 2])
    moving, succeeding = shown[:_MOVING], shown[_MOVING : _MOVING + _SUCCEEDING]
    return clips.all_motions(moving) + clips.successions(succeeding)


def _text(known: Collection, split: str, seed: int) -> Part:
    pool = pages.pool(_shown(known, "train"))
    concepts = tuple(p for p in known.pictures if p.group == splits.CONCEPTS)
    length = _PAGES if split == "train" else _HELD_OUT_PAGES
    return Part(
        _name("text", split),
        seed,
        length,
        lambda rng, index: (prose.prose(rng, pool, concepts),),
        lambda: iter(()),
    )


def _pairs(known: Collection, split: str, seed: int) -> Part:
    """In training, passes over the pictures in which families stand together; else each once.

    Held-out concepts join the combinations here, so that there is a batch to be told apart.
    """
    shown = known.of(split)
    if split == "train":
        # The pictures that would begin a block and not fill it wait for another pass.
        size, passes = len(shown) - len(shown) % BLOCK or len(shown), _PASSES
    else:
        size, passes = len(shown), 1
    order = functools.lru_cache(maxsize=4)(functools.partial(_pass, shown, seed))
    return Part(
        _name("pairs", split),
        seed,
        passes * size,
        lambda rng, i: _named(shown[order(i // size)[i % size]]),
        lambda: (picture.medium for picture in shown),
        ordered=True,
    )


def _named(picture: Picture) -> tuple[Medium, str]:
    return picture.medium, caption(picture)


def _pass(shown: tuple[Picture, ...], seed: int, number: int) -> tuple[int, ...]:
    """An order of all pictures: groups of up to 6 of one family, among single pictures.

    Groups are drawn until they hold 40% of the pictures; every picture occurs once.
    """
    rng = random.Random(f"openmoji pairs/{seed}/{number}")
    families: dict[str, list[int]] = {}
    for index, picture in enumerate(shown):
        families.setdefault(picture.name.family, []).append(index)
    groups: list[list[int]] = []
    for members in families.values():
        rng.shuffle(members)
        groups += [members[i : i + _GROUP] for i in range(0, len(members), _GROUP)]
    rng.shuffle(groups)
    units, grouped = [], 0
    for group in groups:
        if len(group) > 1 and grouped < _GROUPED * len(shown):
            grouped += len(group)
            units.append(group)
        else:
            units += [[index] for index in group]
    rng.shuffle(units)
    return tuple(itertools.chain.from_iterable(units))


_MAKERS: dict[str, Callable[[Collection, str, int], Part]] = {
    "pages": _pages,
    "alt": _captions("alt", _ALTS, sentences.alt),
    "descriptions": _captions("descriptions", _DESCRIPTIONS, sentences.description),
    "clips": _clips,
    "text": _text,
    "pairs": _pairs,
}
