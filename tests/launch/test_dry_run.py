"""What each launcher would run, as goldens; and that its shell scripts are sound.

`UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/launch/test_dry_run.py` writes the goldens again.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
GOLDENS = pathlib.Path(__file__).parent / "goldens"

TRAIN = ["--", "train", "--config=experiments/flamingo_3b.py:tiny", "--config.seed=1"]
BUCKET = "--workdir=gs://bucket/a run"
POD = ["--name=pod", "--project=project", "--zone=us-east5-a"]
V5P = ["--type=v5p", "--topology=4x4x4", "--runtime-version=v2-alpha-tpuv5", "--spot"]
SLICES = ["--accelerator-type=v6e-64", "--runtime-version=v2-alpha-tpuv6e", "--slices=2"]
GKE = ["--name=job", "--image=registry/flamingo:1"]
CASES = {
    "local": ["local.py", "--processes=4", "--devices-per-process=2", *TRAIN, "--workdir=a run"],
    "local_command": ["local.py", "--port=1234", "--command", "--", "sh", "-c", "echo $HOME"],
    "tpu_vm_create": ["tpu_vm.py", "create", *POD, *V5P],
    "tpu_vm_install": ["tpu_vm.py", "install", *POD],
    "tpu_vm_run": ["tpu_vm.py", "run", *POD, *V5P, *TRAIN, BUCKET],
    "tpu_vm_run_slices": ["tpu_vm.py", "run", *POD, *SLICES, *TRAIN, BUCKET],
    "tpu_vm_logs": ["tpu_vm.py", "logs", *POD, "--worker=3"],
    "tpu_vm_stop": ["tpu_vm.py", "stop", *POD, "--grace=60"],
    "tpu_vm_delete": ["tpu_vm.py", "delete", *POD],
    "gke": ["gke.py", *GKE, "--accelerator=tpu-v5p-slice", "--topology=4x4x4", *TRAIN, BUCKET],
    "gke_slices": [
        *("gke.py", *GKE, "--accelerator=tpu-v6e-slice", "--topology=4x8", "--slices=2"),
        *("--spot", "--queue=queue", "--service-account=trainer", *TRAIN, BUCKET),
    ],
    "gke_xpk": [
        *("gke.py", *GKE, "--xpk", "--cluster=cluster", "--project=project", "--zone=us-east5-a"),
        *("--tpu-type=v5p-128", "--slices=2", "--spot", *TRAIN, BUCKET),
    ],
    "slurm": ["slurm.sh", *TRAIN[2:], "--workdir=a run"],
}
BAD = {
    "which chips": ["tpu_vm.py", "run", *POD, *TRAIN],
    "or else --acc": ["tpu_vm.py", "create", *POD, *V5P, *SLICES],
    "go together": ["tpu_vm.py", "create", *POD, "--type=v5p", "--runtime-version=v"],
    "--runtime-version": ["tpu_vm.py", "create", *POD, *V5P[:2]],
    "nothing to run": ["tpu_vm.py", "run", *POD, *V5P],
    "give --accelerator": ["gke.py", *GKE, *TRAIN],
    "give --cluster": ["gke.py", *GKE, "--xpk", *TRAIN],
    "does not divide": ["gke.py", *GKE, "--accelerator=tpu-v4-podslice", "--topology=3x3", *TRAIN],
    "is no topology": ["gke.py", *GKE, "--accelerator=tpu-v4-podslice", "--topology=4", *TRAIN],
    "cannot be written": [CASES["gke"][0], "--out=/dev/null/job.json", *CASES["gke"][1:]],
    "this is a script for Slurm": ["slurm.sh", "--config=a.py"],
}


def launch(
    words: list[str], *flags: str, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    """Runs a launcher in an environment of nothing but a PATH."""
    script, *rest = words
    program = [sys.executable, "-I"] if script.endswith(".py") else ["/bin/bash"]
    return subprocess.run(
        [*program, str(LAUNCH / script), *flags, *rest],
        env={"PATH": path, "HOME": "/nowhere"},
        cwd=GOLDENS,
        capture_output=True,
        text=True,
        timeout=60,
    )


def neutral(text: str) -> str:
    """A dry run's output without what differs from machine to machine."""
    places = {
        shlex.quote(sys.executable): "PYTHON",
        str(GOLDENS): "HERE",
        str(ROOT): "CHECKOUT",
        tempfile.gettempdir(): "TMP",
    }
    for place, name in places.items():
        text = text.replace(place, name)
    return text


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_prints_its_commands(name: str):
    before = sorted(GOLDENS.iterdir())
    done = launch(CASES[name], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    golden = GOLDENS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(neutral(done.stdout), encoding="utf-8")
    else:
        assert sorted(GOLDENS.iterdir()) == before, "a dry run writes nothing"
        assert neutral(done.stdout) == golden.read_text(encoding="utf-8")


def test_no_golden_is_left_over():
    assert {path.stem for path in GOLDENS.iterdir()} == set(CASES)


@pytest.mark.parametrize("says", BAD)
def test_a_bad_command_line_is_told(says: str):
    done = launch(BAD[says])
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_the_job_set_is_written_and_submitted_only_when_asked(tmp_path: pathlib.Path):
    path = tmp_path / "job.json"
    done = launch(CASES["gke"], f"--out={path}", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"kubectl apply --filename={path}\n"
    written = json.loads(path.read_text(encoding="utf-8"))
    job = written["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4 * 4 * 4 // 4

    asked = launch(CASES["gke"], f"--out={path}", "--submit", path=str(tmp_path))
    assert asked.returncode == 2 and "no program kubectl" in asked.stderr
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/bash\necho "asked: $*"\nexit 7\n')
    kubectl.chmod(0o755)
    asked = launch(CASES["gke"], f"--out={path}", "--submit", path=str(tmp_path))
    assert asked.stdout.splitlines()[-1] == f"asked: apply --filename={path}"
    assert asked.returncode == 7


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_clean(path: pathlib.Path):
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("there is no shellcheck: the extra dev has it")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
