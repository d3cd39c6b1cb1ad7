"""A page of texts and media as tokens, and which token sees which medium. Pure NumPy, no I/O.

A page is a list of items in reading order: a list of token ids is text, an `int` is a medium (its
index in the document). `page` lays it out whole, `row` cuts a window of T tokens out of it.

Layout (Flamingo v1 §3.2.1). A chunk is the text between two media; texts that follow each other are
joined. An `<EOC>` stands before every `<image>` but one with which the page begins, and at the end:

    <BOS> text0 <EOC> <image> text1 <EOC> <image> text2 <EOC> <EOS>
    <BOS> <image> text <EOC> <EOS>                                      a pair

Two media with no text between them give `<image> <EOC> <image>`. `<BOS>` and `<EOS>` are left out
where the language model has none.

Who sees what (`media_of_token`, Flamingo §2.3 and v1 §3.2.2):

    page                   text0 <EOC> <image> text1 <EOC> <image> text2 <EOC>
    previous                 0     0      1      1     1      2      2     2
    following (p_next)       1     1      1      2     2      2      0     0

An `<image>` sees its own medium, an `<EOC>` what the chunk sees that it closes. `<BOS>` sees
nothing; `<EOS>` the last medium of a 'previous' page, nothing on a 'following' one. Text after the
last medium of a 'following' page sees nothing: the paper leaves it open.

A 'following' page may be laid out `text_first`: each medium's own text (the one after it on the
page) is moved before it, so that no text is tied to a wrong picture. Text before the first medium
has none of its own: it stays in front as a closed chunk that sees nothing. Every chunk is closed
before its medium, so that such a page ends without one more `<EOC>`:

    page                   text0 <image> text1 <image> text2
    laid out               text0 <EOC> text1 <EOC> <image> text2 <EOC> <image>
    media_of_token           0     0     1     1      1      2     2      2

Targets of the loss are text and `<EOC>` (and `<EOS>` where a row is text alone: nothing else would
teach a language model to end), never `<BOS>`, `<image>`, padding, or `<EOS>` of pages and pairs.

OpenFlamingo (open_flamingo/train/data.py) differs, which `Rules` say: no `<EOC>` before a page's
first medium, no loss on text before it, and `<EOS>` of a pair is a target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

Item = Sequence[int] | int
"""Text as token ids, or a medium as its index in the document."""


@dataclasses.dataclass(frozen=True)
class Controls:
    """The ids of control tokens (see `tokenizer.Tokenizer`)."""

    bos: int | None
    eos: int | None
    eoc: int
    image: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Where pages and pairs of others differ from the paper's, which is the default.

    Attributes:
      first_eoc: is text before the first medium closed by an <EOC>?
      loss_before_media: is text a target that stands before a row's first medium (or in a row
        without any) and sees none?
      loss_on_eos: is <EOS> a target?
    """

    first_eoc: bool = True
    loss_before_media: bool = True
    loss_on_eos: bool = False


PAPER = Rules()


@dataclasses.dataclass
class Strip:
    """A whole page as tokens.

    Attributes:
      tokens: the ids.
      owners: for each token the medium it sees: its place on the page, from 1; 0 = none.
      targets: for each token, whether it is a target of the loss.
      media: the media of the page in order, as (first token of its <image>, index in the document).
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    owners: list[int] = dataclasses.field(default_factory=list)
    targets: list[bool] = dataclasses.field(default_factory=list)
    media: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def add(self, tokens: Sequence[int], owner: int, target: bool) -> None:
        """Appends tokens that see the same medium."""
        self.tokens += tokens
        self.owners += [owner] * len(tokens)
        self.targets += [target] * len(tokens)

    def add_medium(self, tokens: Sequence[int], medium: int) -> None:
        """Appends an <image>, which sees its own medium."""
        self.media.append((len(self.tokens), medium))
        self.add(tokens, len(self.media), False)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
      tokens: i32[T], padded on the right with 0.
      positions: i32[T] 0, 1, 2, … and -1 on padding.
      media_of_token: i32[T] place in `media` from 1; 0 = none.
      loss_mask: f32[T].
      media: at most M indices of media of the document, in the row's order.
    """

    tokens: np.ndarray
    positions: np.ndarray
    media_of_token: np.ndarray
    loss_mask: np.ndarray
    media: tuple[int, ...]


def page(
    items: Sequence[Item],
    controls: Controls,
    following: bool = False,
    text_first: bool = False,
    rules: Rules = PAPER,
) -> Strip:
    """Lays out a page (see the module's docstring).

    Args:
      items: texts and media in reading order.
      controls: ids of the control tokens.
      following: is text tied to the medium after it (p_next) rather than before it?
      text_first: on a 'following' page, move each medium's own text before it.
      rules: what is closed and what is a target.
    """
    chunks, media = _chunks(items)
    strip = Strip()
    if controls.bos is not None:
        strip.add([controls.bos], 0, False)
    if following and text_first:
        _lay_text_first(strip, chunks, media, controls)
    else:
        _lay_as_it_is(strip, chunks, media, controls, following, rules.first_eoc)
    if controls.eos is not None:
        strip.add([controls.eos], 0 if following else len(media), rules.loss_on_eos)
    return strip


