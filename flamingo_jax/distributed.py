"""Joining the processes of a job before anything touches a device, and leaving it together.

JAX's own joining ends a process by SIGABRT with a C++ trace when another one does not come, and by
SIGSEGV when the coordinator's port is taken (jax 0.10.2). So the processes first meet at that port
over plain sockets, where what is wrong can be said in a sentence, and only then does JAX join them.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax

from flamingo_jax import errors, processes, progress
from flamingo_jax.errors import InputError
from flamingo_jax.processes import HostsMissing

AUTO = "auto"
"""Stands for the address where JAX's own detection of the cluster shall find it."""

JOIN_SECONDS = 300
HEARTBEAT_SECONDS = 100
LEAVE_SECONDS = 10.0
"""How long a process that fails waits for the others to fail alike, before it leaves alone."""

ANSWERS = ("go", "missing", "twice")
"""What process 0 tells the others begins with one of these: other programs say other things."""

_WORDS = "--coordinator=HOST:PORT --processes=N --process=I"


@dataclasses.dataclass(frozen=True)
class Membership:
    """Who this process is in its job.

    Attributes:
      coordinator: HOST:PORT of process 0, or "auto": JAX finds all three.
      processes: how many there are.
      process: this one's number.
      join_seconds: how long the others may take to start.
      heartbeat_seconds: a process silent for so long is dead, and ends all others.
    """

    coordinator: str
    processes: int = 0
    process: int = 0
    join_seconds: int = JOIN_SECONDS
    heartbeat_seconds: int = HEARTBEAT_SECONDS


