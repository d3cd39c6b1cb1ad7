"""Long plain texts for the language model's own stage, from the sentences the pictures have later.

A text is a row of passages: pages and descriptions without their pictures, lists of names,
glossaries, clips told in words, and lists of letters to be recalled. Names of held-out concepts
occur in lists; nothing is said about how they look.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flamingo_jax.data.openmoji import clips
from flamingo_jax.data.openmoji.collection import Picture, caption
from flamingo_jax.data.openmoji.pages import LETTERS, Pool, page
from flamingo_jax.data.openmoji.sentences import alt, colours, description
from flamingo_jax.data.openmoji.splits import TRAIN

_LEAST_WORDS = 220  # words and marks; at least as many tokens for any tokenizer that splits words
_SHARES = {"page": 7, "descriptions": 6, "names": 8, "glossary": 3, "clips": 1, "recall": 2}


def prose(rng: random.Random, pool: Pool, concepts: Sequence[Picture]) -> str:
    """A text of at least 220 words and marks.

    Args:
      rng: all choices come from it.
      pool: the training pictures, which are described and named.
      concepts: pictures that are named only.
    """
    passages: list[str] = []
    words = 0
    while words < _LEAST_WORDS:
        passage = _passage(rng, pool, concepts)
        passages.append(passage)
        words += len(passage.split()) + sum(passage.count(mark) for mark in ",.:=")
    return "\n".join(passages)


def _passage(rng: random.Random, pool: Pool, concepts: Sequence[Picture]) -> str:
    kind = rng.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
    pictures = pool.pictures
    if kind == "page":
        return " ".join(item for item in page(rng, pool) if isinstance(item, str))
    if kind == "descriptions":
        return " ".join(description(rng, p) for p in rng.sample(pictures, 2))
    if kind == "names":
        named = [_any(rng, pictures, concepts) for _ in range(6)]
        return "\n".join(caption(p) if p.split != TRAIN else alt(rng, p) for p in named)
    if kind == "glossary":
        return "\n".join(
            f"{caption(p)}: mostly {colours(p)}, {p.facts.shape}, {p.facts.size}."
            for p in rng.sample(pictures, 4)
        )
    if kind == "clips":
        told = clips.one_motion_each(rng.sample(pictures, 3))
        rng.shuffle(told)
        told += clips.successions(rng.sample(pictures, 2))[:1]
        return " ".join(clips.sentence(rng, clip) for clip in told)
    return _recall(rng, pictures, concepts)


def _recall(rng: random.Random, pictures: Sequence[Picture], concepts: Sequence[Picture]) -> str:
    """Letters stand for names, and some are asked again: what was read must be looked up."""
    names = [caption(_any(rng, pictures, concepts)) for _ in range(4)]
    letters = rng.sample(LETTERS, len(names))
    told = [f"{letter} = {name}." for letter, name in zip(letters, names, strict=True)]
    again = rng.sample(told, 3)
    return " ".join([*told, "Again:", *again])


def _any(rng: random.Random, pictures: Sequence[Picture], concepts: Sequence[Picture]) -> Picture:
    """Any of both, all equally often."""
    index = rng.randrange(len(pictures) + len(concepts))
    return pictures[index] if index < len(pictures) else concepts[index - len(pictures)]
