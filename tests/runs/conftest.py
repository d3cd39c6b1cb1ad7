"""Runs of tests/runs/experiment.py: its pictures, its processes, and what must be equal of two."""

import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image

from flamingo_jax import __main__ as cli
from flamingo_jax import logs, sharding
from flamingo_jax.checkpoint import list_steps, load_params
from flamingo_jax.fingerprint import tree_leaves

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 400
"""A process may take so long, on a machine that is busy with other things."""

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}


def draw(folder: pathlib.Path, count: int = 24, alike: bool = False) -> None:
    """Coloured squares and two files of captions; one picture in four is for validation."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    captions, told = [], []
    for number in range(count):
        colour = list(COLOURS)[0 if alike else number % len(COLOURS)]
        pixels = np.full((32, 32, 3), 255, np.uint8)
        y, x = (4, 4) if alike else rng.integers(0, 16, 2)
        pixels[y : y + 16, x : x + 16] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        split = "train" if number % 4 else "validation"
        row = {"image": f"{number}.png", "split": split}
        captions.append(row | {"text": f"a {colour} square"})
        told.append(row | {"text": f"square {number} is {colour}"})
    for name, rows in (("captions", captions), ("told", told)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def experiment_in(folder: pathlib.Path, **drawing) -> pathlib.Path:
    """The experiment's file in a folder, beside pictures drawn for it."""
    draw(folder / "pictures", **drawing)
    rows = [{"image": f"{n}.png", "label": list(COLOURS)[n % len(COLOURS)]} for n in range(10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "colours.jsonl").write_text(text, encoding="utf-8")
    return pathlib.Path(shutil.copy(pathlib.Path(__file__).with_name("experiment.py"), folder))


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a workdir holds."""

    path: pathlib.Path

    def rows(self, name: str, **wanted) -> list[dict]:
        """The rows of NAME.jsonl that have these values."""
        rows = logs.read_rows(self.path / f"{name}.jsonl")
        return [row for row in rows if wanted.items() <= row.items()]

    def text(self, name: str) -> str:
        return (self.path / f"{name}.jsonl").read_text(encoding="utf-8")

    def checkpoints(self, stage: str = "flamingo") -> pathlib.Path:
        return self.path / "checkpoints" / stage

    def meta(self, stage: str = "flamingo", step: int | None = None) -> dict:
        """The meta of a step, by default the newest."""
        folder = self.checkpoints(stage)
        step = list_steps(folder)[-1] if step is None else step
        return json.loads((folder / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))

    def params(self, stage: str = "flamingo") -> dict[str, np.ndarray]:
        """The parameters of the newest step, read and verified."""
        return tree_leaves(load_params(self.checkpoints(stage)).params)

    def copy(self, to: pathlib.Path, *, upto: int | None = None) -> "Folder":
        """A copy that is not finished and knows no step of the last stage beyond one."""
        shutil.copytree(self.path, to)
        (to / "finished").unlink(missing_ok=True)
        other = Folder(to)
        for step in list_steps(other.checkpoints()):
            if upto is not None and step > upto:
                shutil.rmtree(other.checkpoints() / str(step))
        return other


def assert_same(run: Folder, wanted: Folder, *stages: str) -> None:
    """Metrics, rows, parameters and moments are those of the other run, to the last bit."""
    for log in ("metrics", "rows"):
        assert run.text(log) == wanted.text(log), log
    for stage in stages or ("flamingo",):
        meta, other = run.meta(stage), wanted.meta(stage)
        assert meta["step"] == other["step"]
        assert meta["fingerprints"] == other["fingerprints"]
        assert meta["frozen"] == other["frozen"]
        params, others = run.params(stage), wanted.params(stage)
        assert params.keys() == others.keys() and params
        for path in params:
            assert np.asarray(params[path]).tobytes() == np.asarray(others[path]).tobytes(), path


@dataclasses.dataclass
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains the experiment, in a process of its own or here."""

    experiment: pathlib.Path

    def beside(self, folder: pathlib.Path, **drawing) -> "Trainer":
        """The same experiment on other pictures."""
        return Trainer(experiment_in(folder, **drawing))

    def argv(
        self, workdir: pathlib.Path | str, *flags: str, variant: str = "flamingo"
    ) -> list[str]:
        return ["train", f"--config={self.experiment}:{variant}", f"--workdir={workdir}", *flags]

    def start(self, workdir: pathlib.Path, *flags: str, **options) -> subprocess.Popen[str]:
        """Starts the command as a user does; `die` is when it is to kill itself."""
        die = options.pop("die", None)
        return subprocess.Popen(
            [sys.executable, "-m", "flamingo_jax", *self.argv(workdir, *flags, **options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **({"DIE": die} if die else {})},
        )

    def process(self, workdir: pathlib.Path, *flags: str, **options) -> Done:
        """Runs the command to its end."""
        process = self.start(workdir, *flags, **options)
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return Done(process.returncode, out, err)

    def here(self, workdir: pathlib.Path | str, *flags: str, **options) -> int:
        """Runs the command in this process; the exit code."""
        return cli.main(self.argv(workdir, *flags, **options))


@pytest.fixture(scope="session")
def once(tmp_path_factory, request) -> Callable[..., pathlib.Path]:
    """once(NAME, make): a folder that whichever of pytest's workers comes first has made.

    No test changes what is in it.
    """
    own = tmp_path_factory.getbasetemp()
    common = own.parent if hasattr(request.config, "workerinput") else own

    def once(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        folder, draft = common / name, common / f"{name}.draft"
        with open(common / f"{name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
                make(draft)
                draft.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def trainer(once) -> Trainer:
    return Trainer(once("experiment", experiment_in) / "experiment.py")


@pytest.fixture
def folder(tmp_path) -> Folder:
    """A workdir that is not there yet."""
    return Folder(tmp_path / "run")


@pytest.fixture
def same() -> Callable[..., None]:
    """`assert_same`."""
    return assert_same


@pytest.fixture(scope="session")
def undisturbed(trainer, once) -> Folder:
    """A finished run of the Flamingo stage, on one device, in its own process."""

    def make(folder: pathlib.Path) -> None:
        done = trainer.process(folder)
        assert done.code == 0, done.err

    return Folder(once("undisturbed", make))


@pytest.fixture(scope="session")
def three_stages(trainer, tmp_path_factory) -> Folder:
    """A finished run of all stages, likewise."""
    folder = Folder(tmp_path_factory.mktemp("stages") / "run")
    done = trainer.process(folder.path, variant="stages")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def one_device(monkeypatch) -> None:
    """Runs in this process take the first of its devices, as processes of their own do."""
    make = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", make)
