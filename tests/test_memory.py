"""What a process has freed is given back to the system."""

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

# In a process of its own: others' threads would free and take memory beside it.
PROGRAM = """
import os, pathlib
from flamingo_jax import memory

def resident():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20

# Blocks too small to be mapped on their own; every 100th stays and keeps the heap from shrinking.
blocks = [bytes(50_000) for _ in range(4_000)]
full = resident()
blocks = blocks[::100]
kept = resident()
memory.give_back()
print(full, kept, resident(), all(block == bytes(50_000) for block in blocks))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim") or not os.path.exists("/proc/self/statm"),
    reason="glibc's malloc on Linux alone",
)
def test_freed_memory_is_given_back():
    root = pathlib.Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True
    )
    full, kept, after, whole = ran.stdout.split()
    assert int(kept) > int(full) - 20
    assert int(after) < int(full) - 150
    assert whole == "True"


def test_elsewhere_nothing_is_done(monkeypatch):
    from flamingo_jax import memory

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()
