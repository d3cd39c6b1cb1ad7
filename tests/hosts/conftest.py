"""Real processes on this machine, joined as those of several hosts are."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEMBER = pathlib.Path(__file__).with_name("member.py")
SECONDS = 100


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


@dataclasses.dataclass(frozen=True)
class Job:
    """Starts processes of tests/hosts/member.py."""

    folder: pathlib.Path

    def run(
        self,
        *tasks: str,
        count: int = 2,
        only: tuple[int, ...] = (0, 1),
        address: str = "",
        environ: dict[int, dict[str, str]] | None = None,
    ) -> list[Ended]:
        """Does tasks, one after the other, in those of `count` processes that `only` names."""
        address = address or free_address()
        started = []
        for process in only:
            job = {
                "FLAMINGO_COORDINATOR": address,
                "FLAMINGO_PROCESSES": str(count),
                "FLAMINGO_PROCESS": str(process),
                "FLAMINGO_HEARTBEAT_SECONDS": "10",
                "PYTHONPATH": str(ROOT),
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, str(MEMBER), str(self.folder), *tasks],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **job, **(environ or {}).get(process, {})},
                )
            )
        try:
            told = [process.communicate(timeout=SECONDS) for process in started]
        finally:
            for process in started:
                process.kill()
        ends = zip(started, told, strict=True)
        return [Ended(process.returncode, out, err) for process, (out, err) in ends]

    def told(self, task: str, process: int) -> dict:
        """What a process has put down of a task."""
        return json.loads((self.folder / f"{task}-{process}.json").read_text(encoding="utf-8"))


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(tmp_path)


@pytest.fixture
def address() -> str:
    """An address at which nobody listens."""
    return free_address()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Job, list[Ended]]:
    """Two processes that do all tasks which leave them sound, and end alike."""
    job = Job(tmp_path_factory.mktemp("pair"))
    tasks = ("agree", "together", "absent", "stop", "voice", "account", "all_fail")
    return job, job.run(*tasks, environ={1: {"JAX_NUM_CPU_DEVICES": "2"}})


@pytest.fixture(scope="session")
def addresses() -> Callable[[], str]:
    """Makes an address at which nobody listens."""
    return free_address


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> pathlib.Path:
    """The experiment of tests/runs, with its pictures."""
    path = ROOT / "tests" / "runs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("flamingo_runs", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["flamingo_runs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.experiment_in(tmp_path_factory.mktemp("experiment"))
