"""What each character is to the PTB tokenizer: a letter, a digit, a mark, a blank, or nothing.

Patterns are matched against a text's shadow, which is as long as the text and has one character for
all of a kind: what they say of `é` they say of all letters that are not ASCII. Which characters are
which was found by asking the Java program about each one of the basic plane.
"""

from __future__ import annotations

import unicodedata

LETTER, DIGIT, MARK, NOTHING = "é", "0", "¤", "\0"

# Characters beyond ASCII that patterns or rewriting know one by one, each by its shadow.
KNOWN = {
    **{mark: mark for mark in "’\u2018“”«»…\u2044\x91\x92"},
    **dict.fromkeys("\u2039\u203a\x93\x94", '"'),
    **dict.fromkeys("–—―\x96\x97", "–"),
    **dict.fromkeys("\u2010\u2011\u058a", "-"),
}
# Marks that are words of their own; every other mark is dropped as if it were a blank.
KEPT = (
    *((0xA1, 0x37E), (0x387, 0x387), (0x589, 0x589), (0x5BE, 0x5C6), (0x5F3, 0x5F4)),
    *((0x600, 0x603), (0x606, 0x60C), (0x61B, 0x61B), (0x61E, 0x66A), (0x66D, 0x70D)),
    *((0x7F6, 0x7F8), (0x964, 0x965), (0xE3F, 0xE4F), (0x1FBD, 0x1FBD), (0x2016, 0x2023)),
    *((0x2026, 0x2026), (0x2030, 0x203B), (0x203E, 0x2042), (0x2044, 0x2044), (0x2070, 0x208E)),
    *((0x20A0, 0x20A0), (0x20A4, 0x20A4), (0x20AC, 0x20AC), (0x2100, 0x214F), (0x2153, 0x215E)),
    *((0x2190, 0x2BFF), (0x3001, 0x3002), (0x3012, 0x3012), (0x30FB, 0x30FB), (0xFF01, 0xFF65)),
    *((0xFFE0, 0xFFE1), (0xFFE5, 0xFFE6), (0x80, 0x80)),
)  # fmt: skip
# Accents and vowel signs that are parts of words, and modifiers that count as letters.
JOINING = (
    *((0x300, 0x487), (0x591, 0x5C7), (0x615, 0x65E), (0x670, 0x7F3), (0x900, 0x903)),
    *((0x93C, 0x94E), (0x951, 0x955), (0x962, 0x9E3), (0xA01, 0xA4D), (0xA81, 0xACD)),
    *((0xB82, 0xBCD), (0xC01, 0xC03), (0xC3E, 0xC56), (0xD3E, 0xD48), (0xE31, 0xECD)),
    *((0x1885, 0x1886),),
)  # fmt: skip
MODIFIERS = ((0x2C2, 0x2FF), (0x375, 0x375), (0x384, 0x385), (0x55A, 0x55F))


def within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether a code lies in one of these ranges, ends included."""
    return any(first <= code <= last for first, last in ranges)


def kind(char: str) -> str:
    """The shadow of one character beyond ASCII."""
    code, category = ord(char), unicodedata.category(char)
    if char in KNOWN:
        return KNOWN[char]
    if code > 0xFFFF or category == "Nl":
        return NOTHING
    if category[0] == "L" or within(code, MODIFIERS):
        return LETTER
    if category[0] == "M":
        return LETTER if within(code, JOINING) else NOTHING
    if category == "Nd":
        return DIGIT
    if category[0] == "Z":
        return " "
    return MARK if within(code, KEPT) else NOTHING


class Shadows(dict[int, str]):
    """Code → shadow, for `str.translate`; what was asked once is kept."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if code < 0x80:
            self[code] = char if char.isprintable() else " " if char.isspace() else NOTHING
        else:
            self[code] = kind(char)
        return self[code]


SHADOWS = Shadows()


def shadow(text: str) -> str:
    """A text as the patterns see it, character for character."""
    return text.translate(SHADOWS)
