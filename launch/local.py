"""Runs a job as several processes on one machine, and starts it again when one of them dies.

  python launch/local.py --processes=4 --devices-per-process=2 -- \\
    train --config=experiments/openmoji.py --workdir=runs/openmoji

What follows `--` is given to `python -m flamingo_jax`, in each process with
  FLAMINGO_COORDINATOR=127.0.0.1:PORT  FLAMINGO_PROCESSES=n  FLAMINGO_PROCESS=i  FLAMINGO_RESTARTS=k
and, on CPUs, JAX_NUM_CPU_DEVICES. Process 0 is heard; what each process writes is in
WORKDIR/logs/process-i.out, beside the log that the run itself keeps there.

exit codes:
  0    all processes have finished
  2, 3 a process ended so: bad input, does not fit; a new start would not help
  143  stopped by SIGTERM or Ctrl-C, everything saved; a second signal kills at once
  1    given up: too many restarts, or no progress (deaths soon after the start, in a row);
       or stopped, but not all processes could save
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

FINAL = (0, 2, 3)  # exit codes that a new start would not change (DESIGN.md §4.1)
PREEMPTED = 143
STOPPED = (0, PREEMPTED, -signal.SIGTERM)  # the last: stopped before there was anything to save
POLL_SECONDS = 0.05
TAIL_LINES = 20

# Run by each process before the command: the kernel is to kill it when the supervisor is gone, be
# it by kill -9. A pipe that the child watches would need a thread in every kind of command; the
# request outlives exec. A function for Popen(preexec_fn) would run between fork and exec of a
# program with threads. Where there is no prctl (not Linux), nothing is asked.
TIE = """
import ctypes, os, signal, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
    prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run and how patiently.

    Attributes:
      command: the program and its arguments, the same for every process.
      processes: how many.
      devices: simulated CPU devices of each.
      logs: folder of process-i.out.
      restarts: new starts before it is given up.
      quick_failures: deaths within `quick_seconds` of a start, in a row, before it is given up.
      quick_seconds: see there.
      grace: seconds between SIGTERM and SIGKILL for those whose neighbour has died.
      patience: the same for processes that are saving.
      port: of the coordinator; 0 takes a free one at every start.
    """

    command: tuple[str, ...]
    processes: int
    devices: int
    logs: pathlib.Path
    restarts: int
    quick_failures: int
    quick_seconds: float
    grace: float
    patience: float
    port: int

    def environment(self, process: int, port: int | str, restart: int) -> dict[str, str]:
        """What one process's environment has more than the supervisor's."""
        added = {
            "FLAMINGO_COORDINATOR": f"127.0.0.1:{port}",
            "FLAMINGO_PROCESSES": str(self.processes),
            "FLAMINGO_PROCESS": str(process),
            "FLAMINGO_RESTARTS": str(restart),
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        }
        if added["JAX_PLATFORMS"] == "cpu":
            added["JAX_NUM_CPU_DEVICES"] = str(self.devices)
        return added

    def log(self, process: int) -> pathlib.Path:
        """The file that holds what a process writes to stdout and stderr."""
        return self.logs / f"process-{process}.out"


class Request:
    """How often the supervisor has been asked to stop."""

    def __init__(self):
        """Not yet."""
        self.count = 0

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Counts SIGTERM and SIGINT instead of dying of them."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        del number, frame
        self.count += 1


class Attempt:
    """The processes of one start, until all have ended."""

    def __init__(self, job: Job, restart: int):
        """Starts them.

        Args:
          job: see there.
          restart: how often the job has been started before.
        """
        self.job = job
        self.first: int | None = None  # the process whose end was the first that was not a 0
        self.begin = time.monotonic()
        port = job.port or free_port()
        self.processes = [self._start(i, port, restart) for i in range(job.processes)]

    def _start(self, process: int, port: int, restart: int) -> subprocess.Popen[bytes]:
        tied = [sys.executable, "-I", "-c", TIE, str(os.getpid()), *self.job.command]
        with open(self.job.log(process), "ab") as log:
            log.write(f"--- start {restart}: {shlex.join(self.job.command)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                tied,
                env={**os.environ, **self.job.environment(process, port, restart)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if process == 0 else log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone
            )
        if child.stdout is not None:
            args = (child.stdout, self.job.log(process))
            self.voice = threading.Thread(target=tee, args=args, daemon=True)
            self.voice.start()
        return child

    def wait(self, request: Request) -> list[int]:
        """Waits for all, stopping them when one dies or a stop is requested; their exit codes.

        A negative code is the signal that a process died of.
        """
        kill_at, asked = float("inf"), False
        while True:
            codes = [process.poll() for process in self.processes]
            ended = [code for code in codes if code is not None]
            now = time.monotonic()
            if self.first is None and not request.count and any(ended):
                bad = [i for i, code in enumerate(codes) if code]
                # Of several at once: one that was killed is the cause, not who complains of it.
                self.first = min(bad, key=lambda i: (codes[i] or 0) > 0)
                kill_at = now + self._grace(codes[self.first])
            if len(ended) == len(codes):
                break
            if request.count and not asked:
                kill_at = now + self.job.patience
            # One that found its input bad lets the others say so themselves.
            dying = self.first is not None and codes[self.first] not in FINAL
            if (request.count or dying) and not asked:
                asked = True
                self._signal(signal.SIGTERM)
            if now >= kill_at or request.count > 1:
                self._signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        self.voice.join(timeout=2)  # not for ever: a child of the child may hold the pipe
        return ended

    def _grace(self, code: int | None) -> float:
        """One that has saved is not alone: the others are saving the same step."""
        return self.job.patience if code == PREEMPTED else self.job.grace

    def _signal(self, number: signal.Signals) -> None:
        """Signals those that live; a kill takes their own children along."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    if number == signal.SIGKILL:
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)


