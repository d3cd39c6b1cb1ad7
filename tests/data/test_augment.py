"""Augmentation is a pure function of its draws, and does to pictures what its fields say."""

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.augment import AugmentSpec, augment
from flamingo_jax.data.randomness import generator, seed32

FULL = AugmentSpec(0.5, 0.2, 0.2, 0.3, 0.1, (0.7, 1.2), 0.1)
CLIP = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), np.uint8)


def test_augmentation_is_a_pure_function_of_its_generator() -> None:
    before = CLIP.copy()
    first = augment(CLIP, FULL, generator("a", 1))
    assert np.array_equal(first, augment(CLIP, FULL, generator("a", 1)))
    assert not np.array_equal(first, augment(CLIP, FULL, generator("a", 2)))
    assert first.shape == CLIP.shape and first.dtype == np.uint8
    assert np.array_equal(CLIP, before)


def test_no_augmentation_returns_the_input() -> None:
    assert augment(CLIP, AugmentSpec(), generator("a")) is CLIP


def test_all_frames_of_a_clip_get_the_same_draw() -> None:
    still = np.repeat(CLIP[:1], 4, axis=0)
    for seed in range(8):
        out = augment(still, FULL, generator(seed))
        assert all(np.array_equal(frame, out[0]) for frame in out)


def test_flip_alone_mirrors() -> None:
    assert np.array_equal(augment(CLIP, AugmentSpec(flip=1.0), generator(0)), CLIP[:, :, ::-1])


def test_amounts_of_colour() -> None:
    grey = np.full((1, 8, 8, 3), 100, np.uint8)
    values = [augment(grey, AugmentSpec(brightness=0.1), generator(i))[0, 0, 0] for i in range(400)]
    assert min(v.min() for v in values) in (75, 76) and max(v.max() for v in values) in (124, 125)
    assert all(v[0] == v[1] == v[2] for v in values)
    # neither hue, saturation nor contrast changes a flat grey
    spec = AugmentSpec(contrast=0.5, saturation=0.5, hue=0.5)
    for seed in range(20):
        assert np.abs(augment(grey, spec, generator(seed)).astype(int) - 100).max() <= 1


def test_colours_keep_what_they_should() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    middle = np.random.default_rng(2).integers(110, 146, (1, 16, 16, 3), np.uint8)
    for seed in range(20):
        rng = generator(seed)
        turned = augment(middle, AugmentSpec(saturation=0.5, hue=0.5), rng)
        assert np.abs(turned @ luma - middle @ luma).max() <= 1
        bent = augment(middle, AugmentSpec(contrast=0.5), generator(seed))
        assert abs((bent @ luma).mean() - (middle @ luma).mean()) < 0.6
        slope = np.polyfit((middle @ luma).ravel(), (bent @ luma).ravel(), 1)[0]
        assert 0.5 <= slope <= 1.5


def test_scale_and_shift_move_a_square() -> None:
    board = np.full((1, 40, 40, 3), 255, np.uint8)
    board[:, 15:25, 15:25] = 0
    half = augment(board, AugmentSpec(scale=(0.5, 0.5)), generator(0))[0, ..., 0]
    assert half.shape == (40, 40) and half[20, 20] == 0
    assert np.sum(255 - half.astype(int)) / 255 == pytest.approx(25, rel=0.02)
    double = augment(board, AugmentSpec(scale=(2.0, 2.0)), generator(0))[0, ..., 0]
    assert np.sum(255 - double.astype(int)) / 255 == pytest.approx(400, rel=0.02)
    for seed in range(20):
        moved = 255 - augment(board, AugmentSpec(shift=0.25), generator(seed))[0, ..., 0].astype(
            int
        )
        rows, columns = np.indices(moved.shape)
        centre = np.array([(rows * moved).sum(), (columns * moved).sum()]) / moved.sum()
        assert np.abs(centre - 19.5).max() <= 10.1
        assert moved.sum() / 255 == pytest.approx(100, rel=0.02)


def test_what_comes_into_view_has_the_mean_colour_of_the_border() -> None:
    picture = np.full((1, 20, 20, 3), (10, 20, 30), np.uint8)
    picture[:, 5:15, 5:15] = 250
    small = augment(picture, AugmentSpec(scale=(0.5, 0.5), shift=0.3), generator(3))
    assert (small[0, (0, 0, -1, -1), (0, -1, 0, -1)] == (10, 20, 30)).all()


@given(
    spec=st.builds(
        AugmentSpec,
        flip=st.floats(0, 1),
        brightness=st.floats(0, 1),
        contrast=st.floats(0, 1),
        saturation=st.floats(0, 1),
        hue=st.floats(0, 0.5),
        scale=st.tuples(st.floats(0.05, 1), st.floats(1, 4)),
        shift=st.floats(0, 1.5),
    ),
    seed=st.integers(0, 2**40),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_spec_gives_a_picture(spec: AugmentSpec, seed: int, sides: tuple[int, int]) -> None:
    frames = np.full((2, *sides, 3), 90, np.uint8)
    out = augment(frames, spec, generator(seed))
    assert out.shape == frames.shape and out.dtype == np.uint8


def test_generators_go_by_their_key() -> None:
    assert generator("row", 1, cast(int, np.int64(2))).random() == generator("row", 1, 2).random()
    keys = [("row", 1, 2), ("row", 12), ("row", 1, "2"), ("row", 2, 1), ("wor", 1, 2)]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert 0 <= seed32("order", 3, "a") < 2**32
    assert seed32("order", 3, "a") != seed32("order", 3, "b")
