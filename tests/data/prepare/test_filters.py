"""Which documents and images are kept: a truth table over images that are really encoded."""

import io
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.prepare import duplicates, filters, media
from flamingo_jax.data.prepare.filters import KEEP_ALL, FilterOptions
from flamingo_jax.errors import InputError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture of many colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=form)
    return file.getvalue()


def plain(form: str = "JPEG", colour: tuple[int, ...] = (200, 30, 90), mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (300, 200), colour), form)


def lined(form: str) -> bytes:
    """One colour but for a thin line."""
    image = Image.new("RGB", (800, 600), (255, 255, 255))
    image.paste((0, 0, 0), (0, 300, 800, 301))
    return encoded(image, form)


def good(seed: int = 0) -> Medium:
    return Medium(encoded(picture(120, 100, seed)), f"good{seed}.jpg")


def pair(data: bytes | str | np.ndarray) -> Document:
    return Document((Medium(data, "it.jpg"), "a caption"), "pair 1")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda form: encoded(picture(64, 64), form), ""),
        (lambda form: encoded(picture(63, 500), form), "small image"),
        (lambda form: encoded(picture(500, 63), form), "small image"),
        (lambda form: encoded(picture(192, 64), form), ""),
        (lambda form: encoded(picture(193, 64), form), "narrow image"),
        (lambda form: encoded(picture(64, 193), form), "narrow image"),
        (plain, "single-colour image"),
        (lined, ""),
    ],
)
def test_a_pair_goes_with_its_image(make: Callable, reason: str, form: str) -> None:
    document = pair(make(form))
    if not reason:
        assert filters.apply(document) == filters.Filtered(document)
    else:
        with pytest.raises(Dropped, match=r"it\.jpg") as caught:
            filters.apply(document)
        assert caught.value.reason == reason
    assert filters.apply(document, KEEP_ALL).document == document


def test_what_is_transparent_is_as_the_model_sees_it() -> None:
    """Over white: a white picture on nothing has a single colour, a black one has two."""
    for colour, kept in ((255, False), (0, True)):
        image = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
        image.paste((colour, colour, colour, 255), (20, 20, 60, 60))
        document = pair(encoded(image, "PNG"))
        if kept:
            assert filters.apply(document).document == document
        else:
            with pytest.raises(Dropped, match="single-colour"):
                filters.apply(document)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty image"),
        (b"GIF89a nothing", "not an image"),
        (encoded(picture(120, 100))[:-400], "broken or truncated image"),
        ("absent.jpg", "missing image file"),
        ("a\0b.jpg", "missing image file"),
        (np.zeros((1, 70, 70, 3), np.float32), "pixels of a wrong form"),
    ],
)
def test_a_broken_image_is_bad_in_a_pair_and_left_out_of_a_page(data, reason: str) -> None:
    with pytest.raises(BadRecord, match=r"it\.jpg") as caught:
        filters.apply(pair(data))
    assert caught.value.reason == reason and not isinstance(caught.value, Dropped)
    page = Document(("one", Medium(data, "it.jpg"), "two", good()), "page")
    found = filters.apply(page)
    assert found.document.items == ("one\n\ntwo", good())
    assert found.left_out == (reason,)


def test_what_is_too_large_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is known from the header: a few bytes do not become gigabytes."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    monkeypatch.setattr(filters.images, "decode", None)
    with pytest.raises(BadRecord, match="too many pixels"):
        filters.apply(pair(bomb))
    with pytest.raises(Dropped, match="small image"):  # by its header alone, too
        filters.apply(pair(encoded(picture(40, 40))))
    big = pair(encoded(picture(400, 400)))
    assert filters.apply(big, FilterOptions(single_colour=False)).document == big


SMALL = Medium(encoded(picture(20, 20)), "small.png")
CLIP = Medium(b"not decoded", "clip.mp4", "clip")


