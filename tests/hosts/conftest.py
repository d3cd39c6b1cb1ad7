"""Real processes on this machine, joined as those of several hosts are."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import types
from typing import Any

import pytest

from flamingo_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEMBER = pathlib.Path(__file__).with_name("member.py")
SECONDS = 100
RUN_SECONDS = 1500
"""A training may take so long, on a machine that is busy with other things."""


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


@dataclasses.dataclass(frozen=True)
class Training:
    """Starts trainings of one experiment, each in a folder of its own name."""

    experiment: pathlib.Path
    folder: pathlib.Path
    runs: types.ModuleType

    def start(
        self, name: str, count: int, *flags: str, devices: int = 2
    ) -> list[subprocess.Popen[str]]:
        """One process for each of `count` hosts, which nobody starts again."""
        job = {
            "FLAMINGO_COORDINATOR": free_address(),
            "FLAMINGO_PROCESSES": str(count),
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        command = [sys.executable, "-m", "flamingo_jax", *self._train(name, *flags)]
        return [
            self._open(command, {**job, "FLAMINGO_PROCESS": str(process)})
            for process in range(count)
        ]

    def supervise(
        self, name: str, count: int, *flags: str, devices: int = 2, options: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """The same under launch/local.py, which starts all again when one dies.

        What it copies from the first process goes to WORKDIR/logs alone: nobody would empty a pipe.
        """
        sizes = (f"--processes={count}", f"--devices-per-process={devices}")
        local = str(ROOT / "launch" / "local.py")
        command = [sys.executable, local, *sizes, *options, "--", *self._train(name, *flags)]
        return self._open(command, {}, out=subprocess.DEVNULL)

    def _train(self, name: str, *flags: str) -> list[str]:
        config, workdir = f"--config={self.experiment}", f"--workdir={self.folder / name}"
        return ["train", config, workdir, *flags]

    def _open(
        self, command: list[str], environ: dict[str, str], out: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environ, "PYTHONPATH": str(ROOT)},
        )

    def children(self, supervisor: subprocess.Popen[str]) -> dict[int, tuple[int, int]]:
        """{process's number: (its id, how often the job was started before)} of those that run."""
        found = {}
        listed = pathlib.Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
        for child in listed.read_text().split():
            with contextlib.suppress(OSError):  # it has ended since
                words = pathlib.Path(f"/proc/{child}/environ").read_text().split("\0")
                pairs = (word.partition("=") for word in words)
                environ = {name: value for name, _, value in pairs}
                if "FLAMINGO_RESTARTS" in environ:  # not yet, between fork and exec
                    number, before = environ["FLAMINGO_PROCESS"], environ["FLAMINGO_RESTARTS"]
                    found[int(number)] = (int(child), int(before))
        return found

    def kill(self, supervisor: subprocess.Popen[str], process: int) -> None:
        """Kills one of those that the supervisor has started."""
        os.kill(self.children(supervisor)[process][0], signal.SIGKILL)

    def end(self, *started: subprocess.Popen[str], code: int = 0) -> list[str]:
        """Waits for all; what each has said."""
        try:
            told = [process.communicate(timeout=RUN_SECONDS)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        for process, text in zip(started, told, strict=True):
            assert process.returncode == code, text
        return told

    def run(self, name: str, count: int, *flags: str, devices: int = 2) -> None:
        """A training that ends well."""
        self.end(*self.start(name, count, *flags, devices=devices))

    def workdir(self, name: str) -> Any:
        """A training's folder, as tests/runs/conftest.py reads it."""
        return self.runs.Folder(self.folder / name)

    def losses(self, name: str) -> dict[tuple[int, str, str], float]:
        """{(step, kind, which): loss}."""
        return {
            (row["step"], row["kind"], key): row[key]
            for row in self.workdir(name).rows("metrics")
            for key in row
            if key == "loss" or key.endswith("/loss")
        }

    def rows(self, name: str) -> list[tuple[int, str, int]]:
        """(step, dataset, index) that all processes have written down, in order."""
        found = Workdir(self.folder / name).read("rows")
        return sorted((row["step"], row["dataset"], row["index"]) for row in found)

    def rejects(self, name: str) -> list[tuple[int, str, int, int]]:
        """(step, dataset, row, index) of the records that were not used, likewise."""
        found = Workdir(self.folder / name).read("rejects")
        return sorted((row["step"], row["dataset"], row["row"], row["index"]) for row in found)

    def assert_same(self, name: str, wanted: str) -> None:
        """Two trainings are the same to the last bit, and have read and left out the same."""
        run, other = self.workdir(name), self.workdir(wanted)
        assert run.text("metrics") == other.text("metrics")
        meta = run.meta()
        assert meta["step"] == other.meta()["step"]
        assert meta["fingerprints"] == other.meta()["fingerprints"]
        assert self.rows(name) == self.rows(wanted)
        assert self.rejects(name) == self.rejects(wanted)


@pytest.fixture(scope="session")
def runs() -> types.ModuleType:
    """What the tests of whole runs share (tests/runs/conftest.py)."""
    path = ROOT / "tests" / "runs" / "conftest.py"
    spec = importlib.util.spec_from_file_location("flamingo_runs", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["flamingo_runs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training(runs, tmp_path_factory) -> Training:
    """Trainings of tests/runs/experiment.py, on pictures of which one cannot be read."""
    made = runs.experiment_in(tmp_path_factory.mktemp("experiment"))
    (made.parent / "pictures" / "1.png").write_bytes(b"no picture")
    return Training(made, tmp_path_factory.mktemp("training"), runs)


@pytest.fixture(scope="module")
def demo_size(training, tmp_path_factory) -> Training:
    """Trainings of tests/hosts/demo_size.py, on the same pictures."""
    here = pathlib.Path(__file__).with_name("demo_size.py")
    made = shutil.copy(here, training.experiment.parent)
    return Training(pathlib.Path(made), tmp_path_factory.mktemp("demo"), training.runs)
