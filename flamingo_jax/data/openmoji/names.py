"""Natural names from the short codes of the `emoji` package, and what they are made of.

":man_teacher_medium_skin_tone:" → "man teacher, medium skin tone": the attributes that pictures
share (who, which skin tone) stay words of their own, so that a name never read before is a new
order of known words.
"""

from __future__ import annotations

import dataclasses
import re

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

_TONE = re.compile(r"_(medium-light|medium-dark|light|medium|dark)_skin_tone")
_LOOK = re.compile(r"^(man|woman|person)_(bald|beard|blond_hair|curly_hair|red_hair|white_hair)$")
_PAIR = re.compile(r"^(couple_with_heart|kiss)_(man|woman|person)_(man|woman|person)$")
_FAMILY = re.compile(
    r"^family_((?:man|woman|adult|boy|girl|child)(?:_(?:man|woman|adult|boy|girl|child))*)$"
)
_PEOPLE = {
    "man": "man",
    "woman": "woman",
    "person": "person",
    "men": "man",
    "women": "woman",
    "people": "person",
    "older_person": "person",
    "mermaid": "woman",
    "merman": "man",
    "merperson": "person",
    "mrs.": "woman",
    "santa": "man",
    "mx": "person",
}
_FLAGS_WITH_ARTICLE = re.compile(
    r"^(United|Isle|Central African|Dominican|European|U\.S\.|.*Islands$|.*Territor.*|"
    r"Bahamas|Gambia|Maldives|Netherlands|Philippines|Comoros|Seychelles)"
)
_ALIKE = {"old_man": "old", "old_woman": "old", "older_person": "old"}


@dataclasses.dataclass(frozen=True)
class Name:
    """A picture's name and its parts.

    Attributes:
      text: the whole name, as captions have it.
      base: the name without skin tones; "man teacher".
      family: the name without tones and without man, woman, person; "teacher". Pictures of one
        family are each other's hardest distractors.
      gender: "man", "woman", "person", two of them joined by "+", or "" where none is named.
      tones: the skin tones named, none, one or two.
      flag: is it the flag of a country or a region?
    """

    text: str
    base: str
    family: str
    gender: str
    tones: tuple[str, ...]
    flag: bool


def parse(code: str, characters: str) -> Name:
    """The name of an emoji.

    Args:
      code: the `en` short code of `emoji.EMOJI_DATA`, with its colons.
      characters: the emoji itself: flags are known by their code points.
    """
    plain = code.strip(":").replace("’", "'").replace("“", "").replace("”", "")
    tones = tuple(_TONE.findall(plain))
    plain = _TONE.sub("", plain)
    flag = _is_flag(characters)
    base = _flag_text(plain) if flag else _base_text(plain)
    return Name(
        text=base + _tones_text(tones),
        base=base,
        family=base if flag else _family(plain),
        gender="" if flag else _gender(plain),
        tones=tones,
        flag=flag,
    )


def _is_flag(characters: str) -> bool:
    regional = all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in characters)
    return regional or (characters[0] == "\U0001f3f4" and "\U000e007f" in characters)


def _flag_text(plain: str) -> str:
    place = plain.replace("_", " ")
    return f"flag of the {place}" if _FLAGS_WITH_ARTICLE.match(place) else f"flag of {place}"


def _base_text(plain: str) -> str:
    """The base name in words: "man_beard" → "man with beard"."""
    if match := _LOOK.match(plain):
        who, look = match[1], match[2].replace("_", " ")
        return f"bald {who}" if look == "bald" else f"{who} with {look}"
    if match := _PAIR.match(plain):
        return f"{match[1].replace('_', ' ')}, {match[2]} and {match[3]}"
    if match := _FAMILY.match(plain):
        *others, last = match[1].split("_")
        return f"family, {', '.join(others)} and {last}" if others else f"family, {last}"
    return plain.replace("_", " ")


def _tones_text(tones: tuple[str, ...]) -> str:
    if not tones:
        return ""
    return f", {' and '.join(tones)} skin tone{'s' if len(tones) > 1 else ''}"


def _words(plain: str) -> list[str]:
    return ["older_person"] if plain == "older_person" else plain.lower().split("_")


def _gender(plain: str) -> str:
    return "+".join(_PEOPLE[word] for word in _words(plain) if word in _PEOPLE)


def _family(plain: str) -> str:
    """The base name without man, woman, person, and without the words that only differ by them."""
    if plain in _ALIKE:
        return _ALIKE[plain]
    if plain.startswith("family"):
        return "family"
    words = [re.sub(r"^mer(maid|man|person)$", "merperson", word) for word in _words(plain)]
    kept = [word for word in words if word not in _PEOPLE or word == "merperson"]
    kept = [word for word in kept if word != "and"] if len(kept) < len(words) else kept
    return " ".join(kept) or "person"
