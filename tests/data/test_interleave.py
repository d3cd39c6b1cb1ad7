"""Pages as tokens: truth tables of layout, p_next, windows, masks, and what holds of any page."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data import interleave
from flamingo_jax.data.interleave import Controls, Item, Row

BOS, EOS, EOC, IMAGE = 90, 91, 100, 101
CONTROLS = Controls(BOS, EOS, EOC, (IMAGE,))
SPELLED = Controls(None, None, EOC, (70, 71, 72))  # <image> as plain text, an LM without ends
NAMES = {BOS: "B", EOS: "E", EOC: "|", IMAGE: "#"}
A, B, C = [1, 2], [3], [4, 5]  # texts


def show(
    items: list[Item],
    length: int = 16,
    images: int = 4,
    draw: float = 0.0,
    before: bool = True,
    controls: Controls = CONTROLS,
    **how: Any,
) -> tuple[str, str, str]:
    """(tokens, media_of_token, loss_mask), one character each; "." is padding."""
    strip = interleave.page(items, controls, **how)
    row = interleave.row(strip, controls, length, images, draw, before)
    return written(row)


def written(row: Row) -> tuple[str, str, str]:
    real = row.positions >= 0
    tokens = "".join(
        NAMES.get(int(t), str(t)) if r else "." for t, r in zip(row.tokens, real, strict=True)
    )
    media = "".join(str(m) if r else "." for m, r in zip(row.media_of_token, real, strict=True))
    loss = "".join(f"{x:.0f}" if r else "." for x, r in zip(row.loss_mask, real, strict=True))
    return tokens, media, loss


NEXT: dict[str, Any] = {"following": True}
FIRST: dict[str, Any] = {"following": True, "text_first": True}
TABLE = {
    # Flamingo v1 §3.2.1: a pair
    "pair": ([0, A], {}, ("B#12|E", "011111", "001110")),
    "text alone": ([A], {}, ("B12|E", "00000", "01110")),
    "text alone, next": ([A], NEXT, ("B12|E", "00000", "01110")),
    "text alone, text first": ([A], FIRST, ("B12|E", "00000", "01110")),
    "texts are joined": ([A, B, 0, B, C], {}, ("B123|#345|E", "00000111111", "01111011110")),
    # text before any image, several images
    "previous": ([A, 0, B, 1, C], {}, ("B12|#3|#45|E", "000011122222", "011101101110")),
    "next": ([A, 0, B, 1, C], NEXT, ("B12|#3|#45|E", "011112220000", "011101101110")),
    "text first": ([A, 0, B, 1, C], FIRST, ("B12|3|#45|#E", "000011122220", "011111011100")),
    "no text before": ([0, A, 1, B], {}, ("B#12|#3|E", "011112222", "001110110")),
    "no text before, next": ([0, A, 1, B], NEXT, ("B#12|#3|E", "012222000", "001110110")),
    "no text before, text first": ([0, A, 1, B], FIRST, ("B12|#3|#E", "011112220", "011101100")),
    # images with no text between, or none behind
    "two in a row": ([0, 1, A], {}, ("B#|#12|E", "01122222", "00101110")),
    "two in a row, next": ([0, 1, A], NEXT, ("B#|#12|E", "01220000", "00101110")),
    "two in a row, text first": ([0, 1, A], FIRST, ("B#12|#E", "0122220", "0011100")),
    "image last": ([A, 0], {}, ("B12|#|E", "0000111", "0111010")),
    "image last, next": ([A, 0], NEXT, ("B12|#|E", "0111100", "0111010")),
    "image last, text first": ([A, 0], FIRST, ("B12|#E", "000010", "011100")),
    "images alone": ([0, 1], {}, ("B#|#|E", "011222", "001010")),
    "images alone, next": ([0, 1], NEXT, ("B#|#|E", "012200", "001010")),
    "images alone, text first": ([0, 1], FIRST, ("B#|#E", "01220", "00100")),
}


@pytest.mark.parametrize("name", TABLE)
def test_truth_table(name: str) -> None:
    items, how, expected = TABLE[name]
    assert show(items, **how) == tuple(line.ljust(16, ".") for line in expected)


def test_an_image_spelled_in_several_tokens() -> None:
    row = interleave.row(interleave.page([A, 0, B], SPELLED), SPELLED, 10, 1)
    assert row.tokens.tolist() == [1, 2, EOC, 70, 71, 72, 3, EOC, 0, 0]
    assert row.media_of_token.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert row.loss_mask.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1, -1]


def test_dtypes_and_shapes() -> None:
    row = interleave.row(interleave.page([0, A], CONTROLS), CONTROLS, 12, 1)
    for field, dtype in (
        ("tokens", np.int32),
        ("positions", np.int32),
        ("media_of_token", np.int32),
        ("loss_mask", np.float32),
    ):
        array = getattr(row, field)
        assert (array.dtype, array.shape) == (dtype, (12,))


def test_loss_before_media() -> None:
    page = [A, 0, B]
    assert show(page)[2] == "01110110".ljust(16, ".")
    assert show(page, before=False)[2] == "00000110".ljust(16, ".")
    # Text tied to the medium after it does see one; a closed chunk in front of the page does not.
    assert show(page, before=False, **NEXT)[2] == show(page, **NEXT)[2]
    assert show(page, before=False, **FIRST) == (
        "B12|3|#E".ljust(16, "."),
        "00001110".ljust(16, "."),
        "00001100".ljust(16, "."),
    )
    # Text after the last medium of a 'next' page sees none, but does not stand before the first.
    assert show([0, A], before=False, **NEXT)[2] == "001110".ljust(16, ".")
    assert show([A], before=False)[2] == "00000".ljust(16, ".")


WINDOWED = [A, 0, B, 1, C]  # B12|#3|#45|E


@pytest.mark.parametrize(
    ("start", "how", "expected"),
    [
        (0, {}, ("B12|#", "00001", "01110")),
        (1, {}, ("12|#3", "00011", "11101")),
        (5, {}, ("3|#45", "00111", "11011")),  # text whose image lies outside sees nothing
        (7, {}, ("#45|E", "11111", "01110")),  # media are counted anew
        (0, NEXT, ("B12|#", "01111", "01110")),
        (2, NEXT, ("2|#3|", "11100", "11011")),  # the image of "3" lies behind the window
        (5, NEXT, ("3|#45", "11100", "11011")),
    ],
)
def test_windows(start: int, how: dict, expected: tuple[str, str, str]) -> None:
    assert show(WINDOWED, length=5, draw=(start + 0.5) / 8, **how) == expected


def test_every_window_is_drawn_and_none_beyond() -> None:
    rng = np.random.default_rng(0)
    seen = {show(WINDOWED, length=5, draw=draw)[0] for draw in rng.random(500)}
    assert seen == {"B12|#3|#45|E"[s : s + 5] for s in range(8)}
    assert show(WINDOWED, length=5, draw=np.nextafter(1, 0))[0] == "#45|E"


def test_a_window_holds_whole_images() -> None:
    strip = interleave.page([A, 0, B, 1, C], SPELLED)
    assert strip.tokens == [1, 2, EOC, 70, 71, 72, 3, EOC, 70, 71, 72, 4, 5, EOC]
    for draw in np.arange(0, 1, 0.05):
        row = interleave.row(strip, SPELLED, 6, 2, draw)
        tokens = row.tokens[row.positions >= 0].tolist()
        assert tokens[0] not in (71, 72) and tokens[-1] not in (70, 71)
        assert len(row.media) == tokens.count(70) == tokens.count(72)


def test_too_many_images_keep_their_text() -> None:
    items = [0, A, 1, B, 2, C]
    assert show(items, images=2) == (
        "B#12|#3|#45|E".ljust(16, "."),
        "0111122200000".ljust(16, "."),
        "0011101101110".ljust(16, "."),
    )
    assert show(items, images=2, **NEXT)[1] == "0122220000000".ljust(16, ".")
    # The first M of the window, not of the page.
    strip = interleave.page(items, CONTROLS)
    row = interleave.row(strip, CONTROLS, 8, 2, draw=0.999)
    assert row.media == (1, 2)
    assert written(row)[:2] == ("#3|#45|E", "11122222")


def test_text_rows() -> None:
    row = interleave.row(interleave.text([1, 2, 3], CONTROLS), CONTROLS, 7, 0)
    assert written(row) == ("B123E..", "00000..", "01111..")
    bare = interleave.row(interleave.text([1, 2, 3], SPELLED), SPELLED, 7, 0)
    assert written(bare) == ("123....", "000....", "111....")
    windows = {
        written(interleave.row(interleave.text([1, 2, 3], CONTROLS), CONTROLS, 4, 0, draw))[0]
        for draw in (0.1, 0.9)
    }
    assert windows == {"B123", "123E"}


def test_contrastive_rows() -> None:
    row = interleave.contrastive([1, 2, 3], CONTROLS, 7)
    assert written(row) == ("B123E..", "00000..", "11111..")
    assert row.media == (0,)
    assert written(interleave.contrastive([1, 2, 3, 4, 5], CONTROLS, 4))[0] == "B12E"
    assert written(interleave.contrastive([1, 2, 3, 4, 5], SPELLED, 4))[0] == "1234"


@st.composite
def pages(draw: st.DrawFn) -> list[Item]:
    """Texts of ids that are all different, and media in any order of the document's."""
    kinds = draw(st.lists(st.sampled_from("tm"), max_size=10))
    items: list[Item] = []
    token = 1000
    media = iter(draw(st.permutations(range(10))))
    for kind in kinds:
        if kind == "m":
            items.append(next(media))
        else:
            count = draw(st.integers(0, 4))
            items.append(list(range(token, token + count)))
            token += count
    return items