def supervise(job: Job, request: Request) -> int:
    """Runs the job until it ends for good; returns the exit code."""
    quick = 0
    for restart in range(job.restarts + 1):
        attempt = Attempt(job, restart)
        codes = attempt.wait(request)
        seconds = time.monotonic() - attempt.begin
        if request.count:
            return _stopped(codes)
        if attempt.first is None:
            return 0
        code = codes[attempt.first]
        if code in FINAL:
            say(
                f"process {attempt.first} ended with exit code {code}; see {job.log(attempt.first)}"
            )
            return code
        what = f"process {attempt.first} {cause(code)} after {seconds:.0f} s"
        quick = quick + 1 if seconds < job.quick_seconds else 0
        if quick >= job.quick_failures:
            return _give_up(job, attempt.first, f"{what}, for the {ordinal(quick)} time in a row")
        if restart == job.restarts:
            return _give_up(job, attempt.first, f"{what}, after {restart} restarts")
        say(f"{what}; restart {restart + 1} of {job.restarts}")
    return 1


def _stopped(codes: list[int]) -> int:
    """The exit code of a job that was asked to stop."""
    if not any(codes):
        return 0
    for code in FINAL[1:]:
        if code in codes:
            return code
    if all(code in STOPPED for code in codes):
        return PREEMPTED
    lost = [f"process {i} {cause(code)}" for i, code in enumerate(codes) if code not in STOPPED]
    say(f"stopped, but {', '.join(lost)}: the next start goes on from the last whole save")
    return 1


def _give_up(job: Job, process: int, why: str) -> int:
    lines = job.log(process).read_text(encoding="utf-8", errors="replace").splitlines()
    say(f"given up: {why}; the end of {job.log(process)}:")
    for line in lines[-TAIL_LINES:]:
        print(f"  {line}", file=sys.stderr)
    return 1


def say(text: str) -> None:
    """One line on stderr."""
    print(f"local.py: {text}", file=sys.stderr, flush=True)