@pytest.mark.parametrize(
    ("items", "options", "kept"),
    [
        ((good(), "a", good(1), "b"), {}, (good(), "a", good(1), "b")),
        (("a", SMALL, "b", good(), "c"), {}, ("a\n\nb", good(), "c")),
        (("a", SMALL, "b", good()), {"between": " "}, ("a b", good())),
        (("a", SMALL, SMALL, "b", SMALL, "c", good()), {}, ("a\n\nb\n\nc", good())),
        ((SMALL, "a", good(), SMALL), {}, ("a", good())),
        # Texts that followed each other before are not touched.
        (("a", "b", SMALL, good()), {}, ("a", "b", good())),
        (("a", SMALL, "b", SMALL), {}, "no images"),
        (("a", SMALL, "b", SMALL), {"min_images": 0}, ("a\n\nb",)),
        (("a", SMALL, "b", good()), {"min_images": 2}, "too few images"),
        (("a", good(), "b", good(1)), {"max_images": 1}, "too many images"),
        (("a", good(), "b", SMALL), {"max_images": 1}, ("a", good(), "b")),
        ((SMALL, "a"), {"min_images": 0}, "small image"),  # a pair, never without its image
        (("a", SMALL), {"min_images": 0}, "small image"),
        (("a",), {"min_images": 2}, ("a",)),  # plain text
        ((), {}, ()),
        ((CLIP, "a"), {}, (CLIP, "a")),
        ((CLIP, "a", SMALL, "b"), {}, (CLIP, "a\n\nb")),
    ],
)
def test_pages(items: tuple, options: dict, kept: tuple | str) -> None:
    document = Document(items, "page 9")
    if isinstance(kept, str):
        with pytest.raises(Dropped) as caught:
            filters.apply(document, FilterOptions(**options))
        assert caught.value.reason == kept
        return
    found = filters.apply(document, FilterOptions(**options))
    assert found.document == Document(kept, "page 9")
    # Filtering twice is filtering once.
    assert filters.apply(found.document, FilterOptions(**options)).document == found.document


def test_the_language_filter_sees_the_texts() -> None:
    seen = []

    def english(text: str) -> bool:
        seen.append(text)
        return "the" in text

    options = FilterOptions(language=english)
    page = Document(("the one", good(), "and two"), "page")
    assert filters.apply(page, options).document == page
    assert seen == ["the one\n\nand two"]
    with pytest.raises(Dropped, match="language"):
        filters.apply(Document((good(), "le deux"), "page"), options)


def test_files_and_pixels_become_bytes(tmp_path: pathlib.Path) -> None:
    data = encoded(picture(100, 80))
    (tmp_path / "a.jpg").write_bytes(data)
    medium = Medium(str(tmp_path / "a.jpg"), "a.jpg")
    assert media.as_bytes(medium) == Medium(data, "a.jpg")
    assert filters.apply(Document((medium,), "d")).document.items == (Medium(data, "a.jpg"),)

    pixels = np.array(picture(90, 70))
    stored = media.as_bytes(Medium(pixels[None], "drawn")).data
    assert isinstance(stored, bytes)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(stored))), pixels)
    assert media.as_bytes(Medium(pixels, "drawn")).data == stored
    with pytest.raises(BadRecord, match="clip without a file"):
        media.as_bytes(Medium(pixels[None], "drawn", "clip"))


def test_images_near_evaluation_images_are_left_out() -> None:
    original = picture(400, 300, 5)
    index = duplicates.Index(np.array([duplicates.hash_image(encoded(original, "PNG"))], np.uint64))
    copy = Medium(encoded(original.resize((200, 150))), "copy.jpg")
    page = Document(("a", copy, "b", good(), "c"), "page")
    found = filters.apply(page, index=index)
    assert found.document.items == ("a\n\nb", good(), "c")
    assert found.left_out == ("near an evaluation image",)
    with pytest.raises(Dropped, match=r"copy.jpg.*of 64 bits"):
        filters.apply(Document((copy, "a"), "pair"), index=index)


@pytest.mark.parametrize(
    "options",
    [
        {"min_side": -1},
        {"max_aspect": 0.5},
        {"max_aspect": float("nan")},
        {"min_images": -1},
        {"max_images": 10**9},
    ],
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        FilterOptions(**options)
