"""Trains on a pod of TPU VMs: asks for it, installs, runs on all workers, and survives preemption.

  python launch/tpu_vm.py run --name=flamingo --project=P --zone=us-east5-a --spot \\
    --type=v5p --topology=4x4x4 --runtime-version=v2-alpha-tpuv5 -- \\
    train --config=experiments/flamingo_9b.py --workdir=gs://BUCKET/runs/9b

Every step is a command of the gcloud CLI; `--dry-run` prints them. A queued resource waits for the
chips; `run` asks for one if there is none of that name, and follows a job that is running already.
The workers share no disk: give a --workdir in a bucket.

  create   queues the request and waits until the pod is there
  install  copies this checkout to every worker and installs it, as constraints.txt has it
  run      both, then the job: shows worker 0, starts it again when it dies, and asks for
           another pod when this one was preempted
  logs     shows a worker's output and what comes
  stop     SIGTERM on all workers, waits for them to save
  delete   gives the pod back

exit codes of run: 0, 2, 3 as the job's (finished, bad input, does not fit); 143 it was stopped;
130 Ctrl-C: the job goes on without being watched; 1 given up.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
FINAL = (2, 3)  # exit codes that a new start would not change (DESIGN.md §4.1)
STOPPED = 143
# States of a queued resource: cloud.google.com/tpu/docs/queued-resources.
READY, LOST = "ACTIVE", ("SUSPENDING", "SUSPENDED", "FAILED")
NOT_COPIED = (".git", ".venv", ".cache", "runs", "build", "dist")
WORKER = "flamingo_jax/launch/tpu_worker.sh"
RETRIES = 10  # that fail in a row before a pod, or the service, counts as out of reach
EXIT_MARK = "FLAMINGO_EXIT"  # what tpu_worker.sh prints before host and code


@dataclasses.dataclass(frozen=True)
class Pod:
    """A queued resource and the commands that deal with it.

    Attributes:
      name: of the queued resource and of its node (or the prefix of its nodes' names).
      scope: ("--project=…", "--zone=…").
      shape: ("--type=…", "--topology=…") or ("--accelerator-type=…",).
      runtime: the VMs' software version.
      slices: nodes joined over the data centre network.
      flags: further flags of `create`, such as --spot.
      extras: of the package, to install.
    """

    name: str
    scope: tuple[str, ...]
    shape: tuple[str, ...]
    runtime: str
    slices: int
    flags: tuple[str, ...]
    extras: str

    def queued(self, verb: str, *rest: str) -> list[str]:
        """`gcloud compute tpus queued-resources VERB NAME …`."""
        words = ["gcloud", "compute", "tpus", "queued-resources", verb]
        return [*words, *rest] if verb == "scp" else [*words, self.name, *rest]

    def create(self) -> list[str]:
        """Asks for the pod."""
        nodes = [f"--node-id={self.name}"]
        if self.slices > 1:
            nodes = [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        runtime = f"--runtime-version={self.runtime}"
        return self.queued("create", *self.scope, *self.shape, runtime, *nodes, *self.flags)

    def describe(self) -> list[str]:
        """Prints the state, one word."""
        return self.queued("describe", *self.scope, "--format=value(state.state)")

    def delete(self) -> list[str]:
        """Gives the pod back, with its nodes."""
        return self.queued("delete", *self.scope, "--force", "--quiet")

    def ssh(self, command: str, node: str = "all", worker: str = "all") -> list[str]:
        """Runs a shell command on workers."""
        where = (f"--node={node}", f"--worker={worker}")
        return self.queued("ssh", *self.scope, *where, f"--command={command}")

    def install(self) -> list[list[str]]:
        """Copies this checkout to all workers and installs it, where no job is running.

        uv brings a Python 3.11 where the VM's software version has an older one.
        """
        archive = str(pathlib.Path(tempfile.gettempdir()) / f"flamingo_jax-{self.name}.tgz")
        left_out = [f"--exclude=./{name}" for name in NOT_COPIED]
        pack = ["tar", "--create", "--gzip", f"--file={archive}", *left_out]
        unpack = "tar --extract --gzip --file=flamingo_jax.tgz --directory=flamingo_jax"
        steps = (
            f"if bash {WORKER} running 2>/dev/null; then exit 0; fi; mkdir -p flamingo_jax",
            unpack,
            "cd flamingo_jax",
            "python3 -m pip install --quiet --user uv",
            "python3 -m uv venv --quiet --allow-existing --python=3.11 .venv",
            "python3 -m uv pip install --quiet --python=.venv/bin/python "
            f"--constraint=constraints.txt '.[{self.extras}]'",
        )
        remote = f"{self.name}:flamingo_jax.tgz"
        return [
            [*pack, f"--directory={ROOT}", "."],
            self.queued("scp", archive, remote, *self.scope, "--node=all", "--worker=all"),
            self.ssh(" && ".join(steps)),
        ]

    def start(self, arguments: Sequence[str], restart: int) -> list[str]:
        """Starts `python -m flamingo_jax …` on all workers, where it goes on by itself.

        "auto": JAX asks the VM's metadata who the others are, as the environment tells nothing.
        """
        job = [".venv/bin/python", "-m", "flamingo_jax", *arguments]
        words = ["env", "FLAMINGO_COORDINATOR=auto", *job]
        start = f"bash launch/tpu_worker.sh start {restart} {shlex.join(words)}"
        return self.ssh(f"cd flamingo_jax && {start}")

    def follow(self, lines: str, node: str = "0", worker: str = "0") -> list[str]:
        """Shows a worker's output until its job ends; lines: "10" the last ten, "+1" all."""
        return self.ssh(f"bash {WORKER} follow {lines}", node, worker)

    def end(self, wait: int, grace: int) -> list[str]:
        """Waits for all workers' jobs, then ends them; prints the exit codes."""
        return self.ssh(f"bash {WORKER} end {wait} {grace}")

    def stop(self, grace: int) -> list[str]:
        """Ends them at once, for good."""
        return self.ssh(f"bash {WORKER} stop {grace}")


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds and counts, as the flags of the same names tell them."""

    poll: float
    wait: int
    grace: int
    restarts: int
    quick_failures: int
    quick_seconds: float


def call(command: list[str]) -> int:
    """Runs a command that the user watches; its exit code."""
    return subprocess.run(command, check=False).returncode


def need(command: list[str]) -> None:
    """Runs a command that must succeed, else raises CalledProcessError."""
    subprocess.run(command, check=True)


def say(text: str) -> None:
    """One line on stderr."""
    print(f"tpu_vm.py: {text}", file=sys.stderr, flush=True)


def state_of(pod: Pod, patience: Patience) -> str:
    """The queued resource's state; empty where there is none of that name.

    Raises:
      CalledProcessError: gcloud has failed otherwise, RETRIES times in a row.
    """
    for attempt in range(RETRIES):
        done = subprocess.run(pod.describe(), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        if "NOT_FOUND" in done.stderr:
            return ""
        if attempt == RETRIES - 1:
            say(done.stderr.strip())
        time.sleep(patience.poll)
    raise subprocess.CalledProcessError(1, pod.describe())


def create(pod: Pod, patience: Patience) -> None:
    """Asks for the pod, unless somebody has, and waits until it is there."""
    if not state_of(pod, patience):
        need(pod.create())
    before = ""
    while (state := state_of(pod, patience)) != READY:
        if state in LOST:
            raise SystemExit(f"tpu_vm.py: the request {pod.name} is {state}; `delete` it")
        if state != before:
            say(f"{pod.name} is {state}")
        before = state
        time.sleep(patience.poll)


def prepare(pod: Pod, patience: Patience) -> None:
    """Makes sure of a pod with this checkout on it."""
    while (state := state_of(pod, patience)) == "SUSPENDING":
        time.sleep(patience.poll)
    if state in LOST:
        say(f"{pod.name} is {state}: asking for another")
        need(pod.delete())
    create(pod, patience)
    for command in pod.install():
        need(command)


def follow(pod: Pod, patience: Patience) -> None:
    """Shows worker 0 until its job ends.

    A connection may break while the job goes on, but a pod may also be gone, or out of reach.
    """
    lines, failures = "+1", 0
    while failures < RETRIES:
        begin = time.monotonic()
        if call(pod.follow(lines)) == 0 or state_of(pod, patience) != READY:
            return
        failures = failures + 1 if time.monotonic() - begin < patience.quick_seconds else 1
        lines = "10"
        time.sleep(patience.poll)


def end(pod: Pod, patience: Patience) -> list[str]:
    """Ends the job on all workers; each worker's exit code, "stopped", or "unreachable"."""
    command = pod.end(patience.wait, patience.grace)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if EXIT_MARK in line]
    codes = [words[words.index(EXIT_MARK) + 2] for words in lines]
    return codes if done.returncode == 0 else [*codes, "unreachable"]


