"""Pages as tokens: truth tables of layout, p_next, windows, masks, and what holds of any page."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data import interleave
from flamingo_jax.data.interleave import PAPER, Controls, Item, Row, Rules

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
    rules: Rules = PAPER,
    controls: Controls = CONTROLS,
    **how: Any,
) -> tuple[str, str, str]:
    """(tokens, media_of_token, loss_mask), one character each; "." is padding."""
    strip = interleave.page(items, controls, rules=rules, **how)
    row = interleave.row(strip, controls, length, images, draw, rules)
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


SILENT = Rules(loss_before_media=False)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([A, 0, B, 1, C], ("B12#3|#45|E", "00011122222", "00001101110")),
        ([0, A, 1, B], ("B#12|#3|E", "011112222", "001110110")),
        ([A], ("B12|E", "00000", "00000")),
    ],
)
def test_openflamingos_pages(items: list[Item], expected: tuple[str, str, str]) -> None:
    """open_flamingo/train: no <EOC> before the first image, no loss up to it, none on <EOS>."""
    rules = Rules(first_eoc=False, loss_before_media=False)
    assert show(items, rules=rules) == tuple(line.ljust(16, ".") for line in expected)


def test_openflamingos_pairs() -> None:
    assert show([0, A], rules=Rules(loss_on_eos=True))[2] == "001111".ljust(16, ".")


def test_loss_before_media() -> None:
    page = [A, 0, B]
    assert show(page)[2] == "01110110".ljust(16, ".")
    assert show(page, rules=SILENT)[2] == "00000110".ljust(16, ".")
    # Text tied to the medium after it does see one; a closed chunk in front of the page does not.
    assert show(page, rules=SILENT, **NEXT)[2] == show(page, **NEXT)[2]
    assert show(page, rules=SILENT, **FIRST) == (
        "B12|3|#E".ljust(16, "."),
        "00001110".ljust(16, "."),
        "00001100".ljust(16, "."),
    )
    # Text after the last medium of a 'next' page sees none, but does not stand before the first.
    assert show([0, A], rules=SILENT, **NEXT)[2] == "001110".ljust(16, ".")
    assert show([A], rules=SILENT)[2] == "00000".ljust(16, ".")


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


def test_a_long_pair_is_cut_at_its_end() -> None:
    """The image and the text's beginning stay; a text that goes on has no <EOC> and no <EOS>."""
    long = list(range(1, 8))
    assert show([0, long], length=6) == ("B#1234", "011111", "001111")
    assert show([0, long], length=9) == ("B#1234567", "011111111", "001111111")
    assert show([0, long], length=10) == ("B#1234567|", "0111111111", "0011111111")
    assert show([0, long], length=11) == ("B#1234567|E", "01111111111", "00111111110")
    spelled = interleave.row(interleave.page([0, long], SPELLED), SPELLED, 5, 1)
    assert spelled.tokens.tolist() == [70, 71, 72, 1, 2] and spelled.media == (0,)


def test_contrastive_rows() -> None:
    row = interleave.contrastive([1, 2, 3], CONTROLS, 7)
    assert written(row) == ("B123E..", "00000..", "11111..")
    assert row.media == (0,)
    assert written(interleave.contrastive([1, 2, 3, 4, 5], CONTROLS, 4))[0] == "B12E"
    assert written(interleave.contrastive([1, 2, 3, 4, 5], SPELLED, 4))[0] == "1234"


# An <image> of one to four tokens, of which some may be the same; models with and without ends.
ALL_CONTROLS = st.builds(
    Controls,
    bos=st.sampled_from([None, BOS]),
    eos=st.sampled_from([None, EOS]),
    eoc=st.just(EOC),
    image=st.sampled_from([(IMAGE,), (70, 71), (70, 70), (70, 71, 72), (70, 71, 70, 72)]),
)


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


