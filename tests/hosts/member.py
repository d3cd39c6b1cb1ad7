"""One process of a job, as the tests of this folder start it: FOLDER TASK….

Which one it is comes from FLAMINGO_COORDINATOR, FLAMINGO_PROCESSES and FLAMINGO_PROCESS.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
import warnings

import jax

from flamingo_jax import (
    agreement,
    distributed,
    logs,
    preemption,
    processes,
    progress,
    sharding,
    watchdog,
)
from flamingo_jax.errors import InputError
from flamingo_jax.workdir import Workdir


def tell(folder: pathlib.Path, task: str, **what) -> None:
    path = folder / f"{task}-{jax.process_index()}.json"
    path.write_text(json.dumps(what), encoding="utf-8")


def agree(folder: pathlib.Path) -> None:
    """Both compare; process 1 has another program, another learning rate and more devices."""
    found = agreement.facts("train", json.dumps({"train": {"steps": 5, "lr": 0.1}}))
    agreement.check(found | {"devices": {}})
    if jax.process_index() == 1:
        found["files"] = found["files"] | {"training.py": "0123456789ab"}
        found["config"] = {"train": {"steps": 5, "lr": 0.2}}
    try:
        agreement.check(found, seconds=20)
    except InputError as error:
        tell(folder, "agree", error=str(error))


def together(folder: pathlib.Path) -> None:
    """What one meets, all have; a failure of one is told by all; text keeps its form."""
    here = jax.process_index()
    texts = processes.gather("texts", "" if here else "ä line\nand another =")
    made = processes.primary_first(lambda: _make(folder / "made"), InputError)

    def attempt() -> int:
        if here == 1:
            raise InputError("the disk is full")
        return 7

    try:
        processes.agreed(attempt, InputError, "elsewhere")
    except InputError as error:
        tell(folder, "together", error=str(error), texts=texts, made=made)


def _make(path: pathlib.Path) -> str:
    if path.exists():
        return f"found {path.read_text()}"
    path.write_text(str(jax.process_index()))
    return "made"


def absent(folder: pathlib.Path) -> None:
    """Process 1 does not come to the barrier in time."""
    processes.barrier("here")
    if jax.process_index() == 0:
        try:
            processes.barrier("there", seconds=0.5)
        except processes.HostsMissing as error:
            tell(folder, "absent", error=str(error))
    processes.barrier("and on")


def stop(folder: pathlib.Path) -> None:
    """Steps; process 1 gets SIGTERM at its 20th, and is the slower one."""
    here, asked = jax.process_index(), 0
    with preemption.watch() as request, request.deferred():
        for number in range(600):
            if number == 20 and here == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01 + 0.005 * here)
            asked += 1
            if request.reached():
                break
    tell(folder, "stop", asked=asked, requested=request.requested)


def voice(folder: pathlib.Path) -> None:
    """Both say the same, and one ends badly; both start again."""
    with contextlib.suppress(ZeroDivisionError), logs.process_log(folder / "logs"):
        progress.say("the data are read")
        with progress.bar("stage", 10) as bar:
            bar.advance(10, "loss 1.0")
        warnings.warn("an old name", stacklevel=1)
        if jax.process_index() == 1:
            raise ZeroDivisionError("a defect")
    with logs.process_log(folder / "logs"):
        pass


def account(folder: pathlib.Path) -> None:
    """Each writes its part of a log for three steps; the second step is then gone back to."""
    here, run = jax.process_index(), Workdir(folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    for name in ("rows", "metrics"):
        with run.log(name) as log:
            log.append(*[{"stage": "a", "step": step, "by": here} for step in (1, 2, 3)])
    with open(folder / "run" / "rows-5.jsonl", "w", encoding="utf-8") as gone:
        gone.write('{"stage": "a", "step": 2, "by": 5}\n{"stage": "a", "step": 3, "by": 5}\n{"to')
    processes.barrier("written")
    run.go_back(["a"], "a", 2)
    kept = {name: run.read(name) for name in ("rows", "metrics")}
    meshes = {"fsdp": sharding.make_mesh(1, 3, 1), "tensor": sharding.make_mesh(1, 1, 3)}
    rows = {name: sharding.accounted_rows(6, mesh) for name, mesh in meshes.items()}
    fed = {name: sharding.local_rows(6, mesh) for name, mesh in meshes.items()}
    tell(folder, "account", kept=kept, rows=rows, fed=fed)


def one_fails(folder: pathlib.Path) -> None:
    """Process 1 has wrong input, the others wait for it."""
    if jax.process_index() == 1:
        raise InputError("a wrong path")
    processes.barrier("never", seconds=60)


def all_fail(folder: pathlib.Path) -> None:
    """All have the same wrong input."""
    raise InputError("a wrong path")


def hang(folder: pathlib.Path) -> None:
    """A lock that nobody opens."""
    with open(folder / "process-0.log", "w", encoding="utf-8") as log:
        with watchdog.Watchdog(0.5, log) as dog:
            for step in range(1, 8):
                dog.alive(step)
                time.sleep(0.1)
            dog.phase("checkpoint")
            wait_for_ever(threading.Lock())


def wait_for_ever(lock: threading.Lock) -> None:
    with lock, lock:
        pass


TASKS = (agree, together, absent, stop, voice, account, one_fails, all_fail, hang)


def main(folder: str, *names: str) -> int:
    tasks = {task.__name__: task for task in TASKS}
    try:
        with distributed.joined(distributed.find()):
            for name in names:
                tasks[name](pathlib.Path(folder))
    except (InputError, processes.HostsMissing) as error:
        print(f"member: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
