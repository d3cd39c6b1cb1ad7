"""Prompts become the tokens that training showed, and media of every form the same pixels."""

import io
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data import interleave
from flamingo_jax.data.prompt import (
    MAX_FRAMES,
    Video,
    encode_continuation,
    lay_out,
    read_medium,
    text,
)
from flamingo_jax.data.rows import controls_of
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError

NEW = open_tokenizer("bytes")
PLAIN = open_tokenizer("bytes", image="text")
CAT, DOG = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
B, E, I = NEW.bos, NEW.eoc, NEW.image[0]


def ids(word: str) -> list[int]:
    return list(word.encode())


@pytest.mark.parametrize(
    ("items", "tokens", "owners"),
    [
        ([], [B], [0]),
        (["ab"], [B, *ids("ab")], [0, 0, 0]),
        ([CAT], [B, I], [0, 1]),
        ([CAT, "a<EOC>", DOG, "b"], [B, I, *ids("a"), E, I, *ids("b")], [0, 1, 1, 1, 2, 2]),
        (["a<EOC>", CAT], [B, *ids("a"), E, I], [0, 0, 0, 1]),
        (["x<EOC><image>", CAT, "y"], [B, *ids("x"), E, I, *ids("y")], [0, 0, 0, 1, 1]),
        (["<image>", "", CAT], [B, I], [0, 1]),
        ([CAT, DOG], [B, I, I], [0, 1, 2]),
        ([text("<EOC>")], [B, *ids("<EOC>")], [0] * 6),
        ([text("<image>"), CAT], [B, *ids("<image>"), I], [0] * 8 + [1]),
    ],
)
def test_layout(items, tokens, owners):
    laid = lay_out(items, NEW)
    assert laid.tokens == tokens
    assert laid.media_of_token == owners
    assert len(laid.media) == max(owners)


def test_shots_are_laid_out_as_pages_were():
    """What follows the last picture's text is left out; all before it is the page's own layout."""
    for tokenizer in (NEW, PLAIN):
        page = interleave.page(
            [0, ids("a cat"), 1, ids("a dog"), 2, ids("a")], controls_of(tokenizer)
        )
        laid = lay_out([CAT, "a cat<EOC>", DOG, "a dog<EOC>", CAT, "a"], tokenizer)
        assert page.tokens[: len(laid.tokens)] == laid.tokens
        assert page.owners[: len(laid.tokens)] == laid.media_of_token
        assert page.tokens[len(laid.tokens) :] == [tokenizer.eoc, tokenizer.eos]


def test_neighbouring_texts_are_one_text():
    class Words:
        bos, eoc, image = None, 9, (8,)

        def encode(self, plain):
            return [len(plain)] if plain else []

    laid = lay_out(["ab", text("cd"), "e<EOC>f"], Words())  # pyright: ignore
    assert laid.tokens == [5, 9, 1]


@pytest.mark.parametrize(
    "items",
    [
        ["<image>"],
        ["<image> a cat", CAT],
        ["<image><image>", CAT],
        ["<image>", text("x"), CAT],
        [3],
        [None],
        [b"bytes"],
        "text",
        CAT,
    ],
)
def test_refuses_what_is_no_prompt(items):
    with pytest.raises(InputError, match="the prompt") as error:
        lay_out(items, NEW)
    assert "\n" not in str(error.value)


def test_a_path_among_the_texts_is_refused(tmp_path):
    path = tmp_path / "cat.png"
    assert lay_out([str(path)], NEW).media == []
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(InputError, match="names a file"):
        lay_out([str(path)], NEW)
    assert lay_out([text(str(path))], NEW).media == []


def test_continuations():
    assert encode_continuation("a<EOC>", NEW, "it") == [*ids("a"), E]
    assert encode_continuation(text("a<EOC>"), NEW, "it") == ids("a<EOC>")
    wrongs: list[Any] = ["a<image>", 3, ["a"]]
    for wrong in wrongs:
        with pytest.raises(InputError, match="it"):
            encode_continuation(wrong, NEW, "it")


SIZE = 8


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8))


def read(item) -> np.ndarray:
    return read_medium(item, SIZE, "pad", 4)


def test_one_picture_in_every_form(picture, tmp_path):
    expected = read(picture)
    assert expected.shape == (1, SIZE, SIZE, 3)
    assert expected.std() > 10
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(read(np.asarray(picture)), expected)
    np.testing.assert_array_equal(read(picture.convert("RGBA")), expected)
    file = io.BytesIO()
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270° anticlockwise when shown
    turned.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(read(Image.open(file)), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBA"]
)
def test_pictures_of_every_mode(picture, mode):
    converted = picture.convert("L").convert(mode) if mode[0] in "IF" else picture.convert(mode)
    seen = read(converted)
    grey = np.asarray(picture.convert("L"))
    if mode in ("P", "1", "I;16"):  # coarser colours, or another scale
        assert seen.shape == (1, SIZE, SIZE, 3)
    else:
        assert abs(float(seen.mean()) - grey.mean()) < 12


def test_transparent_pictures_lie_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (read(clear) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert (read(palette) == 255).all()


def test_clips(tmp_path):
    clip = np.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(read(clip), clip)
    path = tmp_path / "clip.mp4"
    write_clip(path, seconds=5)
    assert read(path).shape == (4, SIZE, SIZE, 3)
    assert read(Video(path)).shape == (4, SIZE, SIZE, 3)
    assert read(Video(str(path), frames=3, fps=2)).shape == (3, SIZE, SIZE, 3)
    assert read(Video(path, frames=100)).shape == (5, SIZE, SIZE, 3)
    # The pictures of the clip grow brighter with time.
    assert (np.diff(read(Video(path)).mean((1, 2, 3))) > 20).all()


def write_clip(path: pathlib.Path, seconds: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(2 * seconds):
            pixels = np.full((32, 32, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder / "missing.png",
        lambda folder: folder / "missing.mp4",
        lambda folder: Video(folder / "missing.webm"),
        lambda folder: folder / "broken.png",
        lambda folder: Video(folder / "broken.png"),
        lambda folder: folder,
        lambda folder: np.zeros((4, 4), np.uint8),
        lambda folder: np.zeros((4, 4, 4), np.uint8),
        lambda folder: np.zeros((4, 4, 3), np.float32),
        lambda folder: np.zeros((0, 4, 3), np.uint8),
        lambda folder: np.zeros((0, 4, 4, 3), np.uint8),
        lambda folder: np.zeros((1, 2, 4, 4, 3), np.uint8),
        lambda folder: np.zeros((MAX_FRAMES + 1, 1, 1, 3), np.uint8),
    ],
)
def test_refuses_media_it_cannot_show(make, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError) as error:
        read(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 0},
        {"frames": MAX_FRAMES + 1},
        {"fps": 0},
        {"start": -1.0},
        {"start": float("nan")},
        {"start": 2.0, "end": 2.0},
    ],
)
def test_refuses_impossible_videos(fields):
    with pytest.raises(InputError):
        Video("clip.mp4", **fields)
