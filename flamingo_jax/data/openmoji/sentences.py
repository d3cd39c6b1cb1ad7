"""Sentences about single pictures; the words of alt texts, descriptions, pages and plain text.

All are functions of a random generator and pictures. Names come first in about half of the
sentences and colours in the other half, so that either can be asked for without giving the other.
"""

from __future__ import annotations

import random

from flamingo_jax.data.openmoji.collection import Picture, caption

COLOUR_PROMPT = "The main colour is"
"""How a description that begins with the colour begins; the colour follows after a space."""

_ALT_PLAIN = 0.8  # of the alt texts are the name alone


def alt(rng: random.Random, picture: Picture) -> str:
    """An alt text as pages of the web have it: mostly the name, some noise around it."""
    name, colour = caption(picture), picture.facts.colours[0]
    if rng.random() < _ALT_PLAIN:
        return name
    return rng.choice(
        (
            f"{name} icon",
            f"{name} emoji",
            f"image: {name}",
            f"a drawing of {name}",
            f"{name} ({colour})",
            f"{colour} picture, {name}",
        )
    )


def colours(picture: Picture) -> str:
    """ "red", or "red and white", the main colour first."""
    return " and ".join(picture.facts.colours)


def colours_first(picture: Picture) -> str:
    """ "The main colour is red, then white." """
    return f"{COLOUR_PROMPT} {', then '.join(picture.facts.colours)}."


def description(rng: random.Random, picture: Picture) -> str:
    """Two or three sentences: name, colours, shape, size, as the pixels have them."""
    name, facts = caption(picture), picture.facts
    if rng.random() < 0.5:
        lead = rng.choice(("It shows", "This is", "We see", "The name is"))
        body = rng.choice(
            (
                f"It is {facts.shape} and {facts.size}.",
                f"It is {facts.size}.",
                f"Its shape is {facts.shape}.",
            )
        )
        return f"{colours_first(picture)} {body} {lead} {name}."
    return rng.choice(
        (
            f"{name}. It is mostly {colours(picture)}. It is {facts.shape} and {facts.size}.",
            f"This is {name}. {colours_first(picture)} Its shape is {facts.shape}.",
            f"A {facts.size} drawing of {name}. It is {facts.shape}, mostly {colours(picture)}.",
            f"We see {name}, mostly {colours(picture)}. It is {facts.size}.",
        )
    )


PLAIN_VOICE = "{name}."
VOICES = (
    PLAIN_VOICE,
    "{number}. {name}.",
    "This is {name}.",
    "Here we see {name}.",
    "Picture {number}: {name}.",
    "Name: {name}. Colour: {colour}.",
    "Colour: {colour}. Name: {name}.",
    "{name}, mostly {colours}.",
    COLOUR_PROMPT + " {colour}. It is {name}.",
    "{name}: {shape} and {size}.",
)
"""How a page introduces its pictures; a page keeps to one, so that its earlier pictures tell."""


def introduce(voice: str, number: int, picture: Picture) -> str:
    """The text of a page's picture; `number` counts from 1."""
    facts = picture.facts
    return voice.format(
        name=caption(picture),
        number=number,
        colour=facts.colours[0],
        colours=colours(picture),
        shape=facts.shape,
        size=facts.size,
    )


def comparison(rng: random.Random, picture: Picture, earlier: Picture) -> str:
    """A sentence that sets a picture against an earlier one of its page."""
    this, that, name = picture.facts, earlier.facts, caption(earlier)
    if rng.random() < 0.5:
        if this.colours[0] == that.colours[0]:
            return f"Like {name}, it is mostly {this.colours[0]}."
        return f"Unlike {name}, it is mostly {this.colours[0]}."
    return f"{'Like' if this.shape == that.shape else 'Unlike'} {name}, it is {this.shape}."
