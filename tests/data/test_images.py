"""Pictures of every kind become u8[Y, X, 3]; broken ones raise."""

import io
import pathlib
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from flamingo_jax.data import images
from flamingo_jax.data.faults import BadRecord

HAS_FAST = images._simplejpeg() is not None


@pytest.fixture(
    params=[
        "Pillow",
        pytest.param(
            "simplejpeg", marks=pytest.mark.skipif(not HAS_FAST, reason="the extra `fast`")
        ),
    ]
)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with each decoder of JPEGs."""
    if request.param == "Pillow":
        monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    return request.param


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


def animated(kind: str, **options) -> bytes:
    """Red, then blue."""
    later = [flat("RGB", (0, 0, 255))]
    return encoded(flat("RGB", (255, 0, 0)), kind, save_all=True, append_images=later, **options)


def turned_tiff() -> bytes:
    return encoded(flat("RGB", (10, 200, 30)), "TIFF", tiffinfo={0x0112: 6})


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
    "WEBP transparent": (
        encoded(flat("RGBA", (9, 9, 9, 0)), "WEBP", lossless=True),
        (255, 255, 255),
    ),
    "WEBP, first frame": (animated("WEBP", lossless=True), (255, 0, 0)),
    "APNG, first frame": (animated("PNG"), (255, 0, 0)),
    "TIFF, turned": (turned_tiff(), (10, 200, 30)),
    "BMP": (encoded(flat("RGB", (1, 2, 3)), "BMP"), (1, 2, 3)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("resize", images.RESIZES)
def test_every_mode(name: str, resize: str) -> None:
    data, colour = PICTURES[name]
    pixels = images.decode(data, 24, resize)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - colour).max() <= 1


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif() -> None:
    pixels = images.decode(encoded(flat("RGB", (200, 10, 10)), "AVIF", quality=100), 16)
    assert np.abs(pixels.astype(int) - [200, 10, 10]).max() <= 3


def test_transparency_is_laid_over_the_background() -> None:
    data = encoded(flat("RGBA", (9, 9, 9, 0)))
    assert (images.decode(data, 8, background=(1, 2, 3)) == [1, 2, 3]).all()


def test_cmyk_jpeg(decoder: str) -> None:
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


TURNED = {  # orientation: how an upright picture has to be stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # a quarter counterclockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("resize", images.RESIZES)
def test_exif_orientation(decoder: str, orientation: int, resize: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = quarters(96, 64)
    method = TURNED[orientation]
    stored = upright if method is None else upright.transpose(method)
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    expected = images.decode(encoded(upright), 64, resize).astype(int)
    assert np.abs(images.decode(data, 64, resize) - expected).mean() < 8


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 24 + 1, width // 24 + 1, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def jpegs() -> dict[str, bytes]:
    """JPEGs of every kind that libjpeg writes, and with segments of others."""
    picture = photo(601, 430)
    exif, xmp = Image.Exif(), b'<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
    exif[0x0112] = 6
    plain = encoded(picture, "JPEG", quality=90)
    return {
        "plain": plain,
        "progressive": encoded(picture, "JPEG", progressive=True),
        "4:4:4": encoded(picture, "JPEG", subsampling=0),
        "4:2:2": encoded(picture, "JPEG", subsampling=1),
        "optimised, restarts": encoded(picture, "JPEG", optimize=True, restart_marker_rows=2),
        "kept as RGB": encoded(picture, "JPEG", keep_rgb=True),
        "grey": encoded(picture.convert("L"), "JPEG"),
        "CMYK": encoded(picture.convert("CMYK"), "JPEG"),
        "EXIF": encoded(picture, "JPEG", exif=exif),
        "XMP": encoded(picture, "JPEG", xmp=xmp),
        "comment": encoded(picture, "JPEG", comment=b"Exif\0\0"),
        "colour profile": encoded(picture, "JPEG", icc_profile=b"profile" * 40),
        "several pictures": encoded(picture, "MPO", save_all=True, append_images=[picture]),
        "bytes behind": plain + b"and more",
        "no end": plain[:-2],
        "tiny": encoded(photo(7, 300), "JPEG"),
        "1 x 1": encoded(photo(1, 1), "JPEG"),
        "cut": plain[: len(plain) // 2],
        "cut in its header": plain[:300],
        "a flaw": plain[:9000] + bytes(40) + plain[9040:],
        "garbage behind the start": plain[:2] + b"garbage" * 30,
    }


JPEGS = jpegs()


@pytest.mark.skipif(not HAS_FAST, reason="the extra `fast`")
@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("resize", images.RESIZES)
def test_decoders_agree(name: str, resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (24, 100, 224, 700):
        fast = outcome(JPEGS[name], size, resize)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_simplejpeg", lambda: None)
            plain = outcome(JPEGS[name], size, resize)
        assert type(fast) is type(plain)
        assert np.array_equal(fast, plain), (size, fast, plain)


def outcome(data: bytes, size: int, resize: str) -> np.ndarray | str:
    """The pixels, or why there are none."""
    try:
        return images.decode(data, size, resize)
    except BadRecord as error:
        return error.reason


@pytest.mark.skipif(not HAS_FAST, reason="the extra `fast`")
def test_usual_jpegs_are_decoded_by_the_fast_decoder() -> None:
    for name in ("plain", "progressive", "4:4:4", "comment", "bytes behind"):
        assert images._plain_jpeg(JPEGS[name], 224, "pad") is not None, name
    for name in ("grey", "CMYK", "EXIF", "XMP", "cut", "tiny"):
        assert images._plain_jpeg(JPEGS[name], 224, "pad") is None, name


@given(st.integers(0, len(JPEGS["plain"]) - 1), st.integers(0, 255), st.booleans())
def test_damaged_jpegs_are_alike_or_bad(place: int, byte: int, cut: bool) -> None:
    good = JPEGS["plain"]
    data = good[:place] if cut else good[:place] + bytes([byte]) + good[place + 1 :]
    fast, known = outcome(data, 64, "pad"), images._simplejpeg
    images._simplejpeg = lambda: None
    try:
        plain = outcome(data, 64, "pad")
    finally:
        images._simplejpeg = known
    assert np.array_equal(fast, plain)


def test_a_jpeg_is_reduced_only_where_enough_is_left() -> None:
    scales = {
        size: images._scale_of((640, 480), images._draft_size((640, 480), size, "pad"))
        for size in (600, 300, 241, 240, 224, 121, 120, 61, 60)
    }
    assert scales == {600: 1, 300: 1, 241: 1, 240: 2, 224: 2, 121: 2, 120: 4, 61: 4, 60: 8}
    assert images._scale_of((480, 640), images._draft_size((480, 640), 224, "crop")) == 1


def test_reduced_jpeg_looks_the_same(decoder: str) -> None:
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
