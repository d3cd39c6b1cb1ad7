"""The TPU launcher's restarts, with the workers' own script, and a gcloud that is a stand-in.

The stand-in keeps the state of a queued resource in a file and runs what is sent to two workers by
ssh in two folders of this machine. What the service itself does is not tested here.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

GCLOUD = """#!{python} -I
import os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path({cloud!r})
words = sys.argv[sys.argv.index("queued-resources") + 1:]
flags = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)
places = [w for w in words[1:] if not w.startswith("--")]
verb = words[0]
with open(cloud / "calls", "a") as calls:
    calls.write(verb + "\\n")
state = cloud / "state"
if verb == "describe":
    if not state.exists():
        sys.exit("NOT_FOUND")
    print(state.read_text())
elif verb == "create":
    state.write_text("ACTIVE")
    for worker in ("0", "1"):
        shutil.rmtree(cloud / worker, ignore_errors=True)
        (cloud / worker).mkdir()
elif verb == "delete":
    state.unlink()
elif state.read_text() != "ACTIVE":
    sys.exit("the pod is gone")
else:
    code = 0
    for worker in ("0", "1") if flags["worker"] == "all" else (flags["worker"],):
        home = cloud / worker
        if verb == "scp":
            shutil.copy(places[0], home / places[1].partition(":")[2])
            continue
        command = flags["command"]
        if "uv venv" in command:  # nothing is installed: the stand-in for Python is the job
            command = command.partition(" && python3 -m pip")[0]
            command += " && mkdir -p .venv/bin && cp " + str(cloud / "job") + " .venv/bin/python"
        here = {{**os.environ, "HOME": str(home), "WORKER": worker}}
        done = subprocess.run(["bash", "-c", command], cwd=home, env=here)
        code = code or done.returncode
    sys.exit(code)
"""
JOB = """#!/bin/bash
# Stands for .venv/bin/python; what its starts meet, then a good end.
cloud={cloud}
echo "worker $WORKER start $FLAMINGO_RESTARTS: $*"
echo "$WORKER $FLAMINGO_RESTARTS" >>"$cloud/starts"
{case}
exit 0
"""
DIES_THEN_IS_PREEMPTED = """
if ((FLAMINGO_RESTARTS == 0)); then
  ((WORKER == 1)) && kill -9 $$
  sleep 0.2
  exit 134
fi
if ((FLAMINGO_RESTARTS == 1)); then
  ((WORKER == 1)) && sleep 0.2 && echo -n SUSPENDED >"$cloud/state"
  exit 143
fi
"""
BAD_INPUT = "((WORKER == 1)) && exit 2; exit 134"
FAILS = "exit 1"
RUNS = """
trap 'echo "saved $WORKER" >>"$cloud/saved"; exit 143' TERM
while :; do sleep 0.1; done
"""


class Cloud:
    """A folder with a checkout of the launchers, two workers, and the stand-in for gcloud."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "cloud"
        self.checkout = folder / "checkout"
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        (folder / "bin").mkdir()
        self.folder.mkdir()
        gcloud = GCLOUD.format(python=sys.executable, cloud=str(self.folder))
        self._program(folder / "bin" / "gcloud", gcloud)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "TMPDIR": str(folder)}

    def _program(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def start(self, verb: str, case: str = "") -> subprocess.Popen[str]:
        """Starts `tpu_vm.py VERB` with a job that begins as `case` says."""
        self._program(self.folder / "job", JOB.format(cloud=self.folder, case=case))
        scope = ["--name=pod", "--project=p", "--zone=z", "--grace=5"]
        shape = ["--accelerator-type=v4-16", "--runtime-version=v", "--poll=0", "--wait=1"]
        shape.append("--quick-failures=2")
        job = ["--", "train", "--workdir=gs://b/a run"] if verb == "run" else []
        return subprocess.Popen(
            [sys.executable, "-I", "launch/tpu_vm.py", verb, *scope, *shape, *job],
            cwd=self.checkout,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, case: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of a whole run."""
        launcher = self.start("run", case)
        out, err = launcher.communicate(timeout=60)
        return launcher.returncode, out, err

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def calls(self, verb: str) -> int:
        return self.lines("calls").count(verb)


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    for pid in made.folder.glob("*/flamingo_job/pid"):  # a failed test leaves no job behind
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_worker_dies_then_the_pod_is_preempted(cloud: Cloud):
    code, out, err = cloud.run(DIES_THEN_IS_PREEMPTED)
    assert code == 0, err
    starts = [f"{worker} {start}" for start in range(3) for worker in range(2)]
    assert sorted(cloud.lines("starts"), key=lambda line: line[::-1]) == starts
    assert "exit codes 134, 137, pod ACTIVE" in err and "restart 1 of 1000" in err
    assert "restart 2 of 1000" in err and "pod is SUSPENDED: asking for another" in err
    assert [cloud.calls(verb) for verb in ("create", "delete", "scp")] == [2, 1, 2]
    shown = [line for line in out.splitlines() if line.startswith("worker")]
    argv = "-m flamingo_jax train --workdir=gs://b/a run"
    assert [shown[0], shown[-1]] == [f"worker 0 start {start}: {argv}" for start in (0, 2)]


def test_bad_input_ends_the_job(cloud: Cloud):
    code, _, err = cloud.run(BAD_INPUT)
    assert code == 2, err
    assert len(cloud.lines("starts")) == 2


def test_a_job_that_makes_no_progress_is_given_up(cloud: Cloud):
    code, _, err = cloud.run(FAILS)
    assert code == 1
    assert len(cloud.lines("starts")) == 2 * 2
    assert "given up after 1 restarts" in err


def test_a_run_is_followed_again_and_stopped(cloud: Cloud):
    first = cloud.start("run", RUNS)
    while len(cloud.lines("starts")) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=20) == 130
    first.communicate()
    second = cloud.start("run", RUNS)
    assert second.stdout is not None
    while "running already" not in (line := second.stdout.readline()):
        assert line, second.communicate()
    stop = cloud.start("stop", RUNS)
    _, err = stop.communicate(timeout=20)
    assert stop.returncode == 0, err
    _, err = second.communicate(timeout=20)
    assert second.returncode == 143, err
    assert sorted(cloud.lines("saved")) == ["saved 0", "saved 1"]
    assert len(cloud.lines("starts")) == 2, "neither started twice nor again"
