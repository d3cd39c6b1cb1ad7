"""How many pictures a second the data pipeline makes, and whether its memory stays flat.

    python experiments/benchmarks/data.py --check
    python experiments/benchmarks/data.py --memory --steps=5000 --check

The first makes WebDataset tars of JPEGs of 640×480 (real pictures of the shared data, scaled and
with the grain of a camera, as scaling leaves no fine detail; drawn ones where there are none) and
reads pairs from them, to batches of u8[B, 1, 1, 224, 224, 3] with the config's own threads and
prefetching, without augmentation. Beside it, in turn and with as many threads: raw decoding and
resizing of the same bytes by the same calls and the same filter, and what OpenFlamingo does with a
picture (Pillow, full decoding, bicubic to 224 on the short side, the middle cut out, f32,
normalised). A ratio is the median over rounds. Pillow and simplejpeg (the extra `fast`) are
measured each, with the filters of config.data.resize="pad" and "pad:hamming".

The second reads `--steps` steps, some records of which are broken, and prints resident memory.
`--check` ends with the exit code 1 where a bound does not hold. On a machine that others use too,
`--clock=cpu` compares seconds of the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
from PIL import Image
from resident import growth, resident_mb

from flamingo_jax import config
from flamingo_jax.data import images
from flamingo_jax.data.pipeline import Pipeline, usual_threads
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.sources import SourceSpec, open_source
from flamingo_jax.data.tokenizer import Tokenizer, train_tokenizer

WIDTH, HEIGHT, SIZE, QUALITY = 640, 480, 224, 90
GRAIN = 4.0  # levels, the deviation of what is added to scaled pictures
BATCH, LENGTH, SHARDS = 32, 64, 4
INNER = (SIZE, SIZE * HEIGHT // WIDTH)  # what "pad" resizes such a picture to
RESIZES = ("pad", "pad:hamming")
FILTERS = {"pad": "bicubic", "pad:hamming": "Hamming"}
# (decoder, config.data.resize): what is asked for, as a share of raw and of the peer's.
LEAST = {
    ("Pillow", "pad"): (0.85, 1.8),
    ("simplejpeg", "pad"): (0.85, 0.0),
    ("simplejpeg", "pad:hamming"): (0.85, 2.2),
}
CAPTION = "a picture of {} beside a window, number {} of those that were taken on that day"


def main(argv: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--steps", type=int, default=5_000, help="of the measurement of memory")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        kind, encoded = made_pictures(flags.pictures)
        write_shards(pathlib.Path(folder), encoded, broken=50 if flags.memory else 0)
        kilobytes = sum(map(len, encoded)) / len(encoded) / 1e3
        print(
            f"{len(encoded)} {kind} pictures, JPEG {WIDTH} x {HEIGHT}, quality {QUALITY}, "
            f"{kilobytes:.0f} kB each; {os.cpu_count()} processors"
        )
        if flags.memory:
            failures = measure_memory(folder, flags.steps)
        else:
            failures = measure_speed(folder, encoded, flags.rounds, flags.clock)
    for failure in failures if flags.check else ():
        print(f"too little: {failure}", file=sys.stderr)
    return int(bool(failures) and flags.check)


def made_pictures(count: int) -> tuple[str, list[bytes]]:
    """("real" or "drawn", JPEGs)."""
    named = os.environ.get("FLAMINGO_SHARED")
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared"
    files = sorted((pathlib.Path(named) if named else beside).glob("data/**/images/**/*.jpg"))
    files.sort(key=lambda path: path.stat().st_size, reverse=True)
    encoded = []
    for number in range(count):
        rng = np.random.default_rng(number)
        if files:
            with Image.open(files[number % len(files)]) as image:
                pixels = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        else:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
            fine = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
            parts = [
                part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for part in (coarse, fine)
            ]
            pixels = Image.blend(parts[0], parts[1], 0.3)
        grain = rng.standard_normal((HEIGHT, WIDTH, 1), np.float32) * GRAIN
        shown = np.clip(np.asarray(pixels) + grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(shown).save(file, "JPEG", quality=QUALITY)
        encoded.append(file.getvalue())
    return "real" if files else "drawn", encoded


def write_shards(folder: pathlib.Path, encoded: list[bytes], broken: int) -> None:
    """WebDataset tars; of `broken` records one has a cut picture, 0 = none."""
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard, len(encoded), SHARDS):
                data = encoded[number]
                if broken and number % broken == 0:
                    data = data[: len(data) // 2]
                caption = CAPTION.format("a table", number)
                about = f'{{"id": {number}, "width": {WIDTH}, "height": {HEIGHT}}}'
                fields = {"jpg": data, "txt": caption.encode(), "json": about.encode()}
                for field, value in fields.items():
                    member = tarfile.TarInfo(f"{number:06d}.{field}")
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))


def opened(folder: str, batch: int, steps: int, resize: str = "pad") -> Pipeline:
    """The pipeline as a config's defaults make it."""
    data = config.base().data
    source = open_source(SourceSpec("pairs", f"{folder}/*.tar"))
    row = DatasetSpec("pairs", "pair", batch, LENGTH, image_size=SIZE, resize=resize)
    options = {"threads": data.threads, "prefetch": data.prefetch}
    return Pipeline({"pairs": source}, {"pairs": row}, _tokenizer(), seed=0, steps=steps, **options)


