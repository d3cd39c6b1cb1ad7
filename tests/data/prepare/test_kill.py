"""SIGKILL anywhere, and the same command again: the folder equals one that was never killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from flamingo_jax.data import sources
from flamingo_jax.data.prepare import manifest
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[3]

EVERYWHERE = """
import os, signal, sys
from flamingo_jax.data.prepare import writer
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.data.sources import SourceSpec

folder, out, every = sys.argv[1:]
job = Job(SourceSpec("folder", folder), shard_size=4)
left = 0

def watched(function):
    def call(*args, **options):
        count()
        result = function(*args, **options)
        count()
        return result
    return call

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace, os.fsync = watched(os.replace), watched(os.fsync)
writer.make_record = watched(writer.make_record)

# A process for each moment; the first that is not killed has reached the end.
for moment in range(1, 1000, int(every)):
    child = os.fork()
    if not child:
        left = moment
        prepare(job, f"{out}/{moment}")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(moment, code, flush=True)
    if code != -signal.SIGKILL:
        break
"""

WORKERS = """
import multiprocessing, os, signal, sys
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.data.sources import SourceSpec

def advance(done, total, note):
    if done:
        print([child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    job = Job(SourceSpec("folder", sys.argv[1]), shard_size=4)
    prepare(job, sys.argv[2], 2, advance)
"""


def run(script: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def opened(folder: pathlib.Path) -> int:
    return len(sources.open_source(SourceSpec("prepared", str(folder))))


def is_alive(process: int) -> bool:
    """Zombies whose parent has not looked after them are dead."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere(
    every: int, job: Job, pictures: pathlib.Path, tmp_path: pathlib.Path, contents: Callable
) -> None:
    prepare(job, str(tmp_path / "whole"))
    whole = contents(tmp_path / "whole")
    script = tmp_path / "script.py"
    script.write_text(EVERYWHERE)
    done = run(script, str(pictures), str(tmp_path / "killed"), str(every))
    moments = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [code for _, code in moments[:-1]] == [-signal.SIGKILL] * (len(moments) - 1)
    assert moments[-1][1] == 0 and len(moments) > 50 // every, done.stderr

    half_written = unfinished = 0
    for moment, _ in moments:
        folder = tmp_path / "killed" / str(moment)
        before = contents(folder) if folder.exists() else {}
        half_written += any(name.startswith(manifest.TEMPORARY) for name in before)
        # What has its name is whole; what is not whole has another one.
        for name, data in before.items():
            if not name.startswith("."):
                assert data == whole[name], (moment, name)
        if manifest.MANIFEST in before:
            assert opened(folder) == opened(tmp_path / "whole")
        elif before:
            unfinished += 1
            for path in (folder, folder / "*.array_record"):
                with pytest.raises(InputError):
                    opened(path)
        prepare(job, str(folder))
        assert contents(folder) == whole, moment
    assert half_written > 10 // every and unfinished > 10 // every


def test_workers_die_with_the_process_that_started_them(
    job: Job, pictures: pathlib.Path, tmp_path: pathlib.Path, contents: Callable
) -> None:
    prepare(job, str(tmp_path / "whole"))
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    out = tmp_path / "killed"
    done = run(script, str(pictures), str(out))
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = json.loads(done.stdout)
    assert workers
    prepare(job, str(out), workers=2)  # at once, whether they are dead yet or not
    assert contents(out) == contents(tmp_path / "whole")
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, f"{workers} live on"
        time.sleep(0.1)
