"""A mixture of many datasets takes no more threads or processes than one of a few."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys, threading
from flamingo_jax.data.document import Document
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.tokenizer import open_tokenizer

def counted():
    tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    path = "/proc/self/task/%d/children" % os.getpid()
    children = open(path).read().split() if os.path.exists(path) else []
    return [threading.active_count(), tasks, len(children)]

names = [f"d{i}" for i in range(int(sys.argv[1]))]
sources = {n: [Document((f"text {i} of {n}",), f"{n}/{i}") for i in range(50)] for n in names}
specs = {n: DatasetSpec(n, "text", 32, 16) for n in names}
pipeline = Pipeline(sources, specs, open_tokenizer("bytes"), seed=0, steps=30, threads=6)
most = counted()
for step, batches in enumerate(pipeline.iterate()):
    most = [max(pair) for pair in zip(most, counted(), strict=True)]
print(json.dumps([step, len(batches), *most]))
"""


def run(tmp_path: pathlib.Path, datasets: int) -> list[int]:
    """[last step, datasets, most Python threads, most threads, most processes started]."""
    script = tmp_path / "mixture.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), str(datasets)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What four datasets take, in a process of their own."""
    return run(tmp_path_factory.mktemp("few"), 4)


def test_twenty_datasets_take_as_many_threads_as_four(
    tmp_path: pathlib.Path, few: list[int]
) -> None:
    last, datasets, *most = run(tmp_path, 20)
    assert (last, datasets) == (29, 20) and few[:2] == [29, 4]
    assert all(now <= before for now, before in zip(most, few[2:], strict=True))
    assert few[2] > 6  # those of the pool were counted
    assert most[2] == 0
