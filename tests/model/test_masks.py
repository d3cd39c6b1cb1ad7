"""Truth tables of the masks. Rows are queries, columns are keys or media."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.model.masks import cached_causal_mask, causal_mask, media_mask


def rows(mask) -> list[str]:
    """bool[1, 1, T, S] as bit rows."""
    mask = np.asarray(mask)
    assert mask.dtype == bool and mask.shape[:2] == (1, 1)
    return ["".join("1" if bit else "0" for bit in row) for row in mask[0, 0]]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0, 1, 2, 3], ["1000", "1100", "1110", "1111"]),
        ([-1, 0, 1, 2], ["0000", "0100", "0110", "0111"]),
        ([0, 1, -1, -1], ["1000", "1100", "0000", "0000"]),
        ([-1, -1, -1, -1], ["0000"] * 4),
    ],
    ids=["whole", "padded left", "padded right", "nothing"],
)
def test_causal(positions, expected):
    assert rows(causal_mask(jnp.asarray([positions]))) == expected


def test_causal_rows_of_a_batch_are_apart():
    positions = jnp.asarray([[-1, 0, 1], [0, 1, -1]])
    both = causal_mask(positions)
    for i in range(2):
        assert rows(both[i : i + 1]) == rows(causal_mask(positions[i : i + 1]))


@pytest.mark.parametrize(
    ("valid", "offset", "length", "expected"),
    [
        ([1, 1, 1, 0, 0], 0, 3, ["10000", "11000", "11100"]),
        ([1, 1, 1, 1, 0], 3, 1, ["11110"]),
        ([0, 1, 1, 1, 1], 3, 2, ["01110", "01111"]),
        ([0, 1, 0, 0, 0], 0, 2, ["00000", "01000"]),
    ],
    ids=["prompt", "one more", "two more after padding", "prompt padded left"],
)
def test_cached_causal(valid, offset, length, expected):
    mask = cached_causal_mask(jnp.asarray([valid], bool), jnp.asarray(offset), length)
    assert rows(mask) == expected


MEDIA = {
    # name: (media_of_token, frames, rows for "one", rows for "upto"); one column a medium
    "text before any image": ([0, 0, 1], [1, 1], ["00", "00", "10"], ["00", "00", "10"]),
    "several images": ([1, 1, 2, 3], [1, 1, 1], ["100", "100", "010", "001"],
                       ["100", "100", "110", "111"]),
    "tied to the next, text behind the last to none": ([1, 2, 2, 0], [1, 1],
                       ["10", "01", "01", "00"], ["10", "11", "11", "00"]),
    "a clip of eight frames is one medium": ([1, 2], [8, 1], ["10", "01"], ["10", "11"]),
    "a medium that is absent": ([1, 2, 3], [1, 0, 1], ["100", "000", "001"], ["100", "100", "101"]),
    "beyond the last medium": ([2, 3], [1, 1], ["01", "00"], ["11", "11"]),
    "padding sees none": ([0, 0, 0], [1, 0], ["00", "00", "00"], ["00", "00", "00"]),
    "no media at all": ([1, 1], [0, 0], ["00", "00"], ["00", "00"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.parametrize("latents", [1, 3])
def test_media(name, latents):
    of_token, frames, one, upto = MEDIA[name]
    for attend, expected in (("one", one), ("upto", upto)):
        mask = media_mask(jnp.asarray([of_token]), jnp.asarray([frames]), latents, attend)
        assert rows(mask) == ["".join(bit * latents for bit in row) for row in expected]


def test_rows_of_a_batch_have_their_own_media():
    of_token = jnp.asarray([[1, 2], [2, 0]])
    frames = jnp.asarray([[1, 0], [1, 1]])
    mask = media_mask(of_token, frames, 1)
    assert rows(mask[:1]) == ["10", "00"]
    assert rows(mask[1:]) == ["01", "00"]


def test_a_batch_without_media_has_no_columns():
    mask = media_mask(jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 0), jnp.int32), 4)
    assert mask.shape == (2, 1, 3, 0)


def test_attend_is_checked():
    with pytest.raises(ValueError, match="upto"):
        media_mask(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32), 1, "all")
