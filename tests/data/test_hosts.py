"""The rows of every global batch, whoever reads them: hosts that come and go, threads, resumes."""

import collections
import importlib.util
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SCRIPT = pathlib.Path(__file__).with_name("hosts.py")
ROOT = SCRIPT.parents[2]
_SPEC = importlib.util.spec_from_file_location("hosts", SCRIPT)
assert _SPEC and _SPEC.loader
hosts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hosts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Two sets of pairs, an eighth of whose pictures cannot be decoded."""
    path = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(40):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(data, "PNG")
        cut = data.getvalue()[: 100 if number % 8 == 3 else None]
        (path / f"{number}.png").write_bytes(cut)
    for name, count in (("pairs", 40), ("told", 23)):
        rows = [{"image": f"{i}.png", "caption": f"{name} {i}"} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(path)


def alone(folder: str, seed: int, first: int, last: int) -> dict:
    """{step: {dataset: {row: hash}}} of one reader that was never stopped."""
    made = hosts.make(folder, seed, threads=4)
    return {
        str(step): {name: hosts.hashes(batch) for name, batch in made[step].items()}
        for step in range(first, last)
    }


def together(folder: str, count: int, threads: int, seed: int, first: int, last: int) -> dict:
    """The same of `count` processes, each with its own part of the rows."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [folder, str(threads), str(seed), str(first), str(last)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(count), str(host), str(port), *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(count)
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    found: dict = collections.defaultdict(lambda: collections.defaultdict(dict))
    for host in range(count):
        out = pathlib.Path(folder) / f"rows-{count}-{host}-{first}-{seed}-{threads}.json"
        for step, datasets in json.loads(out.read_text(encoding="utf-8")).items():
            for name, rows in datasets.items():
                assert not found[step][name].keys() & rows.keys(), "a row was read by two hosts"
                found[step][name] |= rows
    return {step: dict(datasets) for step, datasets in found.items()}


@pytest.mark.parametrize("threads", [0, 1, 16])
def test_threads_do_not_matter(folder, threads):
    many, wanted = hosts.make(folder, 0, threads), alone(folder, 0, 5, 9)
    for step, batches in zip(range(5, 9), many.iterate(5), strict=False):
        assert {name: hosts.hashes(b) for name, b in batches.items()} == wanted[str(step)]


def test_two_hosts_go_on_where_one_stopped(folder):
    assert together(folder, 2, 4, 0, 7, 10) == alone(folder, 0, 7, 10)


@pytest.mark.slow
@pytest.mark.multihost
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_number_of_hosts_goes_on_anywhere(folder, seed):
    wanted = alone(folder, seed, 0, 54)
    for first in (1, 13, 50):
        for count, threads in ((1, 16), (2, 0), (4, 4)):
            found = together(folder, count, threads, seed, first, first + 4)
            assert found == {str(step): wanted[str(step)] for step in range(first, first + 4)}
