"""One of several hosts, as tests/data/test_hosts.py starts them: writes hashes of its rows.

HOSTS HOST PORT FOLDER THREADS SEED FIRST LAST: the rows of steps FIRST … LAST - 1.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

from flamingo_jax import sharding
from flamingo_jax.data import sources
from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.data.tokenizer import open_tokenizer

FIELDS = ("tokens", "positions", "media", "frames", "media_of_token", "loss_mask")


def specs() -> dict[str, DatasetSpec]:
    """Two datasets, one with fresh augmentation and one with versions."""
    augment = AugmentSpec(flip=0.5, brightness=0.1, scale=(0.8, 1.2), shift=0.1)
    common = {"image_size": 16, "augment": augment, "leading_space": 0.5}
    return {
        "pairs": DatasetSpec("pairs", "pair", 8, 24, **common),
        "told": DatasetSpec("told", "pair", 16, 12, versions=3, **common),
    }


def make(
    folder: str, seed: int, threads: int, rows: dict[str, tuple[int, int]] | None = None
) -> Pipeline:
    """The pipeline; its sources hold records that cannot be used."""
    opened = {
        name: sources.open_source(SourceSpec("pairs", f"{folder}/{name}.jsonl", folder), seed=seed)
        for name in specs()
    }
    tokenizer = open_tokenizer("bytes")
    return Pipeline(
        opened, specs(), tokenizer, seed=seed, steps=60, rows=rows, threads=threads, prefetch=2
    )


def hashes(batch, low: int = 0) -> dict[str, str]:
    """{row of the global batch: hash of all its fields}."""
    found = {}
    for place in range(len(batch.tokens)):
        digest = hashlib.sha256()
        for field in FIELDS:
            digest.update(np.ascontiguousarray(getattr(batch, field)[place]).tobytes())
        found[str(low + place)] = digest.hexdigest()
    return found


def main(argv: list[str]) -> None:
    """Joins the others and reads."""
    hosts, host, port, folder, threads, seed, first, last = argv
    if int(hosts) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(hosts), int(host))
    mesh = sharding.make_mesh(replica=1, fsdp=-1, tensor=1)
    rows = {name: sharding.local_rows(spec.batch, mesh) for name, spec in specs().items()}
    steps = make(folder, int(seed), int(threads), rows).iterate(int(first))
    told = {}
    for step in range(int(first), int(last)):
        batches = next(steps)
        told[step] = {name: hashes(b, rows[name][0]) for name, b in batches.items()}
    out = pathlib.Path(folder) / f"rows-{hosts}-{host}-{first}-{seed}-{threads}.json"
    out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
