"""Pieces of a stream add up to the text that all tokens make at once."""

import pytest

from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.use.streams import cut, pieces

DECODE = open_tokenizer("bytes").decode


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("a cat", []),
        ("", ["x"]),
        ("größer 🦩 €", []),
        ("one\nUser: two", ["\nUser:"]),
        ("one\nUse: two", ["\nUser:"]),
        ("aaab", ["aab"]),
        ("ends with a beginnin", ["beginning"]),
        ("xyz", ["z", "y"]),
        ("x", ["x"]),
    ],
)
def test_pieces_add_up(text, stops):
    tokens = list(text.encode())
    found = list(pieces(tokens, DECODE, stops))
    assert "".join(found) == cut(text, stops)
    assert all(found)
    if not stops:
        assert found == list(text)  # no later than with a character's last byte


def test_broken_characters_come_at_the_end():
    tokens = [*b"ab", *"€".encode()[:2]]
    found = list(pieces(tokens, DECODE))
    assert "".join(found) == DECODE(tokens) == "ab�"


def test_no_token_is_taken_after_a_stop():
    taken = []

    def tokens():
        for token in b"abcdef":
            taken.append(token)
            yield token

    assert "".join(pieces(tokens(), DECODE, ["c"])) == "ab"
    assert bytes(taken) == b"abc"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("abc", [], "abc"), ("abc", ["c", "b"], "a"), ("abc", ["abc"], ""), ("abc", ["d"], "abc")],
)
def test_cut(text, stops, expected):
    assert cut(text, stops) == expected