def _chunks(items: Sequence[Item]) -> tuple[list[list[int]], list[int]]:
    """The texts before, between and behind the media (one more than media), and the media."""
    chunks: list[list[int]] = [[]]
    media: list[int] = []
    for item in items:
        if isinstance(item, int):
            media.append(item)
            chunks.append([])
        else:
            chunks[-1] += item
    return chunks, media


def _lay_as_it_is(
    strip: Strip,
    chunks: list[list[int]],
    media: list[int],
    controls: Controls,
    following: bool,
    first_eoc: bool,
) -> None:
    last = len(media)
    for place, chunk in enumerate(chunks):
        owner = (place + 1 if place < last else 0) if following else place
        strip.add(chunk, owner, True)
        closed = place > 0 or place == last or (first_eoc and chunk)
        if closed:
            strip.add([controls.eoc], owner, True)
        if place < last:
            strip.add_medium(controls.image, media[place])


def _lay_text_first(
    strip: Strip, chunks: list[list[int]], media: list[int], controls: Controls
) -> None:
    before, *own = chunks
    if before or not media:
        strip.add([*before, controls.eoc], 0, True)
    for place, (chunk, medium) in enumerate(zip(own, media, strict=True), start=1):
        if chunk or place > 1:
            strip.add([*chunk, controls.eoc], place, True)
        strip.add_medium(controls.image, medium)


def text(tokens: Sequence[int], controls: Controls) -> Strip:
    """Plain text for the language stage: `<BOS> text <EOS>`, no media, loss on text and <EOS>."""
    strip = Strip()
    if controls.bos is not None:
        strip.add([controls.bos], 0, False)
    strip.add(tokens, 0, True)
    if controls.eos is not None:
        strip.add([controls.eos], 0, True)
    return strip


def contrastive(tokens: Sequence[int], controls: Controls, length: int) -> Row:
    """A pair for the contrastive stage: the text with its ends, and the document's only medium.

    A text that is too long is cut so that <BOS> and <EOS> stay. The loss mask is 1 on all tokens,
    media_of_token 0: the text tower sees no picture.
    """
    bos = [] if controls.bos is None else [controls.bos]
    eos = [] if controls.eos is None else [controls.eos]
    strip = Strip()
    strip.add([*bos, *tokens[: max(length - len(bos) - len(eos), 0)], *eos], 0, True)
    return dataclasses.replace(row(strip, controls, length, 0), media=(0,))


def row(
    strip: Strip,
    controls: Controls,
    length: int,
    images: int,
    draw: float = 0.0,
    rules: Rules = PAPER,
) -> Row:
    """Cuts a window of T tokens out of a page; a shorter page is padded on the right.

    The window begins and ends on whole `<image>`s: it is moved left to the beginning of one it
    would begin inside of, and shortened where it would end inside of one. Media outside it are
    dropped, and text that saw one of them sees nothing (0). Of those inside the first M stay;
    the `<image>` and the text of the others stay too and see nothing.

    Args:
      strip: the page.
      controls: ids of the control tokens.
      length: T.
      images: M, at most so many media.
      draw: in [0, 1): which of the possible windows.
      rules: what is a target.
    """
    start, stop = _window(strip, len(controls.image), length, draw)
    inside = [place for place, (s, _) in enumerate(strip.media, start=1) if start <= s < stop]
    kept = inside[:images]
    number = dict.fromkeys(range(len(strip.media) + 1), 0)
    number |= {place: new for new, place in enumerate(kept, start=1)}

    # Lists are laid into zeros: for arrays NumPy lets another thread run, and waits for its turn.
    count = stop - start
    tokens = np.zeros(length, np.int32)
    tokens[:count] = strip.tokens[start:stop]
    positions = np.array([*range(count), *[-1] * (length - count)], np.int32)
    media_of_token = np.zeros(length, np.int32)
    media_of_token[:count] = [number[place] for place in strip.owners[start:stop]]
    loss_mask = np.zeros(length, np.float32)
    loss_mask[:count] = strip.targets[start:stop]
    if not rules.loss_before_media:
        first = strip.media[kept[0] - 1][0] - start if kept else length
        loss_mask[:first][media_of_token[:first] == 0] = 0
    media = tuple(strip.media[place - 1][1] for place in kept)
    return Row(tokens, positions, media_of_token, loss_mask, media)


def _window(strip: Strip, image_tokens: int, length: int, draw: float) -> tuple[int, int]:
    """The first token of the window and the one behind its last."""
    total = len(strip.tokens)
    if total <= length:
        return 0, total
    start = int(draw * (total - length + 1))
    for first, _ in strip.media:
        if first < start < first + image_tokens:
            # No image is cut. The last window goes to the right, or no window had the page's end.
            start = first if start < total - length else first + image_tokens
    stop = min(start + length, total)
    for first, _ in strip.media:
        if first < stop < first + image_tokens:
            stop = first
    return start, stop