def cause(code: int) -> str:
    """What a process died of, in words."""
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …, 11th, …"""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"


def free_port() -> int:
    """A TCP port that nobody listens on now.

    Process 0 takes it seconds later, so it lies below the ports that Linux gives to connections
    (from 32768, net.ipv4.ip_local_port_range).
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def tee(source: BinaryIO, path: pathlib.Path) -> None:
    """Copies a process's output to stdout and to the end of a file, until it is closed."""
    with open(path, "ab") as log:
        while block := os.read(source.fileno(), 65536):
            log.write(block)
            log.flush()
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()


def workdir(arguments: Sequence[str]) -> str | None:
    """The value of --workdir=DIR or --workdir DIR."""
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        if word == "--workdir":
            return following
        if word.startswith("--workdir="):
            return word.partition("=")[2]
    return None


def whole(least: int) -> Callable[[str], int]:
    """A flag's type: a whole number from `least` on."""

    def convert(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return convert


def make_parser() -> argparse.ArgumentParser:
    """The flags before `--`."""
    parser = argparse.ArgumentParser(
        "local.py",
        usage="local.py [flags] -- train --config=FILE.py --workdir=DIR …",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, kind: Callable[[str], float], default: float, what: str) -> None:
        parser.add_argument(name, type=kind, default=default, metavar="N", help=what)

    add("--processes", whole(1), 2, "processes to start (2)")
    add("--devices-per-process", whole(1), 1, "simulated CPU devices of each (1)")
    add("--restarts", whole(0), 100, "new starts before the job is given up (100)")
    add("--quick-failures", whole(1), 3, "deaths soon after a start, in a row, likewise (3)")
    add("--quick-seconds", float, 30, "soon is within so many seconds (30)")
    add("--grace", float, 5, "seconds from SIGTERM to SIGKILL when another has died (5)")
    add("--patience", float, 600, "the same for processes that are saving (600)")
    add("--port", whole(0), 0, "of process 0; 0 takes a free one at each start (0)")
    what = "what follows -- is a whole command, not arguments of python -m flamingo_jax"
    parser.add_argument("--command", action="store_true", help=what)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def make_job(argv: Sequence[str]) -> tuple[Job, bool]:
    """The job that a command line describes, and whether it is only to be printed."""
    parser = make_parser()
    middle = argv.index("--") if "--" in argv else len(argv)
    flags, rest = parser.parse_args(argv[:middle]), list(argv[middle + 1 :])
    if not rest:
        parser.error("nothing to run: give the verb and its flags after --, as --help shows")
    command = rest if flags.command else [sys.executable, "-m", "flamingo_jax", *rest]
    if shutil.which(command[0]) is None:
        parser.error(f"there is no program {command[0]}: mend what follows --")
    folder = workdir(rest)
    if not folder or "://" in folder:  # a bucket cannot be appended to
        folder = os.path.join(tempfile.gettempdir(), f"flamingo-{os.getpid()}")
    job = Job(
        command=tuple(command),
        processes=flags.processes,
        devices=flags.devices_per_process,
        logs=pathlib.Path(folder) / "logs",
        restarts=flags.restarts,
        quick_failures=flags.quick_failures,
        quick_seconds=flags.quick_seconds,
        grace=flags.grace,
        patience=flags.patience,
        port=flags.port,
    )
    return job, flags.dry_run


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    job, dry_run = make_job(argv)
    if dry_run:
        for process in range(job.processes):
            added = job.environment(process, job.port or "PORT", 0)
            print(shlex.join(["env", *(f"{k}={v}" for k, v in added.items()), *job.command]))
        return 0
    try:
        job.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"{job.logs} cannot be made ({error.strerror}); give another --workdir")
        return 2
    if not workdir(job.command):
        say(f"what the processes write is in {job.logs}")
    request = Request()
    with request.listen():
        return supervise(job, request)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
