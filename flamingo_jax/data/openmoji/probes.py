"""Questions about held-out pictures: what the demo's evaluation asks, as data without a model.

Every item is a choice, answered by the likeliest of its choices, and has a control: the same
question with another item's picture. What a model gets right with wrong pictures it owes to the
text.
The sets depend on (split, seed); the pictures held out do not depend on the seed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from flamingo_jax.data.document import Medium
from flamingo_jax.data.openmoji import clips
from flamingo_jax.data.openmoji.collection import Collection, Picture, caption
from flamingo_jax.data.openmoji.facts import COLOURS
from flamingo_jax.data.openmoji.sentences import COLOUR_PROMPT, PLAIN_VOICE, introduce
from flamingo_jax.data.openmoji.splits import COMBINATIONS, CONCEPTS

CHOICES = 16
GALLERY = 64  # names among which a picture's is sought
SHOTS = (0, 2, 4, 8)
NEW_FORMAT = "Question: what is it? Answer:"
"""A prompt that no training text contains."""

_LARGE_FAMILY = 8  # members from which a family is asked about
_LEAST_FAMILY_SHOTS = 3  # training pictures of a family whose series is continued


@dataclasses.dataclass(frozen=True)
class Item:
    """A choice about a picture or a clip.

    The model reads the shots, each a medium and its text, then `medium`, then `prompt` + a choice.

    Attributes:
      medium: what is asked about.
      control: another item's medium.
      shots: media with their texts, in the order they are read.
      prompt: the text between the medium and the choices; "" or a text without a last space.
      choices: different continuations of the prompt; they begin with a space unless it is "".
      answer: the index of the true one.
    """

    medium: Medium
    control: Medium
    shots: tuple[tuple[Medium, str], ...]
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class Probe:
    """A set of items.

    Attributes:
      key: its name in results, e.g. "combinations/random names".
      items: the questions.
      chance: the share that is right without looking: the mean of 1 / choices, or the share of the
        most frequent answer where all items have the same choices and their answers are uneven.
      ends: does a choice end its text, so that the end of the chunk may be scored with it?
    """

    key: str
    items: tuple[Item, ...]
    chance: float
    ends: bool = True


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Pictures to be found by name, each in a gallery of 64 names of its own.

    Attributes:
      media: the pictures.
      galleries: for each picture its names; the first is the true one.
    """

    media: tuple[Medium, ...]
    galleries: tuple[tuple[str, ...], ...]


def naming(known: Collection, split: str, seed: int, group: str) -> Probe:
    """Which of 16 names is it? The others are drawn from the names of all pictures."""
    rng = random.Random(f"naming/{split}/{seed}/{group}")
    asked = _shuffled(rng, known.of(split, group))
    items = [
        _Draft(p.medium, "", *_among(rng, caption(p), _others(rng, known.pictures, p, CHOICES)))
        for p in asked
    ]
    return _probe(f"{group}/random names", rng, items)


def within_family(known: Collection, split: str, seed: int) -> Probe:
    """Which of up to 16 names of its own family is it? Families with at least 8 members."""
    rng = random.Random(f"family/{split}/{seed}")
    families = known.families()
    items = []
    for picture in _shuffled(rng, known.of(split, COMBINATIONS)):
        members = families[picture.name.family]
        if len(members) >= _LARGE_FAMILY:
            others = _others(rng, members, picture, min(CHOICES, len(members)))
            items.append(_Draft(picture.medium, "", *_among(rng, caption(picture), others)))
    return _probe(f"{COMBINATIONS}/within family", rng, items)


def first_colour(known: Collection, split: str, seed: int, group: str) -> Probe:
    """What is the main colour? In the words descriptions begin with, the name not being given.

    Meant for concepts: half of the combinations are mostly brown.
    """
    rng = random.Random(f"colour/{split}/{seed}/{group}")
    choices = tuple(f" {colour}" for colour in COLOURS)
    items = [
        _Draft(p.medium, COLOUR_PROMPT, choices, COLOURS.index(p.facts.colours[0]))
        for p in _shuffled(rng, known.of(split, group))
    ]
    return _probe(f"{group}/first colour", rng, items, ends=False)


def motion(known: Collection, split: str, seed: int) -> Probe:
    """Which of six motions does the clip show? The pictures are held out, the name is not given."""
    rng = random.Random(f"motion/{split}/{seed}")
    choices = tuple(f" {text}" for text in clips.MOTIONS.values())
    items = [
        _Draft(clip.medium, clips.MOTION_PROMPT, choices, list(clips.MOTIONS).index(clip.motion))
        for clip in clips.one_motion_each(_shuffled(rng, known.of(split)))
    ]
    return _probe("clips/motion", rng, items, ends=False)


def succession(known: Collection, split: str, seed: int) -> Probe:
    """Which of two pictures came first? Both orders are offered; the pictures are combinations."""
    rng = random.Random(f"succession/{split}/{seed}")
    shown = _shuffled(rng, known.of(split, COMBINATIONS))
    items = []
    for first, second in zip(shown[::2], shown[1::2], strict=False):
        truth, other = (
            clips.succession_text(first, second),
            clips.succession_text(second, first),
        )
        medium = clips.Clip((first, second), "then").medium
        items.append(_Draft(medium, "", *_among(rng, truth, [other])))
    return _probe("clips/succession", rng, items)


