"""A small folder of captioned pictures: its records are kept, left out, and broken."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data.prepare import filters
from flamingo_jax.data.prepare.job import Job
from flamingo_jax.data.sources import SourceSpec

RECORDS = 11


def encoded(seed: int, width: int = 90, height: int = 80) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, format="JPEG")
    return file.getvalue()


def write_folder(folder: pathlib.Path, records: int = RECORDS) -> pathlib.Path:
    """Record 2 has a small image, 5 a broken one, 7 none; all are of the training split."""
    folder.mkdir()
    rows = []
    for place in range(records):
        data = {2: encoded(2, 30, 30), 5: b"no image"}.get(place, encoded(place))
        (folder / f"{place}.jpg").write_bytes(data)
        row = {"image": f"{place}.jpg", "text": f"picture {place}", "split": "train"}
        if place == 7:
            del row["image"]
        rows.append(json.dumps(row))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_folder(tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture
def job(pictures: pathlib.Path) -> Job:
    return Job(SourceSpec("folder", str(pictures)), shard_size=4, options=filters.PAPER)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of every file but the lock, hidden ones too."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


@pytest.fixture
def contents():
    return files_of