def _tokenizer() -> Tokenizer:
    return train_tokenizer((CAPTION.format("a table", n) for n in range(200)), 320)


Clock = Callable[[], float]
Setting = tuple[str, str]
"""(decoder, config.data.resize)."""


def measure_speed(folder: str, encoded: list[bytes], rounds: int, clock: str) -> list[str]:
    """Prints the table; returns what falls short."""
    now: Clock = time.perf_counter if clock == "wall" else time.process_time
    threads = config.base().data.threads or usual_threads()
    steps = 2 * len(encoded) // BATCH  # enough for what is in flight at both ends to matter little
    pipelines = {resize: opened(folder, BATCH, 1_000_000, resize) for resize in RESIZES}
    decoders = ["Pillow"] + ["simplejpeg"] * (images._simplejpeg() is not None)
    settings = [(decoder, resize) for decoder in decoders for resize in RESIZES]
    taken: dict[tuple[str, ...], list[float]] = {}
    with ThreadPoolExecutor(threads) as pool:

        def mapped(function: Callable[[bytes], object], pictures: list[bytes]) -> float:
            begin = now()
            for _ in pool.map(lambda part: [function(data) for data in part], _parts(pictures)):
                pass
            return (now() - begin) / len(pictures)

        # What else goes on in a machine changes by the second: each measurement of the pipeline
        # stands between two halves of those that it is compared with.
        half = len(encoded) // 2
        for number in range(-1, rounds):  # the first is not counted
            for setting in settings:
                decoder, resize = setting
                others = {"raw": lambda data, resize=resize: raw(data, resize), "peer": peer}
                with using(decoder):
                    mapped(others["raw"], encoded[: half // 2])  # awake after a pause
                    before = {name: mapped(f, encoded[:half]) for name, f in others.items()}
                    seconds = _timed(pipelines[resize], steps, now)
                    mapped(others["raw"], encoded[: half // 2])
                    after = {name: mapped(f, encoded[half:]) for name, f in others.items()}
                found = {name: (before[name] + after[name]) / 2 for name in others}
                if number >= 0:
                    for name, value in (found | {"pipeline": seconds}).items():
                        taken.setdefault((name, *setting), []).append(value)
    print(f"decoded at 1/{_scale(encoded[0])} of the scale, then brought to {INNER}:")
    for resize in RESIZES:
        difference = np.concatenate([_difference(data, resize) for data in encoded[:32]])
        print(
            f"  {FILTERS[resize]} ({resize}): {difference.mean():.2f} of 255 levels from bicubic "
            f"at full scale on average, 99 of 100 within {np.percentile(difference, 99):.0f}"
        )
    return _table(taken, settings, threads, clock)


def _table(
    taken: dict[tuple[str, ...], list[float]], settings: list[Setting], threads: int, clock: str
) -> list[str]:
    """Prints pictures a second and ratios; returns what falls short."""
    print(f"{'':32}{'threads':>8}{'median':>9}{'best':>8}   pictures a second ({clock} clock)")
    for name, seconds in taken.items():
        rates = f"{1 / statistics.median(seconds):9.0f}{1 / min(seconds):8.0f}"
        print(f"{', '.join(name):32}{threads:8}{rates}")
    failures = []
    for setting in settings:
        for other, least in zip(("raw", "peer"), LEAST.get(setting, (0.0, 0.0)), strict=True):
            pairs = zip(taken[other, *setting], taken["pipeline", *setting], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            line = f"{', '.join(setting)}: pipeline / {other} {ratio:.2f}"
            line += f", at least {least} is asked for" if least else ""
            print(line)
            if ratio < least:
                failures.append(line)
    return failures


def _timed(pipeline: Pipeline, steps: int, now: Clock) -> float:
    """Seconds a picture, once what is read ahead is being waited for."""
    batches = pipeline.iterate()
    for _ in range(pipeline.prefetch + 1):
        next(batches)
    begin = now()
    for _ in range(steps):
        next(batches)
    seconds = now() - begin
    batches.close()
    time.sleep(0.3)  # what was begun is finished
    return seconds / (steps * BATCH)


def _parts(encoded: list[bytes]) -> Iterator[list[bytes]]:
    """As many at a time as a thread of the pipeline takes."""
    for start in range(0, len(encoded), 8):
        yield encoded[start : start + 8]


@contextlib.contextmanager
def using(decoder: str) -> Iterator[None]:
    """Has JPEGs decoded by simplejpeg, or as if it were not installed."""
    if decoder == "simplejpeg":
        yield
    else:
        with mock.patch.object(images, "_simplejpeg", lambda: None):
            yield


def raw(data: bytes, resize: str) -> np.ndarray:
    """Decoding and resizing and nothing else, u8[168, 224, 3]."""
    fast, scale = images._simplejpeg(), _scale(data)
    if fast is None:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        image.draft(None, (WIDTH // scale, HEIGHT // scale))
    else:
        least = {"min_width": WIDTH // scale, "min_height": HEIGHT // scale}
        image = Image.fromarray(fast.decode_jpeg(data, "RGB", **least))
    return np.asarray(image.resize(INNER, images.FILTERS[resize.removeprefix("pad")]))


def _scale(data: bytes) -> int:
    return images._scale_of((WIDTH, HEIGHT), images._draft_size((WIDTH, HEIGHT), SIZE, "pad"))


def _difference(data: bytes, resize: str) -> np.ndarray:
    """Levels between what the pipeline shows of a picture and bicubic resizing at full scale."""
    full = Image.open(io.BytesIO(data)).resize(INNER, Image.Resampling.BICUBIC)
    top = (SIZE - INNER[1]) // 2
    shown = images.decode(data, SIZE, resize)[top : top + INNER[1]]
    return np.abs(shown.astype(int) - np.asarray(full)).ravel()


_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]  # CLIP's
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]


def peer(data: bytes) -> np.ndarray:
    """OpenFlamingo's preprocessing (open_clip's `image_transform`), f32[3, 224, 224]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    wide = round(SIZE * WIDTH / HEIGHT)
    image = image.resize((wide, SIZE), Image.Resampling.BICUBIC)
    left = (wide - SIZE) // 2
    pixels = np.asarray(image.crop((left, 0, left + SIZE, SIZE)))
    scaled = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    scaled -= _MEAN
    scaled /= _STD
    return scaled


def measure_memory(folder: str, steps: int) -> list[str]:
    """Prints resident memory as steps go by; returns what is amiss."""
    batch = 8
    pipeline = opened(folder, batch, steps)
    every = max(steps // 20, 1)
    seen, rejected = [], 0
    for step, _ in enumerate(pipeline.iterate()):
        for row in range(batch):
            pipeline.row_index("pairs", step, row)
        rejected += len(pipeline.rejects("pairs", step))
        if (step + 1) % every == 0:
            seen.append((step + 1, resident_mb()))
            print(f"step {step + 1:7}: {seen[-1][1]:7.1f} MB resident, {rejected} records replaced")
    return growth(seen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