@given(
    controls=ALL_CONTROLS,
    items=pages(),
    following=st.booleans(),
    first=st.booleans(),
    length=st.integers(4, 60),
    images=st.integers(0, 4),
    draw=st.floats(0, 1, exclude_max=True),
    rules=st.builds(Rules, st.booleans(), st.booleans(), st.just(False)),
)
def test_what_holds_of_any_row(
    controls: Controls,
    items: list[Item],
    following: bool,
    first: bool,
    length: int,
    images: int,
    draw: float,
    rules: Rules,
) -> None:
    strip = interleave.page(items, controls, following, first, rules)
    row = interleave.row(strip, controls, length, images, draw, rules)
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
        if rules.loss_before_media:
            assert target == (token >= 1000 or token == controls.eoc)
    # each text token sees the medium that the rule says, or none if the row does not show that one
    for token, seen in zip(tokens, row.media_of_token, strict=False):
        if token >= 1000:
            owner = _expected_owner(items, token, following, first)
            assert seen == (row.media.index(owner) + 1 if owner in row.media else 0)


@given(controls=ALL_CONTROLS, items=pages(), following=st.booleans(), first=st.booleans())
def test_a_long_row_loses_nothing(
    controls: Controls, items: list[Item], following: bool, first: bool
) -> None:
    strip = interleave.page(items, controls, following, first)
    row = interleave.row(strip, controls, 120, 10)
    tokens = row.tokens[row.positions >= 0].tolist()
    assert tokens == strip.tokens
    texts = [token for item in items if not isinstance(item, int) for token in item]
    assert sorted(t for t in tokens if t >= 1000) == texts
    if not (following and first):
        assert [t for t in tokens if t >= 1000] == texts
    assert list(row.media) == [item for item in items if isinstance(item, int)]
    # With each <image> as one sign: one a medium, an <EOC> between any two, and no two in a row.
    begins = {place for place, _ in strip.media}
    for place in begins:
        assert tuple(tokens[place : place + len(controls.image)]) == controls.image
    inside = {place + i for place in begins for i in range(1, len(controls.image))}
    signs = "".join(
        "#" if place in begins else NAMES.get(token, "x")
        for place, token in enumerate(tokens)
        if place not in inside
    )
    assert "||" not in signs and "##" not in signs and signs.count("#") == len(row.media)
    assert signs.startswith("B" * (controls.bos is not None)) and signs.count("B") <= 1
    assert signs.endswith("E" * (controls.eos is not None)) and signs.count("E") <= 1


@given(
    controls=ALL_CONTROLS,
    items=pages(),
    following=st.booleans(),
    first=st.booleans(),
    more=st.integers(1, 30),
    images=st.integers(0, 4),
)
def test_windows_lose_and_double_nothing(
    controls: Controls, items: list[Item], following: bool, first: bool, more: int, images: int
) -> None:
    """A window is a part of the page that cuts no <image>; all together are the whole page."""
    strip = interleave.page(items, controls, following, first)
    total, size = len(strip.tokens), len(controls.image)
    length = size + more  # as `pipeline` asks for at the least
    windows = max(total - length, 0) + 1
    covered: set[int] = set()
    texts = {token: place for place, token in enumerate(strip.tokens) if token >= 1000}
    for draw in range(windows):
        row = interleave.row(strip, controls, length, images, (draw + 0.5) / windows)
        tokens = row.tokens[row.positions >= 0].tolist()
        assert min(length, total) - 2 * (size - 1) <= len(tokens) <= min(length, total)
        begins = [
            start
            for start in range(max(draw - size, 0), min(draw + size, total) + 1)
            if strip.tokens[start : start + len(tokens)] == tokens
        ]
        # Where texts tell, there is but one place; others look alike.
        begin = next((texts[t] - i for i, t in enumerate(tokens) if t in texts), begins[0])
        assert begin in begins and (size > 1 or begin == draw)
        for place, _ in strip.media:
            assert (
                not place < begin < place + size and not place < begin + len(tokens) < place + size
            )
        if any(token in texts for token in tokens) or size == 1:
            covered.update(range(begin, begin + len(tokens)))
    assert covered >= set(texts.values())
    assert size > 1 or covered == set(range(total))


@given(
    controls=ALL_CONTROLS,
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
