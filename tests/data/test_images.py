"""Pictures of every kind become u8[Y, X, 3]; broken ones raise; augmentation is a pure draw."""

import io
import pathlib
import warnings
import zlib
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flamingo_jax.data import images
from flamingo_jax.data.augment import AugmentSpec, augment
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.randomness import generator, seed32


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour, side: int = 16) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def palette(transparent: bool) -> bytes:
    image = flat("RGB", (10, 200, 30)).quantize(4)
    return encoded(image, transparency=image.getpixel((0, 0))) if transparent else encoded(image)


def sixteen_bits(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((16, 16), value, np.uint16)))


PICTURES = {
    "RGB": (encoded(flat("RGB", (10, 200, 30))), (10, 200, 30)),
    "1": (encoded(flat("1", 1)), (255, 255, 255)),
    "L": (encoded(flat("L", 77)), (77, 77, 77)),
    "LA half over white": (encoded(flat("LA", (0, 128))), (127, 127, 127)),
    "P": (palette(False), (10, 200, 30)),
    "P transparent": (palette(True), (255, 255, 255)),
    "RGBA transparent": (encoded(flat("RGBA", (9, 9, 9, 0))), (255, 255, 255)),
    "RGBA half": (encoded(flat("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
    "I;16 dark": (sixteen_bits(257 * 40), (40, 40, 40)),
    "I;16 white": (sixteen_bits(65535), (255, 255, 255)),
    "I": (encoded(flat("I", 257 * 99), "TIFF"), (99, 99, 99)),
    "F": (encoded(flat("F", 0.5), "TIFF"), (128, 128, 128)),
    "CMYK": (encoded(flat("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
    "GIF, first frame": (
        encoded(
            flat("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[flat("RGB", (0, 0, 255))]
        ),
        (255, 0, 0),
    ),
    "WEBP": (encoded(flat("RGB", (200, 10, 10)), "WEBP", lossless=True), (200, 10, 10)),
    "BMP": (encoded(flat("RGB", (1, 2, 3)), "BMP"), (1, 2, 3)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("resize", images.RESIZES)
def test_every_mode(name: str, resize: str) -> None:
    data, colour = PICTURES[name]
    pixels = images.decode(data, 24, resize)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - colour).max() <= 1


def test_transparency_is_laid_over_the_background() -> None:
    data = encoded(flat("RGBA", (9, 9, 9, 0)))
    assert (images.decode(data, 8, background=(1, 2, 3)) == [1, 2, 3]).all()


def test_cmyk_jpeg() -> None:
    pixels = images.decode(encoded(flat("CMYK", (255, 0, 0, 0)), "JPEG"), 16)
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() < 40  # cyan


def quarters(width: int, height: int) -> Image.Image:
    """Left red, right blue; the upper half darker."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    pixels[:, width // 2 :, 2] = 200
    pixels[height // 2 :] += 40
    return Image.fromarray(pixels)


def test_pad_keeps_the_aspect_and_fills_with_the_mean() -> None:
    pixels = images.decode(encoded(quarters(40, 20)), 20, "pad")
    mean = pixels[5:15].mean((0, 1))
    assert np.abs(pixels[:5] - mean).max() <= 0.5 and np.abs(pixels[15:] - mean).max() <= 0.5
    assert (pixels[6, 2] == [200, 0, 0]).all() and (pixels[13, 17] == [40, 40, 240]).all()
    upright = images.decode(encoded(quarters(20, 40)), 20, "pad")
    assert (upright[2, 6] == [200, 0, 0]).all() and (upright[17, 13] == [40, 40, 240]).all()
    assert np.ptp(upright[:, :5].reshape(-1, 3), axis=0).max() == 0


def test_crop_cuts_the_middle_and_squash_keeps_all() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 250
    data = encoded(Image.fromarray(wide))
    assert images.decode(data, 10, "crop").min() == 250
    squashed = images.decode(data, 30, "squash")
    assert squashed[:, :9].max() < 5 and squashed[:, 11:19].min() > 245


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 2)])
@pytest.mark.parametrize("resize", images.RESIZES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_shapes(size: tuple[int, int], resize: str, kind: str) -> None:
    data = encoded(Image.new("RGB", size, (50, 60, 70)), kind)
    pixels = images.decode(data, 32, resize)
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels.astype(int) - [50, 60, 70]).max() <= 4


def test_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter counterclockwise
    stored = quarters(64, 64).transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    expected = images.decode(encoded(quarters(64, 64)), 64).astype(int)
    assert np.abs(images.decode(data, 64) - expected).mean() < 8


def test_reduced_jpeg_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    large = small.resize((960, 720), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    for resize in images.RESIZES:
        full = images.decode(np.asarray(large), 48, resize).astype(int)
        assert np.abs(images.decode(data, 48, resize) - full).mean() < 2


def test_arrays_and_paths(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
    assert images.decode(pixels, 12) is pixels
    assert np.array_equal(images.decode(pixels[None], 12), pixels)
    assert np.array_equal(images.decode(pixels[..., :1], 12)[..., 2], pixels[..., 0])
    assert images.decode(pixels[..., 0], 5).shape == (5, 5, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(images.decode(str(path), 12), pixels)


def test_broken_pictures_are_bad_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg, png = (encoded(Image.fromarray(noise), kind) for kind in ("JPEG", "PNG"))
    for data in (b"", b"garbage", b"GIF89a", b"\xff\xd8\xff"):
        with pytest.raises(BadRecord, match="not an image"):
            images.decode(data, 8)
    for data in (jpeg[: len(jpeg) // 2], png[: len(png) // 2]):
        with pytest.raises(BadRecord, match="broken or truncated"):
            images.decode(data, 8)
    with pytest.raises(BadRecord) as caught:
        images.decode(str(tmp_path / "none.png"), 8)
    assert caught.value.reason == "missing image file"
    for wrong in (np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(BadRecord, match="wrong form"):
            images.decode(wrong, 8)
    with pytest.raises(BadRecord, match="empty"):
        images.decode(np.zeros((0, 4, 3), np.uint8), 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(BadRecord, match="too many pixels"):
        images.decode(png, 8)
    monkeypatch.setattr(images, "MAX_BYTES", len(png) - 1)
    with pytest.raises(BadRecord, match="too many bytes"):
        images.decode(png, 8)


def test_a_decompression_bomb_is_refused_unread() -> None:
    data = bytearray(encoded(flat("1", 0)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadRecord, match="too many pixels"):
            images.decode(bytes(data), 8)


def test_shared_pictures_decode(shared: pathlib.Path) -> None:
    files = sorted((shared / "data" / "interleaved" / "images").iterdir())[:60]
    assert files
    for file in files:
        assert images.decode(str(file), 48).shape == (48, 48, 3)


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
