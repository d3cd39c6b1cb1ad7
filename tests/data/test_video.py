"""Clips: the right frames at the right times, from files, bytes and arrays."""

import dataclasses
import fractions
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest

from flamingo_jax.data import document, images, prompt, rows, video
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
        ({"count": 3, "part": (1.0, None)}, [40, 80, 120]),
        ({"count": 3, "part": (1.0, 3.0)}, [40, 80]),
        ({"count": 8, "part": (2.5, 9.0)}, [100, 140, 180]),
        ({"count": 1, "part": (1.0, 4.0), "offset": 1.0}, [120]),
        ({"count": 2, "part": (2.0, 2.0005)}, [80]),  # shorter than a frame
    ],
)
def test_frames_at_even_times(how: dict, expected: list[int]) -> None:
    clip = video.frames(FIVE_SECONDS, size=32, resize="squash", **how)
    assert clip.shape == (len(expected), 32, 32, 3) and clip.dtype == np.uint8
    assert np.abs(np.subtract(shades(clip), expected)).max() <= 2


def timed(
    times: list[float],
    kind: str = "matroska",
    codec: str = "libx264",
    sound: bool = False,
    pictures: bool = True,
    seconds: float = 2.0,
) -> bytes:
    """A clip whose frame i is shown from times[i] on, grey of 4 · i, its left half black."""
    base = fractions.Fraction(1, 90_000)
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        if pictures:
            video_stream: Any = container.add_stream(codec, rate=30)
            video_stream.width, video_stream.height, video_stream.pix_fmt = 64, 48, "yuv420p"
            video_stream.time_base = video_stream.codec_context.time_base = base
        if sound:
            name = "libopus" if kind == "webm" else "aac"
            audio: Any = container.add_stream(name, rate=48_000)
            audio.codec_context.layout = "mono"
        for index, time in enumerate(times if pictures else ()):
            pixels = np.full((48, 64, 3), 4 * index, np.uint8)
            pixels[:, :32] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(video_stream.encode(frame))
        if pictures:
            container.mux(video_stream.encode())
        if sound:
            form = "flt" if kind == "webm" else "fltp"
            for start in range(0, int(48_000 * seconds), 960):
                silence = np.zeros((1, 960), np.float32)
                heard = av.AudioFrame.from_ndarray(silence, format=form, layout="mono")
                heard.sample_rate, heard.pts = 48_000, start
                container.mux(audio.encode(heard))
            container.mux(audio.encode())
    return file.getvalue()


def shown(times: list[float], wanted: list[float]) -> list[int]:
    """The shades of the frames that are shown at the wanted times."""
    return [4 * max(i for i, time in enumerate(times) if time <= at + 1e-3) for at in wanted]


RATES = {"23.976": 24_000 / 1001, "12.5": 12.5, "29.97": 30_000 / 1001, "60": 60.0}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("kind", "codec"), [("matroska", "libx264"), ("webm", "libvpx-vp9")])
def test_odd_rates(rate: str, kind: str, codec: str) -> None:
    times = [i / RATES[rate] for i in range(50)]
    seconds = 50 / RATES[rate]
    clip = video.frames(timed(times, kind, codec), 30, 32, "squash", fps=3.0)
    wanted = [i / 3 for i in range(30) if i / 3 < seconds - 1e-3]
    assert len(clip) == len(wanted)
    assert np.abs(np.subtract(shades(clip), shown(times, wanted))).max() <= 4


def test_frames_at_uneven_times() -> None:
    times = [0.0, 0.1, 0.2, 1.4, 1.5, 1.55, 3.3, 3.4]
    clip = video.frames(timed(times), 8, 32, "squash", fps=2.0)
    wanted = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert np.abs(np.subtract(shades(clip), shown(times, wanted))).max() <= 3


def test_sound_changes_nothing_and_is_no_video() -> None:
    times = [i / 10 for i in range(20)]
    for kind, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        silent, loud = (timed(times, kind, codec, sound) for sound in (False, True))
        assert len(loud) > len(silent)
        both = [video.frames(data, 8, 32, "squash", fps=4.0) for data in (silent, loud)]
        assert len(both[0]) == 8 and np.array_equal(both[0], both[1])
        with pytest.raises(BadRecord, match="no pictures in a video"):
            video.frames(timed([], kind, sound=True, pictures=False), 8, 32)


def test_a_broken_tail_is_not_read_unless_it_is_wanted() -> None:
    times = [i / 10 for i in range(60)]
    whole = timed(times, "matroska", "libvpx-vp9")
    cut = whole[: len(whole) // 2]
    assert np.array_equal(video.frames(cut, 1, 32), video.frames(whole, 1, 32))
    found = video.frames(cut, 6, 32)
    assert 1 <= len(found) < 6
    assert np.array_equal(found[:-1], video.frames(whole, 6, 32)[: len(found) - 1])
    headless = timed(times, "mp4")
    with pytest.raises(BadRecord, match="not a video"):  # what says where its frames lie was cut
        video.frames(headless[: len(headless) // 2], 1, 32)


def test_thirty_frames_at_three_a_second(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "clip.mp4"
    times = [i / 5 for i in range(60)]
    path.write_bytes(timed(times, "mp4"))
    part = shades(prompt.read_medium(prompt.Video(path, 30, 2.0, 1.0, 2.4), 32, "squash", frames=8))
    assert np.abs(np.subtract(part, shown(times, [1.0, 1.5, 2.0]))).max() <= 4
    clip = prompt.read_medium(prompt.Video(path, frames=30, fps=3.0), 32, "squash", frames=8)
    assert np.abs(np.subtract(shades(clip), shown(times, [i / 3 for i in range(30)]))).max() <= 4
    row = rows.DatasetSpec("c", "clip", 1, 8, frames=30, fps=3.0, image_size=32, resize="squash")
    medium = document.Medium(path.read_bytes(), "clip", "clip")
    assert np.array_equal(rows.render(medium, row, None), clip)
    slow = rows.render(medium, dataclasses.replace(row, fps=1.0), None)
    assert len(slow) == 12 and np.array_equal(slow[:10], clip[::3])


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
