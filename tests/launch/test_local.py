"""The supervisor with real children: restarts, ends, signals, and what is left behind."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "launch" / "local.py"

# What the children share: which process it is, of which start, and a folder to leave word in.
CHILD = """
import os, pathlib, signal, sys, time
me, start = int(os.environ["FLAMINGO_PROCESS"]), int(os.environ["FLAMINGO_RESTARTS"])
word = pathlib.Path(sys.argv[-1].partition("=")[2])
def leave(name, text=""):
    (word / f"{name}-{me}-{start}.new").write_text(str(text))
    (word / f"{name}-{me}-{start}.new").rename(word / f"{name}-{me}-{start}")
def save(number, frame):
    leave("saved")
    sys.exit(143)
def rest():
    leave("ready", os.getpid())
    time.sleep(60)
def after(*names):  # what the other processes leave: one that is stopped sooner has not yet run
    while not all((word / name).exists() for name in names):
        time.sleep(0.02)
"""


@pytest.fixture
def started(tmp_path: pathlib.Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the supervisor of processes that run some Python, with --workdir=tmp_path."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *flags: str, processes: int = 2) -> subprocess.Popen[str]:
        command = [sys.executable, "-I", str(LOCAL), f"--processes={processes}", *flags]
        child = [sys.executable, "-I", "-c", CHILD + code, f"--workdir={tmp_path}"]
        supervisor = subprocess.Popen(
            [*command, "--command", "--", *child],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(supervisor)
        return supervisor

    yield start
    for supervisor in running:
        if supervisor.poll() is None:
            supervisor.kill()
        supervisor.communicate(timeout=20)


def wait_for(*paths: pathlib.Path, seconds: float = 30) -> list[str]:
    """Waits for files; their contents."""
    end = time.monotonic() + seconds
    while missing := [path.name for path in paths if not path.exists()]:
        assert time.monotonic() < end, f"{missing} did not come"
        time.sleep(0.02)
    return [path.read_text() for path in paths]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_one_dies_and_all_start_again(started, tmp_path: pathlib.Path):
    code = """
leave("port", os.environ["FLAMINGO_COORDINATOR"])
leave("devices", os.environ["JAX_NUM_CPU_DEVICES"])
print("hello of", me, start, flush=True)
if start == 0:
    if me == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs in a collective
    leave("pid", os.getpid())
    after("pid-0-0", "pid-1-0", "pid-2-0")
    time.sleep(0 if me == 2 else 60)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    supervisor = started(code, "--devices-per-process=3", "--grace=0.3", processes=3)
    out, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0, err
    lines = err.splitlines()
    assert len(lines) == 1, "one line a restart, and no other"
    assert re.search(r"process 2 died of SIGKILL after \d+ s; restart 1 of 100$", lines[0])
    assert out == "hello of 0 0\nhello of 0 1\n", "process 0 is heard, and it alone"
    assert not any(is_alive(int((tmp_path / f"pid-{i}-0").read_text())) for i in range(3))
    for start in (0, 1):
        ports = {(tmp_path / f"port-{i}-{start}").read_text() for i in range(3)}
        assert len(ports) == 1 and next(iter(ports)).startswith("127.0.0.1:")
    assert (tmp_path / "devices-2-1").read_text() == "3"
    for i in range(3):
        log = (tmp_path / "logs" / f"process-{i}.out").read_text()
        assert f"hello of {i} 0\n" in log and f"hello of {i} 1\n" in log


@pytest.mark.parametrize(("code", "others"), [(2, "0"), (3, "60"), (0, "0")])
def test_codes_that_end_the_job(started, tmp_path: pathlib.Path, code: int, others: str):
    child = f"leave('ran')\nif me == 1: sys.exit({code})\ntime.sleep({others})"
    supervisor = started(child, "--grace=0.2")
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == code
    assert not list(tmp_path.glob("ran-*-1")), "it was started again"
    assert (f"process 1 ended with exit code {code}" in err) == bool(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_all_and_waits_until_they_have_saved(
    started, tmp_path: pathlib.Path, number: int
):
    code = """
def slowly(number, frame):
    time.sleep(0.3 * me)
    save(number, frame)
signal.signal(signal.SIGTERM, slowly)
signal.signal(signal.SIGINT, signal.SIG_IGN)
rest()
"""
    supervisor = started(code, "--grace=0")
    wait_for(tmp_path / "ready-0-0", tmp_path / "ready-1-0")
    supervisor.send_signal(number)
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 143, err
    wait_for(tmp_path / "saved-0-0", tmp_path / "saved-1-0", seconds=0)


def test_a_stop_that_could_not_save_is_not_called_saved(started, tmp_path: pathlib.Path):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN if me else save)\nrest()"
    supervisor = started(code, "--patience=0.3")
    wait_for(tmp_path / "ready-0-0", tmp_path / "ready-1-0")
    supervisor.terminate()
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert "process 1 died of SIGKILL" in err


def test_when_one_was_preempted_the_others_may_finish_saving(started, tmp_path: pathlib.Path):
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if start == 0:
    leave("ready", os.getpid())
    if me == 1:
        after("ready-0-0")
        sys.exit(143)
    time.sleep(0.5)
    leave("saved")
    sys.exit(143)
"""
    supervisor = started(code, "--grace=0")
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0, err
    assert "process 1 ended with exit code 143" in err
    wait_for(tmp_path / "saved-0-0", seconds=0)


@pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel's tie of child to parent is Linux's"
)
def test_no_child_outlives_the_supervisor(started, tmp_path: pathlib.Path):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrest()"
    supervisor = started(code)
    pids = [int(pid) for pid in wait_for(tmp_path / "ready-0-0", tmp_path / "ready-1-0")]
    assert all(is_alive(pid) for pid in pids)
    supervisor.kill()
    end = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end, "a child lives on"
        time.sleep(0.02)


def test_a_job_that_makes_no_progress_is_given_up(started, tmp_path: pathlib.Path):
    code = "print('the reason', start, flush=True)\nleave('ran')\nif me == 1: sys.exit(1)\nrest()"
    supervisor = started(code, "--quick-failures=2", "--grace=1")
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert len(list(tmp_path.glob("ran-1-*"))) == 2
    lines = err.splitlines()
    assert "restart 1 of 100" in lines[0]
    assert "given up: process 1 ended with exit code 1" in lines[1]
    assert lines[-1].strip() == "the reason 1", "its last lines are shown"


def test_restarts_are_counted(started, tmp_path: pathlib.Path):
    code = "leave('ran')\nafter(f'ran-0-{start}', f'ran-1-{start}')\nsys.exit(1)"
    supervisor = started(code, "--restarts=1", "--quick-seconds=0")
    _, err = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert len(list(tmp_path.glob("ran-0-*"))) == 2
    assert "after 1 restarts" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to run"),
        (["--command", "--", "/no/such/program"], "no program /no/such/program"),
        (["--processes=0", "--", "train"], "0 is less than 1"),
        (["--", "train", "--workdir=/dev/null/run"], "/dev/null/run/logs cannot be made"),
    ],
)
def test_a_bad_command_line_is_told(arguments: list[str], says: str):
    done = subprocess.run(
        [sys.executable, "-I", str(LOCAL), *arguments], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
