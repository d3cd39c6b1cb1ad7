"""Tokens that come one by one, as pieces of text; and texts that end a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

BROKEN = "�"


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops` in it."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def pieces(
    tokens: Iterable[int], decode: Callable[[list[int]], str], stops: Sequence[str] = ()
) -> Iterator[str]:
    """Yields the text of growing tokens as soon as no later token can change it.

    The pieces add up to `cut(decode(all tokens), stops)`, and no token is taken once a stop came.

    Args:
      tokens: ids as they come.
      decode: the text of ids; more ids may change its end, where a character is not whole yet.
      stops: texts that end the text; they are left out.
    """
    ids: list[int] = []
    done = 0
    for token in tokens:
        ids.append(token)
        whole = decode(ids)
        ended = cut(whole, stops)
        if len(ended) < len(whole):
            yield from _rest(ended, done)
            return
        safe = len(whole.rstrip(BROKEN)) - _beginning(whole.rstrip(BROKEN), stops)
        if safe > done:
            yield whole[done:safe]
            done = safe
    yield from _rest(decode(ids), done)


def _rest(text: str, done: int) -> Iterator[str]:
    if len(text) > done:
        yield text[done:]


def _beginning(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` that a stop may begin with."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