def verdict(codes: Sequence[str]) -> int | None:
    """The exit code that the workers' codes come to; None asks for a new start."""
    if "stopped" in codes:
        return STOPPED
    for code in FINAL:
        if str(code) in codes:
            return code
    return 0 if codes and set(codes) == {"0"} else None


def run(pod: Pod, patience: Patience, arguments: Sequence[str]) -> int:
    """Runs the job to its end, on as many pods as it takes; returns the exit code."""
    prepare(pod, patience)
    quick = 0
    for restart in range(patience.restarts + 1):
        begin = time.monotonic()
        if call(pod.start(arguments, restart)) == 0:
            follow(pod, patience)
        codes = end(pod, patience)
        code = verdict(codes)
        if code is not None:
            say(f"the workers ended with {', '.join(codes)}")
            return code
        state, seconds = state_of(pod, patience), time.monotonic() - begin
        told = f"exit codes {', '.join(codes) or 'unknown'}, pod {state or 'gone'}"
        preempted = state != READY
        quick = quick + 1 if seconds < patience.quick_seconds and not preempted else 0
        if restart == patience.restarts or quick >= patience.quick_failures:
            say(f"given up after {restart} restarts, {seconds:.0f} s after the last: {told}")
            return 1
        say(f"{told} after {seconds:.0f} s; restart {restart + 1} of {patience.restarts}")
        if preempted:
            prepare(pod, patience)
    return 1