def _expected_owner(items: list[Item], token: int, following: bool, first: bool) -> int | None:
    """The document's medium that a text token belongs to, from the rule alone."""
    place = next(i for i, item in enumerate(items) if not isinstance(item, int) and token in item)
    before = [item for item in items[:place] if isinstance(item, int)]
    after = [item for item in items[place:] if isinstance(item, int)]
    if following and not first:
        return after[0] if after else None
    return before[-1] if before else None


@pytest.mark.parametrize("controls", [CONTROLS, SPELLED], ids=["new", "spelled"])
@given(
    items=pages(),
    following=st.booleans(),
    first=st.booleans(),
    length=st.integers(4, 60),
    images=st.integers(0, 4),
    draw=st.floats(0, 1, exclude_max=True),
    before=st.booleans(),
)
def test_what_holds_of_any_row(
    controls: Controls,
    items: list[Item],
    following: bool,
    first: bool,
    length: int,
    images: int,
    draw: float,
    before: bool,
) -> None:
    strip = interleave.page(items, controls, following, first)
    row = interleave.row(strip, controls, length, images, draw, before)
    real = row.positions >= 0
    count = int(real.sum())
    # left-aligned, counted, and nothing on padding
    assert row.positions.tolist() == [*range(count), *[-1] * (length - count)]
    assert not row.tokens[~real].any() and not row.loss_mask[~real].any()
    assert not row.media_of_token[~real].any()
    # at most M media, each shown once, each with its whole <image>
    assert len(row.media) <= images and len(set(row.media)) == len(row.media)
    assert set(row.media_of_token.tolist()) <= set(range(len(row.media) + 1))
    tokens = row.tokens[:count].tolist()
    marks = [t in controls.image for t in tokens]
    assert sum(marks) % len(controls.image) == 0
    assert sum(marks) // len(controls.image) >= len(row.media)
    # only text and <EOC> are targets
    for token, target in zip(tokens, row.loss_mask, strict=False):
        assert target == 0 or token >= 1000 or token == controls.eoc
        if before:
            assert target == (token >= 1000 or token == controls.eoc)
    # each text token sees the medium that the rule says, or none if the row does not show that one
    for token, seen in zip(tokens, row.media_of_token, strict=False):
        if token >= 1000:
            owner = _expected_owner(items, token, following, first)
            assert seen == (row.media.index(owner) + 1 if owner in row.media else 0)


