"""Clips: from an encoded video to a few frames u8[F, Y, X, 3], by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import contextlib
import io
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from flamingo_jax.data import images
from flamingo_jax.data.faults import BadRecord

MAX_BYTES = 1 << 30  # of one encoded clip
MAX_PIXELS = 1 << 24  # of one frame: 4096 × 4096
MAX_SECONDS = 6 * 3600
MAX_DECODED = 20_000  # frames decoded for one reading, those between the wanted ones included
_SLACK = 1e-3  # seconds; times are rounded to the container's time base


def frames(
    data: bytes | str | np.ndarray,
    count: int,
    size: int,
    resize: str = "pad",
    fps: float = 1.0,
    offset: float = 0.0,
    part: tuple[float, float | None] = (0.0, None),
) -> np.ndarray:
    """Frames at even times: those shown at start, start + 1/fps, … (Flamingo v1 §4.1: 8 at 1 FPS).

    Args:
      data: encoded bytes, a path, or frames u8[n, Y, X, 3], which are taken to be at `fps` already.
      count: F, how many frames are wanted.
      size: Y and X of the result.
      resize: how a frame is brought to that size, see `images.decode`.
      fps: frames a second.
      offset: in [0, 1]: where to start, as a share of what the clip is longer than count / fps.
      part: from which second on and before which (None = the end) an encoded clip is looked at, as
        if nothing else had been recorded.

    Returns:
      u8[f, size, size, 3], 1 ≤ f ≤ F: a clip shorter than F / fps seconds gives fewer.

    Raises:
      BadRecord: for what is no video, is broken, missing, or too large.
    """
    if isinstance(data, np.ndarray):
        return _from_array(data, count, size, resize, offset)
    with _open(data) as container:
        try:
            picked = list(_pick(container, count, fps, offset, *part))
            fitted = [images.fit(Image.fromarray(pixels), size, resize) for pixels in picked]
        except BadRecord:
            raise
        except Exception as error:  # decoders raise anything on broken bytes
            raise BadRecord("broken or truncated video", str(error)) from error
    if not fitted:
        raise BadRecord("no frames in a video")
    return np.stack(fitted)


def _from_array(
    pixels: np.ndarray, count: int, size: int, resize: str, offset: float
) -> np.ndarray:
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] != 3 or not pixels.size:
        raise BadRecord("pixels of a wrong form", f"{pixels.dtype}{list(pixels.shape)}")
    start = round(offset * max(len(pixels) - count, 0))
    chosen = pixels[start : start + count]
    if chosen.shape[1:3] == (size, size):
        return chosen
    return np.stack([images.decode(frame, size, resize) for frame in chosen])


@contextlib.contextmanager
def _open(data: bytes | str) -> Iterator[Any]:
    """An opened container; nothing else than these bytes is ever read."""
    import av

    with contextlib.ExitStack() as stack:
        if isinstance(data, str):
            try:
                status = pathlib.Path(data).stat()
                if not stat.S_ISREG(status.st_mode):  # a pipe would wait for its writer
                    raise BadRecord("missing video file", f"{data!r} is no file")
                length = status.st_size
                file: Any = stack.enter_context(open(data, "rb"))
            except BadRecord:
                raise
            except (OSError, ValueError) as error:  # ValueError for a NUL in the name
                raise BadRecord("missing video file", repr(data)) from error
        else:
            length, file = len(data), io.BytesIO(data)
        if length > MAX_BYTES:
            raise BadRecord("too many bytes in a video", f"{length}")
        try:
            container = stack.enter_context(av.open(file, io_open=_refuse))
        except Exception as error:  # decoders raise anything on broken bytes
            raise BadRecord("not a video", str(error)) from error
        yield container


def _refuse(url: str, *_: Any) -> Any:
    # Playlists can name other files and addresses.
    raise OSError(f"a video may not open {url!r}")


def _pick(
    container: Any, count: int, fps: float, offset: float, begin: float, end: float | None
) -> Iterator[np.ndarray]:
    """Yields u8[Y, X, 3], the frame shown at each of the wanted times that the clip has."""
    if not container.streams.video:
        raise BadRecord("no pictures in a video")
    stream = container.streams.video[0]
    _bound(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.thread_count = 1  # the rows of a batch are read in parallel already
    origin = float((stream.start_time or 0) * stream.time_base)
    length = _duration(container, stream)
    if end is not None:
        length = min(end, length or end)
    start = begin + offset * max(length - begin - count / fps, 0.0)
    if start > 1:  # from the key frame at or before it
        container.seek(int((origin + start) / stream.time_base), stream=stream)
    times = [start + index / fps for index in range(count)]
    if end is not None:  # a part shorter than a frame still shows one
        times = [time for time in times if time < end - _SLACK] or times[:1]
    wanted = iter(times)
    time = next(wanted)
    shown, shown_at = None, 0.0
    for number, frame in enumerate(container.decode(stream)):
        if number >= MAX_DECODED:
            raise BadRecord("too many frames in a video")
        _bound(frame.width, frame.height)
        at = 0.0 if frame.time is None else frame.time - origin
        while shown is not None and at > time + _SLACK:
            yield _pixels(shown)
            time = next(wanted, None)
            if time is None:
                return
        shown, shown_at = frame, at
    rate = float(stream.average_rate or stream.guessed_rate or fps)
    while shown is not None and time is not None and time < shown_at + 1 / rate - _SLACK:
        yield _pixels(shown)
        time = next(wanted, None)


def _duration(container: Any, stream: Any) -> float:
    """Seconds, 0 where neither the stream nor the container says."""
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / 1e6
    if seconds > MAX_SECONDS:
        raise BadRecord("too long a video", f"{seconds:.0f} s")
    return seconds


def _bound(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadRecord("too many pixels in a video", f"{width} x {height}")


def _pixels(frame: Any) -> np.ndarray:
    """u8[Y, X, 3], upright: phones store a clip turned, with its rotation beside it."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # rotation: degrees, counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
