"""The Slurm script under a real slurmctld, slurmd and munged, which are started here."""

import dataclasses
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# Stands for `python -m flamingo_jax train`: what happens in the first start is its argument.
JOB = """#!/bin/bash
trap 'echo "saved $SLURM_PROCID"; exit 143' TERM
echo "start $FLAMINGO_RESTARTS of $SLURM_PROCID: $*"
((FLAMINGO_RESTARTS > 0)) && exit 0
case $1 in
  --die) ((SLURM_PROCID == 1)) && kill -9 $$ ;;
  --bad) ((SLURM_PROCID == 1)) && exit 2 ;;
  --end) exit 0 ;;
esac
for _ in {1..200}; do sleep 0.1; done
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A cluster of this one machine, and what to do with its jobs."""

    folder: pathlib.Path

    def call(self, *command: str, **variables: str) -> str:
        """What a command of Slurm prints."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment |= {"SLURM_CONF": str(self.folder / "slurm.conf"), **variables}
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, **variables: str) -> str:
        """Submits launch/slurm.sh with two processes; the job's number."""
        flags = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0")
        script = str(ROOT / "launch" / "slurm.sh")
        variables = {"COMMAND": str(self.folder / "job"), **variables}
        return self.call("sbatch", "--parsable", *flags, script, *arguments, **variables)

    def facts(self, job: str) -> dict[str, str]:
        found = self.call("scontrol", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", found))

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, *states: str, says: str = "") -> dict[str, str]:
        """Waits until a job is in one of some states and has said something; its facts."""
        end = time.monotonic() + 60
        while True:
            facts = self.facts(job)
            if facts["JobState"] in states and says in self.output(job):
                return facts
            assert time.monotonic() < end, f"{facts}\n{self.output(job)}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: Debian's slurmctld, slurmd, slurm-client and munge")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged refuses a socket that not everybody reaches
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.getuid()).pw_name
    ports = free_ports(2)
    conf = CONF.format(host=host, user=user, folder=folder, ports=ports)
    (folder / "slurm.conf").write_text(conf)
    (folder / "job").write_text(JOB)
    (folder / "job").chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed"}
    munge = [f"--{flag}={folder}/munge.{ending}" for flag, ending in files.items()]
    daemons = (
        ["munged", "--foreground", f"--log-file={folder}/munged.log", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    )
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    cluster = Slurm(folder)
    try:
        for command in daemons:
            with open(folder / "daemons.log", "ab") as log:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        end = time.monotonic() + 30
        while "idle" not in (state := cluster.call("sinfo", "--noheader", "--format=%T")):
            assert time.monotonic() < end, (state, (folder / "daemons.log").read_text())
            time.sleep(0.5)
        yield cluster
    finally:
        if len(running) == len(daemons) and running[1].poll() is None:
            cluster.call("scancel", "--state=PENDING", f"--user={user}")
            cluster.call("scancel", "--state=RUNNING", "--signal=KILL", "--full", f"--user={user}")
            time.sleep(1)
        for daemon in reversed(running):
            daemon.terminate()
            daemon.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


pytestmark = pytest.mark.slow


def test_it_is_queued_again_when_a_process_dies(slurm: Slurm):
    job = slurm.submit("--die")
    facts = slurm.wait(job, "PENDING", says="restart 1 of 100")
    assert facts["Restarts"] == "1"
    slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm waits two minutes
    assert slurm.wait(job, "COMPLETED")["ExitCode"] == "0:0"
    for process in (0, 1):
        assert f"start 1 of {process}: --die" in slurm.output(job)


def test_bad_input_ends_the_job(slurm: Slurm):
    facts = slurm.wait(slurm.submit("--bad"), "FAILED")
    assert facts["ExitCode"] == "2:0" and facts["Restarts"] == "0"
    assert not list(slurm.folder.glob("*.verdict"))


def test_near_the_end_of_its_time_all_save_and_it_is_queued_again(slurm: Slurm):
    job = slurm.submit("--wait")
    slurm.wait(job, "RUNNING", says="start 0 of 1")
    slurm.call("scancel", "--signal=TERM", "--batch", job)  # as --signal=B:TERM@120 does
    slurm.wait(job, "PENDING", says="exit code 143")
    assert {"0: saved 0", "1: saved 1"} <= set(slurm.output(job).splitlines())
    slurm.call("scancel", job)


def test_a_job_that_was_cancelled_stays_so(slurm: Slurm):
    job = slurm.submit("--wait")
    slurm.wait(job, "RUNNING", says="start 0 of 1")
    slurm.call("scancel", job)
    facts = slurm.wait(job, "CANCELLED", says="saved 1")
    time.sleep(2)
    assert slurm.facts(job)["JobState"] == "CANCELLED" and facts["Restarts"] == "0"


def test_restarts_are_counted(slurm: Slurm):
    job = slurm.submit("--die", MAX_RESTARTS="-1")
    assert slurm.wait(job, "FAILED")["ExitCode"] == "1:0"
    assert "given up" in slurm.output(job)