@given(items=pages(), following=st.booleans(), first=st.booleans())
def test_a_long_row_loses_nothing(items: list[Item], following: bool, first: bool) -> None:
    strip = interleave.page(items, CONTROLS, following, first)
    row = interleave.row(strip, CONTROLS, 80, 10)
    texts = [token for item in items if not isinstance(item, int) for token in item]
    assert sorted(t for t in row.tokens.tolist() if t >= 1000) == texts
    if not (following and first):
        assert [t for t in row.tokens.tolist() if t >= 1000] == texts
    assert list(row.media) == [item for item in items if isinstance(item, int)]
    # an <EOC> between any two images, and no two in a row
    written_row = written(dataclasses.replace(row, tokens=np.minimum(row.tokens, 999)))[0]
    plain = written_row.replace("999", "x")
    assert "||" not in plain and "##" not in plain
    assert plain.startswith("B") and plain.rstrip(".").endswith("E")


@given(
    items=pages(),
    following=st.booleans(),
    first=st.booleans(),
    length=st.integers(1, 30),
    images=st.integers(0, 4),
)
def test_windows_lose_and_double_nothing(
    items: list[Item], following: bool, first: bool, length: int, images: int
) -> None:
    """Windows that follow each other from end to end hold each token of the page once.

    An <image> of several tokens may move the last window left, away from the end of the page.
    """
    strip = interleave.page(items, CONTROLS, following, first)
    total = len(strip.tokens)
    windows = max(total - length, 0) + 1
    found: list[int] = []
    while len(found) < total:
        place = min(len(found), windows - 1)
        row = interleave.row(strip, CONTROLS, length, images, (place + 0.5) / windows)
        tokens = row.tokens[row.positions >= 0].tolist()
        assert len(tokens) == min(length, total)
        assert tokens == strip.tokens[place : place + length]
        found += tokens[len(found) - place :]
    assert found == strip.tokens
    texts = [token for item in items if not isinstance(item, int) for token in item]
    assert sorted(token for token in found if token >= 1000) == texts


@pytest.mark.parametrize("controls", [CONTROLS, SPELLED], ids=["new", "spelled"])
@given(
    items=pages(),
    following=st.booleans(),
    first=st.booleans(),
    length=st.integers(4, 60),
    images=st.integers(0, 4),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_every_medium_that_is_seen_stands_in_the_row(
    controls: Controls,
    items: list[Item],
    following: bool,
    first: bool,
    length: int,
    images: int,
    draw: float,
) -> None:
    strip = interleave.page(items, controls, following, first)
    row = interleave.row(strip, controls, length, images, draw)
    on_page = [item for item in items if isinstance(item, int)]
    marks = np.isin(row.tokens, controls.image) & (row.positions >= 0)
    seen = row.media_of_token[marks]
    # The row's first media in the page's order, each with all of its own <image>; others with none.
    shown = np.repeat(np.arange(1, len(row.media) + 1), len(controls.image))
    assert seen[: len(shown)].tolist() == shown.tolist() and not seen[len(shown) :].any()
    begin = on_page.index(row.media[0]) if row.media else 0
    assert on_page[begin : begin + len(row.media)] == list(row.media)
    assert set(row.media_of_token.tolist()) <= {0, *seen.tolist()}