def new_format(known: Collection, split: str, seed: int, group: str, shots: int) -> Probe:
    """Which of 16 names, asked in words that training has never used, after so many examples?

    The examples are training pictures; with more shots the first ones stay the same.
    """
    rng = random.Random(f"new format/{split}/{seed}/{group}")
    train = known.of("train")
    items = []
    for picture in _shuffled(rng, known.of(split, group)):
        choices, answer = _among(
            rng, f" {caption(picture)}", [f" {n}" for n in _others(rng, known.pictures, picture)]
        )
        examples = rng.sample(train, max(SHOTS))[:shots]
        told = tuple((e.medium, f"{NEW_FORMAT} {caption(e)}") for e in examples)
        items.append(_Draft(picture.medium, NEW_FORMAT, choices, answer, told))
    return _probe(f"{group}/new format, {shots} shots", rng, items)


def series(known: Collection, split: str, seed: int, shots: int) -> Probe:
    """Which of up to 16 names of its family, after so many of the family in the pages' own format?

    Examples and question are a page of the kind "series" without its heading: trained, so that
    a gain with the number of shots is one from the context and not from learning a format. (Pages
    have up to 5 pictures; 8 shots are more than a page ever had.)
    """
    rng = random.Random(f"series/{split}/{seed}")
    families, trained = known.families(), known.families("train")
    items = []
    for picture in _shuffled(rng, known.of(split, COMBINATIONS)):
        members = families[picture.name.family]
        mates = trained.get(picture.name.family, ())
        if len(members) < _LARGE_FAMILY or len(mates) < _LEAST_FAMILY_SHOTS:
            continue
        others = [f"{n}." for n in _others(rng, members, picture, min(CHOICES, len(members)))]
        choices, answer = _among(rng, f"{caption(picture)}.", others)
        examples = rng.sample(mates, min(max(SHOTS), len(mates)))[:shots]
        told = tuple((e.medium, introduce(PLAIN_VOICE, 1, e)) for e in examples)
        items.append(_Draft(picture.medium, "", choices, answer, told))
    return _probe(f"{COMBINATIONS}/series, {shots} shots", rng, items)


def retrieval(
    known: Collection, split: str, seed: int, group: str, rivals: str | None = None
) -> Retrieval:
    """Which of 64 names is it?

    Args:
      known: the pictures.
      split: whose pictures of `group` are sought.
      seed: of the galleries.
      group: COMBINATIONS or CONCEPTS.
      rivals: the other names are drawn from the names of all pictures, as for `naming`; or of
        one group, whatever the split: a name of which no picture was trained has then no rival
        that was trained.
    """
    rng = random.Random(f"retrieval/{split}/{seed}/{group}/{rivals}")
    pool = [p for p in known.pictures if rivals in (None, p.group)]
    asked = _shuffled(rng, known.of(split, group))
    galleries = [(caption(p), *_others(rng, pool, p, GALLERY)) for p in asked]
    return Retrieval(tuple(p.medium for p in asked), tuple(galleries))


def all_probes(known: Collection, split: str, seed: int) -> tuple[Probe, ...]:
    """Every probe of a split, those with shots once for each number of SHOTS."""
    probes = [naming(known, split, seed, group) for group in (COMBINATIONS, CONCEPTS)]
    probes.append(within_family(known, split, seed))
    probes.append(first_colour(known, split, seed, CONCEPTS))
    for group in (COMBINATIONS, CONCEPTS):
        probes += [new_format(known, split, seed, group, shots) for shots in SHOTS]
    probes += [series(known, split, seed, shots) for shots in SHOTS]
    return (*probes, motion(known, split, seed), succession(known, split, seed))


@dataclasses.dataclass(frozen=True)
class _Draft:
    """An item that has no control yet."""

    medium: Medium
    prompt: str
    choices: tuple[str, ...]
    answer: int
    shots: tuple[tuple[Medium, str], ...] = ()


def _probe(key: str, rng: random.Random, drafts: Sequence[_Draft], ends: bool = True) -> Probe:
    """Gives every draft the medium of another one."""
    others = _derangement(rng, len(drafts))
    items = tuple(
        Item(d.medium, drafts[other].medium, d.shots, d.prompt, d.choices, d.answer)
        for d, other in zip(drafts, others, strict=True)
    )
    return Probe(key, items, _chance(items), ends)


def _chance(items: Sequence[Item]) -> float:
    if not items:
        return 0.0
    guess = sum(1 / len(item.choices) for item in items) / len(items)
    if any(item.choices != items[0].choices for item in items):
        return guess
    answers = [item.answer for item in items]
    return max(answers.count(answer) for answer in answers) / len(answers)


def _derangement(rng: random.Random, count: int) -> list[int]:
    """A permutation that leaves nothing in place: each item to the next one of a random circle."""
    if count < 2:
        return list(range(count))
    circle = rng.sample(range(count), count)
    result = [0] * count
    for here, there in zip(circle, circle[1:] + circle[:1], strict=True):
        result[here] = there
    return result


def _shuffled(rng: random.Random, pictures: Sequence[Picture]) -> list[Picture]:
    return rng.sample(pictures, len(pictures))


def _others(
    rng: random.Random, pictures: Sequence[Picture], truth: Picture, count: int = CHOICES
) -> list[str]:
    """The names of `count - 1` different pictures other than `truth`."""
    names = [caption(p) for p in rng.sample(pictures, min(count, len(pictures))) if p is not truth]
    return names[: count - 1]


def _among(rng: random.Random, truth: str, others: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The choices in a random order, and where the truth is."""
    choices = [truth, *others]
    rng.shuffle(choices)
    return tuple(choices), choices.index(truth)
