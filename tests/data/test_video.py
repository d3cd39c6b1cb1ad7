"""Clips: the right frames at the right times, from files, bytes and arrays."""

import io
import json
import pathlib
from collections.abc import Callable

import av
import numpy as np
import pytest

from flamingo_jax.data import images, video
from flamingo_jax.data.faults import BadRecord


def written(shade: Callable[[int], int], count: int, kind: str = "mp4") -> bytes:
    """A clip of 10 frames a second whose frame i is grey of shade(i), its left half black."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 12
        for index in range(count):
            pixels = np.full((48, 64, 3), shade(index), np.uint8)
            pixels[:, :32] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def shades(clip: np.ndarray) -> list[int]:
    """The grey of the right half of each frame."""
    return clip[:, 8:-8, -6, 0].mean(1).round().astype(int).tolist()


FIVE_SECONDS = written(lambda i: 4 * i, 50)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"count": 3}, [0, 40, 80]),
        ({"count": 3, "offset": 0.5}, [40, 80, 120]),
        ({"count": 3, "offset": 1.0}, [80, 120, 160]),
        ({"count": 8}, [0, 40, 80, 120, 160]),  # a short clip gives fewer
        ({"count": 8, "offset": 1.0}, [0, 40, 80, 120, 160]),
        ({"count": 4, "fps": 2.0}, [0, 20, 40, 60]),
        ({"count": 4, "fps": 4.0}, [0, 8, 20, 28]),  # the frame shown at 0.25 s began at 0.2 s
        ({"count": 2, "fps": 0.25}, [0, 160]),
    ],
)
def test_frames_at_even_times(how: dict, expected: list[int]) -> None:
    clip = video.frames(FIVE_SECONDS, size=32, resize="squash", **how)
    assert clip.shape == (len(expected), 32, 32, 3) and clip.dtype == np.uint8
    assert np.abs(np.subtract(shades(clip), expected)).max() <= 2


def test_other_containers_and_single_frames(tmp_path: pathlib.Path) -> None:
    matroska = written(lambda i: 4 * i, 30, kind="matroska")
    path = tmp_path / "clip.mkv"
    path.write_bytes(matroska)
    found = shades(video.frames(str(path), 8, 32, "squash"))
    assert np.abs(np.subtract(found, [0, 40, 80])).max() <= 2
    assert len(video.frames(written(lambda i: 99, 1), 8, 32)) == 1


def test_a_seek_finds_the_same_frames() -> None:
    clip = written(lambda i: 2 * i, 120)  # 12 s, a key frame at least every 1.2 s
    late = video.frames(clip, 1, 32, "squash", offset=1.0)
    assert abs(shades(late)[0] - 2 * 110) <= 2


def test_turned_clips_stand_upright() -> None:
    data = bytearray(written(lambda i: 200, 3))
    place = data.index(b"tkhd")
    matrix = place + 4 + (52 if data[place + 4] else 40)
    # As phones write it, to be turned clockwise; numbers of 16.16 bits, the last of 2.30.
    for index, number in enumerate((0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)):
        data[matrix + 4 * index : matrix + 4 * index + 4] = number.to_bytes(4, "big", signed=True)
    turned = video.frames(bytes(data), 1, 32, "squash")[0, ..., 0]
    assert turned[:12].max() < 20 and turned[20:].min() > 180  # the left half is on top


def test_resize_follows_the_policy_of_pictures() -> None:
    padded = video.frames(FIVE_SECONDS, 1, 64, "pad")[0]
    assert np.ptp(padded[:7].reshape(-1, 3), axis=0).max() == 0
    cropped = video.frames(FIVE_SECONDS, 2, 48, "crop")
    assert cropped.shape == (2, 48, 48, 3)


def test_arrays_are_frames_already() -> None:
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    assert video.frames(pixels, 3, 8)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert video.frames(pixels, 3, 8, offset=1.0)[:, 0, 0, 0].tolist() == [2, 3, 4]
    assert video.frames(pixels, 9, 8, offset=1.0)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(
        video.frames(pixels, 2, 5), np.stack([images.decode(frame, 5) for frame in pixels[:2]])
    )
    for wrong in (pixels[0], pixels.astype(np.float32), pixels[:0]):
        with pytest.raises(BadRecord, match="wrong form"):
            video.frames(wrong, 2, 8)


def test_broken_clips_are_bad_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data in (b"", b"garbage", FIVE_SECONDS[:200], b"ffconcat version 1.0\nfile secret.mp4\n"):
        with pytest.raises(BadRecord, match="not a video"):
            video.frames(data, 2, 8)
    with pytest.raises(BadRecord, match="missing video file"):
        video.frames(str(tmp_path / "none.mp4"), 2, 8)
    broken = bytearray(FIVE_SECONDS)
    start = broken.index(b"mdat") + 4
    broken[start : start + 400] = bytes(400)
    with pytest.raises(BadRecord):
        video.frames(bytes(broken), 2, 8)
    for name, value, reason in (
        ("MAX_PIXELS", 64 * 48 - 1, "too many pixels"),
        ("MAX_SECONDS", 4, "too long"),
        ("MAX_DECODED", 5, "too many frames"),
        ("MAX_BYTES", len(FIVE_SECONDS) - 1, "too many bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(video, name, value)
            with pytest.raises(BadRecord, match=reason):
                video.frames(FIVE_SECONDS, 2, 8)


def test_shared_clips(shared: pathlib.Path) -> None:
    folder = shared / "data" / "video"
    rows = (folder / "captions_eval.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows
    for row in map(json.loads, rows[:6]):
        path = folder / "clips" / pathlib.Path(row["video"]).name
        clip = video.frames(str(path), 8, 64)
        seconds = row["n_frames"] / row["fps"]
        assert len(clip) == min(8, int(np.ceil(seconds - 1e-3)))
