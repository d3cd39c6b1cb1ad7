"""Near-duplicates: copies are found after resizing and compression, other pictures are not."""

import io
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from flamingo_jax.data.prepare import duplicates
from flamingo_jax.errors import InputError

PICTURES = 16


def scene(seed: int) -> Image.Image:
    """A picture with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((240, 320, 3))
    for cells in (3, 6, 12, 24):
        coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((320, 240))) / cells
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def copies(image: Image.Image) -> dict[str, bytes]:
    width, height = image.size
    return {
        "compressed": encoded(image, "JPEG", quality=40),
        "half": encoded(image.resize((width // 2, height // 2)), "JPEG", quality=75),
        "larger": encoded(image.resize((width * 2, height * 2)), "WEBP", quality=60),
        "squeezed": encoded(image.resize((width, height * 2 // 3)), "JPEG", quality=80),
        "brighter": encoded(image.point([min(255, 20 + i) for i in range(256)] * 3)),
        "grey": encoded(image.convert("L")),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "inner").mkdir()
    for seed in range(PICTURES):
        inner = folder / "inner" if seed % 2 else folder
        (inner / f"{seed}.PNG").write_bytes(encoded(scene(seed)))
    (folder / "captions.json").write_text("{}")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def test_copies_are_found_and_others_are_not(folder: pathlib.Path) -> None:
    index = duplicates.open_index([str(folder)], threads=2)
    assert (index.images, index.unreadable) == (PICTURES, 1)
    for seed in range(PICTURES):
        for name, data in copies(scene(seed)).items():
            assert index.distance(duplicates.hash_image(data)) <= index.most, (seed, name)
        other = index.distance(duplicates.hash_image(encoded(scene(1000 + seed))))
        assert other > index.most, seed


def test_drawings_that_mirror_themselves_are_found() -> None:
    """Half of their frequencies are zero: noise may not decide those bits."""
    for seed in range(10):
        half = np.asarray(scene(seed))[:, :160]
        drawing = Image.fromarray(np.concatenate([half, half[:, ::-1]], 1))
        value = duplicates.hash_image(encoded(drawing))
        copy = duplicates.hash_image(encoded(drawing, "JPEG", quality=50))
        assert (value ^ copy).bit_count() <= duplicates.DISTANCE


def test_shared_pictures(shared: pathlib.Path) -> None:
    """Real pictures: nearly all copies of the evaluation's are found, drawings included."""
    val = shared / "data" / "eval" / "images" / "val"
    if not val.is_dir():
        pytest.skip(f"there is no {val}")
    files = sorted(val.glob("*.jpg"))[:100]
    found = 0
    for file in files:
        original = Image.open(file).convert("RGB")
        data = encoded(original, "JPEG", quality=60)
        bits = duplicates.hash_image(data) ^ duplicates.hash_image(str(file))
        found += bits.bit_count() <= duplicates.DISTANCE
    assert found >= 0.98 * len(files)


def test_the_order_of_folders_makes_no_difference(folder: pathlib.Path) -> None:
    whole = duplicates.open_index([str(folder)])
    assert np.all(np.diff(whole.hashes.astype(object)) > 0)  # sorted, each once
    twice = duplicates.open_index([str(folder / "inner"), str(folder)], threads=3)
    assert twice.sha256 == whole.sha256
    part = duplicates.open_index([str(folder / "inner")])
    assert part.sha256 != whole.sha256


@hypothesis.given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(0, 2**64 - 1))
def test_the_search_is_exact(hashes: list[int], value: int) -> None:
    index = duplicates.Index(np.array(hashes, np.uint64))
    naive = min((bin(one ^ value).count("1") for one in hashes), default=duplicates.BITS)
    assert index.distance(value) == naive


@hypothesis.given(st.integers(0, 255), st.integers(0, 255))
def test_extreme_pictures_have_a_hash(low: int, high: int) -> None:
    """Sums do not overflow: the hash is a number of 64 bits, whatever the pixels are."""
    board = np.indices((32, 32)).sum(0) % 2
    pixels = np.where(board, low, high).astype(np.uint8)[..., None].repeat(3, -1)
    assert 0 <= duplicates.perceptual_hash(pixels) < 2**64


def test_the_mean_is_the_largest_frequency_of_white() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    assert duplicates.perceptual_hash(white) == 1 << 63


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: ([str(path / "absent")], 6), "no evaluation images"),
        (lambda path: ([str(path)], 6), "no evaluation images"),
        (lambda path: ([str(path)], -1), "-1 bits"),
        (lambda path: ([str(path)], 32), "32 bits"),
    ],
)
def test_wrong_folders(make, said: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(InputError, match=said):
        duplicates.open_index(*make(tmp_path))
