"""Pages of several pictures with running text: the demo's stand-in for scraped web pages.

A page is a heading, then each picture followed by its text. Five kinds: galleries of anything,
series of one family, pages with a theme, pages that show a picture twice, and pages that sort
pictures into two boxes with letters of their own. In all of them the page so far helps with the
next picture: by the voice it keeps, the family, the theme, the repeated name or the boxes' letters.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable, Sequence

from flamingo_jax.data.document import Medium
from flamingo_jax.data.openmoji.collection import Picture, caption
from flamingo_jax.data.openmoji.sentences import PLAIN_VOICE, VOICES, comparison, introduce

_PLAIN_SHARE = 0.3  # of the pages just give the names
_COMPARISON_SHARE = 0.2  # of the pictures, but a page's first, are compared with an earlier one
LETTERS = "ABCDEFGHKLMNPRSTUVXZ"
_LEAST = 3  # pictures of a page, of a family for a series, of a theme


@dataclasses.dataclass(frozen=True)
class Pool:
    """The pictures pages are made of: all, those of a family, those of a theme."""

    pictures: tuple[Picture, ...]
    families: tuple[tuple[str, tuple[Picture, ...]], ...]
    themes: tuple[tuple[str, tuple[Picture, ...]], ...]


def pool(pictures: Sequence[Picture]) -> Pool:
    """Groups pictures by family, and by themes: last words ("face"), colours, flags."""
    families, themes = collections.defaultdict(list), collections.defaultdict(list)
    for picture in pictures:
        name = picture.name
        families[name.family].append(picture)
        themes[f"{picture.facts.colours[0]} things"].append(picture)
        if name.flag:
            themes["flags"].append(picture)
        elif not name.tones and not name.gender and " " in name.base:
            themes[name.base.rsplit(" ", 1)[1]].append(picture)
    return Pool(tuple(pictures), _large(families), _large(themes))


def _large(groups: dict[str, list[Picture]]) -> tuple[tuple[str, tuple[Picture, ...]], ...]:
    return tuple((key, tuple(group)) for key, group in groups.items() if len(group) >= _LEAST)


def page(rng: random.Random, pool: Pool) -> tuple[str | Medium, ...]:
    """A page: a heading (some have none), then picture, text, picture, text, …"""
    kinds: tuple[tuple[_Kind, int], ...] = (
        (_gallery, 30),
        (_series if pool.families else _gallery, 30),
        (_theme if pool.themes else _gallery, 15),
        (_again, 15),
        (_boxes, 10),
    )
    kind = rng.choices([k for k, _ in kinds], [weight for _, weight in kinds])[0]
    heading, rows = kind(rng, pool)
    items: list[str | Medium] = [heading] if heading else []
    for picture, text in rows:
        items += [picture.medium, text]
    return tuple(items)


_Rows = list[tuple[Picture, str]]
_Kind = Callable[[random.Random, Pool], tuple[str, _Rows]]


def _count(rng: random.Random) -> int:
    return rng.randint(_LEAST, 5)


def _gallery(rng: random.Random, pool: Pool) -> tuple[str, _Rows]:
    chosen = rng.sample(pool.pictures, _count(rng))
    heading = rng.choice(("", "Gallery.", "Some pictures.", f"{len(chosen)} pictures."))
    return heading, _tell(rng, chosen)


def _series(rng: random.Random, pool: Pool) -> tuple[str, _Rows]:
    family, members = rng.choice(pool.families)
    chosen = rng.sample(members, min(_count(rng), len(members)))
    heading = rng.choice(
        (f"Series: {family}.", f"{len(chosen)} pictures, {family}.", f"Kinds: {family}.")
    )
    return heading, _tell(rng, chosen)


def _theme(rng: random.Random, pool: Pool) -> tuple[str, _Rows]:
    theme, members = rng.choice(pool.themes)
    chosen = rng.sample(members, min(_count(rng), len(members)))
    heading = rng.choice((f"Theme: {theme}.", f"A page about {theme}.", f"{theme}."))
    return heading, _tell(rng, chosen)


def _again(rng: random.Random, pool: Pool) -> tuple[str, _Rows]:
    """The last picture has been on the page before, and so has its name."""
    chosen = rng.sample(pool.pictures, _count(rng) - 1)
    rows = _tell(rng, chosen)
    seen = rng.choice(chosen)
    rows.append((seen, f"Again {caption(seen)}."))
    return rng.choice(("", "One twice.", "Do you remember?")), rows


def _boxes(rng: random.Random, pool: Pool) -> tuple[str, _Rows]:
    """Sorts by a property into two boxes; only the page tells which letter stands for what."""
    sort = rng.choice((_by_colour, _by_shape, _by_person))
    groups: dict[bool, list[Picture]] = {False: [], True: []}
    property_ = sort(rng, pool)
    for picture in rng.sample(pool.pictures, min(60, len(pool.pictures))):
        group = groups[property_(picture)]
        if len(group) < _LEAST:
            group.append(picture)
    chosen = groups[False] + groups[True]
    rng.shuffle(chosen)
    letters = dict(zip((False, True), rng.sample(LETTERS, 2), strict=True))
    form = rng.choice(("Box {box}. {name}.", "{name}. Box {box}.", "{box}: {name}."))
    rows = [(p, form.format(box=letters[property_(p)], name=caption(p))) for p in chosen[:5]]
    return rng.choice(("Two boxes.", "Sort them.")), rows


def _by_colour(rng: random.Random, pool: Pool) -> Callable[[Picture], bool]:
    colour = rng.choice(pool.pictures).facts.colours[0]
    return lambda picture: picture.facts.colours[0] == colour


def _by_shape(rng: random.Random, pool: Pool) -> Callable[[Picture], bool]:
    shape = rng.choice(pool.pictures).facts.shape
    return lambda picture: picture.facts.shape == shape


def _by_person(rng: random.Random, pool: Pool) -> Callable[[Picture], bool]:
    gender = rng.choice(pool.pictures).name.gender
    return lambda picture: picture.name.gender == gender


def _tell(rng: random.Random, chosen: Sequence[Picture]) -> _Rows:
    """Introduces all in one voice, and compares some with an earlier one."""
    voice = PLAIN_VOICE if rng.random() < _PLAIN_SHARE else rng.choice(VOICES)
    rows = []
    for number, picture in enumerate(chosen, 1):
        text = introduce(voice, number, picture)
        if number > 1 and rng.random() < _COMPARISON_SHARE:
            text = f"{text} {comparison(rng, picture, rng.choice(chosen[: number - 1]))}"
        rows.append((picture, text))
    return rows