def commands(verb: str, pod: Pod, patience: Patience, flags: argparse.Namespace) -> list[list[str]]:
    """What a verb runs when nothing goes wrong."""
    job = [pod.start(flags.arguments, 0), pod.follow("+1")]
    job.append(pod.end(patience.wait, patience.grace))
    return {
        "create": [pod.create(), pod.describe()],
        "install": pod.install(),
        "run": [pod.describe(), pod.create(), pod.describe(), *pod.install(), *job],
        "logs": [pod.follow("+1", str(flags.node), str(flags.worker))],
        "stop": [pod.stop(patience.grace)],
        "delete": [pod.delete()],
    }[verb]


def show(verb: str, pod: Pod, patience: Patience, flags: argparse.Namespace) -> None:
    """Prints every command, quoted for a shell, one a line."""
    for command in commands(verb, pod, patience, flags):
        print(shlex.join(command))
    if verb == "run":
        print("# when the pod was preempted, before the next start:")
        print(shlex.join(pod.delete()))
        show("create", pod, patience, flags)
        show("install", pod, patience, flags)


def make_parser() -> argparse.ArgumentParser:
    """The flags before `--`."""
    parser = argparse.ArgumentParser(
        "tpu_vm.py",
        usage="tpu_vm.py VERB --name=… --project=… --zone=… [flags] [-- train --config=… …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("create", "install", "run", "logs", "stop", "delete"))
    for name in ("--name", "--project", "--zone"):
        parser.add_argument(name, required=True)
    parser.add_argument("--type", default="", help="of the chips, with --topology: v4, v5p, v6e, …")
    parser.add_argument("--topology", default="", help="4x4x4, …")
    parser.add_argument("--accelerator-type", default="", help="instead of both: v5p-128, …")
    parser.add_argument("--runtime-version", default="", help="of the VMs: v2-alpha-tpuv5, …")
    parser.add_argument("--slices", type=int, default=1, help="pods joined over the network (1)")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    what = "a further flag of queued-resources create, such as --create-flag=--network=…"
    parser.add_argument("--create-flag", action="append", default=[], metavar="FLAG", help=what)
    parser.add_argument("--extras", default="tpu,gcs", help="of the package (tpu,gcs)")
    parser.add_argument("--node", type=int, default=0, help="of logs: the slice (0)")
    parser.add_argument("--worker", type=int, default=0, help="of logs: the host in it (0)")

    def number(name: str, default: int, what: str) -> None:
        parser.add_argument(
            name, type=int, default=default, metavar="N", help=f"{what} ({default})"
        )

    number("--poll", 30, "seconds between two looks at the pod's state")
    number("--wait", 60, "seconds for the other workers when worker 0 has ended")
    number("--grace", 600, "seconds from SIGTERM to SIGKILL, in which they save")
    number("--restarts", 1000, "before the job is given up")
    number("--quick-failures", 3, "ends soon after a start, in a row, likewise")
    number("--quick-seconds", 120, "soon is within so many seconds")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def make_pod(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> Pod:
    """The pod that the flags describe; what a verb needs must be there."""
    shape = (f"--type={flags.type}", f"--topology={flags.topology}")
    if flags.accelerator_type:
        shape = (f"--accelerator-type={flags.accelerator_type}",)
    if flags.verb in ("create", "run"):
        if bool(flags.accelerator_type) == bool(flags.type or flags.topology):
            parser.error("which chips? give --type and --topology, or else --accelerator-type")
        if bool(flags.type) != bool(flags.topology):
            parser.error("which chips? --type and --topology go together")
        if not flags.runtime_version:
            parser.error("give --runtime-version: cloud.google.com/tpu/docs/runtimes lists them")
    if flags.slices < 1:
        parser.error("--slices is at least 1")
    return Pod(
        name=flags.name,
        scope=(f"--project={flags.project}", f"--zone={flags.zone}"),
        shape=shape,
        runtime=flags.runtime_version,
        slices=flags.slices,
        flags=(*(["--spot"] if flags.spot else []), *flags.create_flag),
        extras=flags.extras,
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    middle = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:middle])
    flags.arguments = list(argv[middle + 1 :])
    if flags.verb == "run" and not flags.arguments:
        parser.error("nothing to run: give the verb and its flags after --, as --help shows")
    pod = make_pod(parser, flags)
    fields = [field.name for field in dataclasses.fields(Patience)]
    patience = Patience(**{name: getattr(flags, name) for name in fields})
    if flags.dry_run:
        show(flags.verb, pod, patience, flags)
        return 0
    try:
        if flags.verb == "run":
            return run(pod, patience, flags.arguments)
        if flags.verb == "create":
            create(pod, patience)
        else:
            for command in commands(flags.verb, pod, patience, flags):
                need(command)
    except FileNotFoundError as error:
        say(f"there is no program {error.filename}; install it")
        return 2
    except subprocess.CalledProcessError as error:
        say(f"exit code {error.returncode} of: {shlex.join(error.cmd)}")
        return 1
    except KeyboardInterrupt:
        say("no longer watched; a job that runs goes on: `run` follows it again, `stop` ends it")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