def find(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    environ: Mapping[str, str] = os.environ,
) -> Membership | None:
    """This process's place in a job of several; None where it is alone, at no cost.

    What the arguments leave out comes from FLAMINGO_COORDINATOR, FLAMINGO_PROCESSES and
    FLAMINGO_PROCESS, then the two numbers from Slurm's or Open MPI's. Without any address, JAX's
    detection is asked if the environment shows a Slurm step, a Cloud TPU slice or an Open MPI job
    of several processes; on TPU VMs, whose environment shows nothing, FLAMINGO_COORDINATOR=auto
    asks it. FLAMINGO_JOIN_SECONDS and FLAMINGO_HEARTBEAT_SECONDS set the time-outs.

    Raises:
      InputError: if something is missing or makes no sense.
    """
    seconds = {
        "join_seconds": _number(environ, "FLAMINGO_JOIN_SECONDS") or JOIN_SECONDS,
        "heartbeat_seconds": _number(environ, "FLAMINGO_HEARTBEAT_SECONDS") or HEARTBEAT_SECONDS,
    }
    coordinator = coordinator or environ.get("FLAMINGO_COORDINATOR", "")
    given = processes or _number(environ, "FLAMINGO_PROCESSES") or 0
    if coordinator == AUTO or (not coordinator and not given and _in_cluster(environ)):
        return Membership(AUTO, **seconds)
    if not coordinator:
        if given > 1 or process >= 0:
            raise InputError(f"a job of several processes needs an address; give {_WORDS}")
        return None
    count = given or _first(environ, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if process < 0:
        names = ("FLAMINGO_PROCESS", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
        place = _first(environ, *names)
    else:
        place = process
    if count is None or place is None:
        raise InputError(f"coordinator {coordinator}: how many processes, and which? give {_WORDS}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= place < count:
        raise InputError(
            f"coordinator {coordinator!r} with processes={count} and process={place} makes no "
            f"sense; give {_WORDS} with I in 0…N-1"
        )
    return Membership(coordinator, count, place, **seconds) if count > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if text and not text.isdigit():
        raise InputError(f"{name}={text!r} in the environment is no whole number; mend or unset it")
    return int(text) if text else None


def _first(environ: Mapping[str, str], *names: str) -> int | None:
    return next((_number(environ, name) for name in names if environ.get(name)), None)


def _in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether the variables that JAX's detection goes by tell of more than one process."""
    # Inside a batch script, outside srun, there is no step and only one process.
    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        if (_number(environ, "SLURM_NTASKS") or 1) > 1:
            return True
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    if "," in workers or environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    if (_number(environ, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:  # from Open MPI 5 on
            raise InputError(
                "this Open MPI does not tell where its job's first process is; give "
                "--coordinator=HOST:PORT of rank 0's host and a free port there"
            )
        return True
    return False


def initialize(membership: Membership) -> None:
    """Joins the job; to be called before anything touches a device.

    Raises:
      HostsMissing: if the coordinator or other processes are not there in time, or its port is in
        use.
      InputError: if two processes have the same number.
    """
    who, seconds = membership, membership.join_seconds
    if who.coordinator == AUTO:
        text = f"the processes of this job did not all join within {seconds} s"
        who = dataclasses.replace(who, coordinator="")
    else:
        muster(who)
        text = f"the processes met at {who.coordinator} but did not join within {seconds} s"
    with _limited(text, seconds):
        jax.distributed.initialize(
            who.coordinator or None,
            who.processes or None,
            who.process if who.coordinator else None,
            cluster_detection_method="deactivate" if who.coordinator else None,
            initialization_timeout=seconds + 60,  # ours comes first: it ends in a sentence
            heartbeat_timeout_seconds=who.heartbeat_seconds,
        )
    processes.announce()
    progress.speak(processes.is_primary())


def shutdown(seconds: float = processes.BARRIER_SECONDS) -> bool:
    """Leaves the job when all do; whether they did, within `seconds` of the first."""
    together = processes.leave_together(seconds)
    if together:
        jax.distributed.shutdown()
        progress.speak(True)
    return together


@contextlib.contextmanager
def joined(membership: Membership | None) -> Iterator[None]:
    """The time in a job: joined before, left together after, also when all fail alike.

    Where all fail, the first process says why. A process that fails alone leaves alone, with the
    exit code of its error: JAX's own farewell would wait for the others and then abort. They end
    when its heartbeat is missed.

    Raises:
      HostsMissing, InputError: see `initialize`.
    """
    if membership is None:
        yield
        return
    initialize(membership)
    try:
        yield
    except BaseException as error:
        silent = not progress.speaks() and isinstance(error, InputError | errors.Preempted)
        if not shutdown(LEAVE_SECONDS):
            atexit.register(_leave, _exit_code(error))
        elif silent:
            raise SystemExit(_exit_code(error)) from error
        raise
    if not shutdown():
        atexit.register(_leave, errors.EXIT_DEFECT)
        raise HostsMissing("other processes did not come to the end of the job: see their logs")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, InputError):
        return errors.EXIT_BAD_INPUT
    return errors.EXIT_PREEMPTED if isinstance(error, errors.Preempted) else errors.EXIT_DEFECT


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def _limited(text: str, seconds: float) -> Iterator[None]:
    """Ends the process with a sentence if the block, which cannot be interrupted, takes longer."""

    def end() -> None:
        progress.say(f"{socket.gethostname()}: {text}; see the logs of the others")
        _leave(errors.EXIT_DEFECT)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def muster(membership: Membership) -> None:
    """Waits until all processes have reported at the coordinator's port, which is free after it.

    Raises:
      HostsMissing: naming the coordinator, or the processes, that were not there in time, or the
        port if it is in use: a new start may take another one.
      InputError: if two processes have the same number.
    """
    deadline = time.monotonic() + membership.join_seconds
    answer = (_receive if membership.process == 0 else _report)(membership, deadline)
    kind, _, text = answer.partition(" ")
    if kind == "missing":
        raise HostsMissing(text)
    if kind == "twice":
        raise InputError(text)


def _receive(who: Membership, deadline: float) -> str:
    """Process 0: hears the others, then gives all the same answer."""
    port = int(who.coordinator.rpartition(":")[2])
    came, callers = set[int](), list[socket.socket]()
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise HostsMissing(
                f"the coordinator cannot listen at {who.coordinator} ({error.strerror}); give "
                "another port, to all processes"
            ) from error
        answer = "go"
        while len(came) < who.processes - 1 and answer == "go":
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                caller = stack.enter_context(server.accept()[0])
                caller.settimeout(5)
                number = int(caller.makefile("r").readline())
            except TimeoutError:
                if time.monotonic() >= deadline:
                    answer = f"missing {_absent(who, came)}"
                continue
            except (OSError, ValueError):
                continue  # a passer-by: a port scan, a health check
            if number in came or not 0 < number < who.processes:
                answer = f"twice two processes say that they are process {number}; number them"
            came.add(number)
            callers.append(caller)
        for caller in callers:
            with contextlib.suppress(OSError):  # it has gone since
                caller.sendall(f"{answer}\n".encode())
    return answer


def _absent(who: Membership, came: set[int]) -> str:
    names = [processes.name_of(p) for p in range(1, who.processes) if p not in came]
    return (
        f"{processes.list_names(names)} of {who.processes} did not report at {who.coordinator} "
        f"within {who.join_seconds} s; see why they were not started"
    )


def _report(who: Membership, deadline: float) -> str:
    """The others: call process 0 until it listens, and hear its answer."""
    host, _, port = who.coordinator.rpartition(":")
    problem: object = "it answers nothing"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5)) as line:
                line.sendall(f"{who.process}\n".encode())
                line.settimeout(left + 5)
                answer = line.makefile("r", errors="replace").readline().strip()
                if answer.partition(" ")[0] in ANSWERS:
                    return answer
                if answer:
                    problem = f"another program listens there and says {answer[:40]!r}"
        except OSError as error:
            problem = error.strerror or error
        time.sleep(0.2)
    return (
        f"missing {processes.name_of(who.process, socket.gethostname())} could not reach the "
        f"coordinator {who.coordinator} within {who.join_seconds} s ({problem}); see whether "
        "process 0 runs there and the port is open"
    )
