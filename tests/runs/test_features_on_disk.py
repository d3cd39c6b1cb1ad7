"""`prepare features`, and training from what it made: the losses of encoding at every step."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tracemalloc
import types
from typing import Any

import jax
import numpy as np
import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax import assemble, config, feature_job, features, inputs, sharding
from flamingo_jax.data.featurefiles.reader import open_features
from flamingo_jax.data.tokenizer import open_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import flatten_paths
from flamingo_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
AUGMENTED = ("flip", "brightness", "contrast", "saturation", "hue")
PLAIN = tuple(f"--config.data.augment.{name}=0" for name in AUGMENTED)
SHORT = ("--config.train.steps=4",)


def prepare(trainer, out, workdir, *flags: str, variant: str = "flamingo") -> int:
    argv = ["prepare", "features", f"--config={trainer.experiment}:{variant}", f"--out={out}"]
    return cli.main([*argv, f"--workdir={workdir}", *flags])


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def plain(trainer, tmp_path_factory) -> pathlib.Path:
    """Features without augmentation, made on one device, in small shards."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        make = sharding.make_mesh
        patch.setattr(sharding, "make_mesh", lambda *sizes, **_: make(devices=jax.devices()[:1]))
        assert prepare(trainer, folder / "out", folder / "run", *PLAIN, "--shard-size=5") == 0
    return folder / "out"


def trained(trainer, workdir, *flags: str):
    assert trainer.here(workdir, *SHORT, *flags) == 0


def losses(folder) -> dict[tuple[int, str, str], float]:
    return {
        (row["step"], row["kind"], name): row[name]
        for row in folder.rows("metrics")
        for name in row
        if name == "loss" or name.endswith("/loss")
    }


@pytest.mark.slow
def test_losses_are_those_of_the_pixels(trainer, plain, folder, same, one_device, tmp_path):
    """To the last bit those of features kept in memory; of pixels, but for bf16's rounding.

    At each step the encoder is part of another program, for other batches, and nothing rounds its
    f32 features to bf16. Losses of mirrored pictures tell what a difference is.
    """
    open_gates = "--config.train.optimizer.multipliers=(('gate_', 100.0),)"
    runs = {}
    for name, *flags in (
        ("disk", f"--config.data.features={plain}"),
        ("memory", "--config.data.cache_features=True"),
        ("pixels",),
        ("mirrored", "--config.data.augment.flip=1"),
    ):
        runs[name] = dataclasses.replace(folder, path=tmp_path / name)
        trained(trainer, runs[name].path, open_gates, *PLAIN, *flags)
    same(runs["disk"], runs["memory"])
    assert runs["disk"].text("rows") == runs["pixels"].text("rows")
    found, wanted, other = (losses(runs[name]) for name in ("disk", "pixels", "mirrored"))
    assert len(wanted) >= 6 and found == pytest.approx(wanted, rel=0, abs=5e-4)
    assert max(abs(other[name] - wanted[name]) for name in wanted) > 1e-2


@pytest.mark.slow
def test_eight_devices_make_the_same_features(trainer, plain, tmp_path):
    """But for a few last bits of bf16: a device's batch is smaller, and sums in another order."""
    mesh = ("--config.mesh.replica=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    argv = (tmp_path / "out", tmp_path / "run", *PLAIN, "--shard-size=5", *mesh)
    assert prepare(trainer, *argv) == 0
    folders = open_features(plain), open_features(tmp_path / "out")
    assert folders[0].plan == folders[1].plan and folders[0].counts == folders[1].counts
    assert contents(plain).keys() == contents(tmp_path / "out").keys()
    for number in range(24):
        split = "train" if number % 4 else "validation"
        one, eight = (
            folder.table("named", split)[f"{number}.png", -1].astype(np.float32)
            for folder in folders
        )
        assert (abs(eight - one) <= 2.0**-7 * abs(one) + 1e-6).all()
        assert (eight != one).mean() < 0.01


SCRIPT = """
import os, signal, sys, types
import jax, numpy as np
from flamingo_jax import assemble, config, feature_job, features, inputs
from flamingo_jax.data.featurefiles import writer
from flamingo_jax.data.featurefiles.reader import open_features
from flamingo_jax.errors import InputError
from flamingo_jax.workdir import Workdir

experiment, out, every = sys.argv[1:]
c = config.finish(config.load(f"{experiment}:flamingo", {"data.versions": "2"}))
specs = assemble.dataset_specs(c, "flamingo")
stage = types.SimpleNamespace(name="flamingo", datasets=specs, trainable={})
P, E = features.feature_shape(c)
left = 0

def encode(pixels):
    means = pixels.astype(np.float32).mean((1, 2, 3))
    return np.broadcast_to(means[:, None, None], (len(pixels), P, E))

# No device is touched: a process that has used one cannot fork.
jax.process_count = lambda: 1
features.batch_size = lambda mesh: 4
features.encoder = lambda c, vision, mesh: encode
features.fingerprint.fingerprints = lambda tree: {}

def prepare(folder):
    run = inputs.Run(c, Workdir(out), None, None, {}, None)
    feature_job.prepare(run, stage, {}, folder, shard_size=5)

def watched(function):
    def call(*args, **options):
        count()
        result = function(*args, **options)
        count()
        return result
    return call

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace, os.fsync = watched(os.replace), watched(os.fsync)
writer.NewShard.add = watched(writer.NewShard.add)

# A process for each moment; the first that is not killed has reached the end.
moments = []
for moment in range(1, 2000, int(every)):
    child = os.fork()
    if not child:
        left = moment
        prepare(f"{out}/{moment}")
        os._exit(0)
    moments.append(moment)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
for moment in moments:
    try:
        whole = bool(open_features(f"{out}/{moment}"))
    except InputError:
        whole = False
    prepare(f"{out}/{moment}")
    print(moment, whole, flush=True)
prepare(f"{out}/wanted")
"""


def test_killed_anywhere_and_gone_on_with(trainer, tmp_path):
    broken = trainer.beside(tmp_path / "broken")
    (tmp_path / "broken" / "pictures" / "5.png").write_bytes(b"no picture")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    argv = [sys.executable, str(script), str(broken.experiment), str(tmp_path), "9"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    wanted = contents(tmp_path / "wanted")
    found = open_features(tmp_path / "wanted")
    assert found.bad == {"not an image": 2} and found.shards == 5
    assert len(rows) > 20 and rows[0][1] == "False" and rows[-1][1] == "True"
    for moment, _ in rows:
        assert contents(tmp_path / moment) == wanted, moment


@pytest.fixture
def without_devices(monkeypatch):
    """`feature_job.prepare` of an experiment with an encoder of numpy."""

    def make(trainer, out, shape=(4, 256), **overrides: str) -> inputs.Run:
        fields = {f"data.{name}": value for name, value in overrides.items()}
        c = config.finish(config.load(f"{trainer.experiment}:flamingo", fields))
        specs = assemble.dataset_specs(c, "flamingo")
        stage: Any = types.SimpleNamespace(name="flamingo", datasets=specs, trainable={})

        def encode(pixels: np.ndarray) -> np.ndarray:
            means = pixels.astype(np.float32).mean((1, 2, 3))
            return np.tile(means[:, None, None], (1, *shape))

        monkeypatch.setattr(features, "feature_shape", lambda c: shape)
        monkeypatch.setattr(features, "batch_size", lambda mesh: 4)
        monkeypatch.setattr(features, "encoder", lambda c, vision, mesh: encode)
        nothing: Any = None
        run = inputs.Run(c, Workdir(out), nothing, nothing, {}, StopRequest())
        feature_job.prepare(run, stage, {}, str(out), shard_size=30)
        return run

    return make


def test_features_are_not_held(trainer, tmp_path, without_devices):
    tracemalloc.start()
    without_devices(trainer, tmp_path / "out", (64, 512), versions="40")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = open_features(tmp_path / "out").bytes
    assert held > 40e6 and peak < held / 4


def test_folders_with_the_same_names_are_kept_apart(trainer, tmp_path, without_devices):
    """Both have a 1.png, of different pictures."""
    text = trainer.experiment.read_text(encoding="utf-8")
    other = trainer.beside(tmp_path / "other", alike=True)
    told = f'"told", "weight": 0.5, "path": "{trainer.experiment.parent / "pictures"}"'
    changed = text.replace('"folder:told", "weight": 0.5', f'"folder:{told[1:]}')
    assert changed != text
    other.experiment.write_text(changed, encoding="utf-8")
    without_devices(other, tmp_path / "out", versions="1")
    found = open_features(tmp_path / "out")
    assert found.counts["media"] == 2 * 24
    a, b = (found.table(name, "train")["1.png", 0] for name in ("named", "told"))
    assert a.tobytes() != b.tobytes()


def test_fresh_augmentation_is_refused(trainer, tmp_path, without_devices):
    with pytest.raises(InputError, match="'named' is augmented anew at each visit"):
        without_devices(trainer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def dependencies(trainer, overrides: dict[str, str], weight: float = 0.0) -> dict[str, Any]:
    c = config.finish(config.load(f"{trainer.experiment}:flamingo", overrides))
    specs = assemble.dataset_specs(c, "flamingo")
    stage: Any = types.SimpleNamespace(name="flamingo", datasets=specs)
    vision = {"nfnet": {"bias": jax.numpy.full(3, weight)}}
    return features.dependencies(c, stage, vision)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("data.resize", "crop", 'resize="pad" and this run has "crop"'),
        ("data.image_size", "64", "image_size=32 and this run has 64"),
        ("data.versions", "3", "datasets.named.versions=2 and this run has 3"),
        ("seed", "1", "seed=0 and this run has 1"),
        ("data.augment.flip", "0.25", "augment.flip=0.5 and this run has 0.25"),
        ("train.datasets.told.frames", "2", "datasets.told.frames=1 and this run has 2"),
        ("model.vision.dtype", "bfloat16", 'encoder.dtype="float32" and this run has "bfloat16"'),
        ("model.vision.ws_eps", "0.5", "encoder.config.nfnet.ws_eps=0.0001 and this run has 0.5"),
        ("weights", "", "encoder.weights="),
        ("dataset", "", "has no dataset 'told', only named"),
    ],
)
def test_what_does_not_match_is_refused(field, value, said, trainer):
    overrides = {"data.versions": "2"}
    plan = dependencies(trainer, overrides)
    features.check_dependencies("out", plan, dependencies(trainer, overrides))
    if field == "dataset":
        wanted = dependencies(trainer, overrides)
        del plan["datasets"]["told"]
    elif field == "weights":
        wanted = dependencies(trainer, overrides, weight=1.0)
    else:
        wanted = dependencies(trainer, overrides | {field: value})
    with pytest.raises(InputError) as error:
        features.check_dependencies("out", plan, wanted)
    assert said in str(error.value) and "config.data.features='out'" in str(error.value)


def test_the_seed_matters_to_drawn_versions_alone(trainer):
    plan = dependencies(trainer, {"data.versions": "0"})
    wanted = {"data.versions": "0", "seed": "7", "data.augment.flip": "0.1"}
    features.check_dependencies("out", plan, dependencies(trainer, wanted))


def fed(trainer, folder: pathlib.Path, workdir: pathlib.Path, **fields: str) -> Any:
    """The feeds of a run on one device that reads features."""
    plain = {f"data.augment.{name}": "0" for name in AUGMENTED}
    overrides = plain | {"data.features": str(folder)} | fields
    c = config.finish(config.load(f"{trainer.experiment}:flamingo", overrides))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = inputs.Run(c, Workdir(workdir), open_tokenizer("bytes"), mesh, {}, StopRequest())
    stage = run.assemble("flamingo")
    frozen = stage.initial(c.seed, set(flatten_paths(stage.frozen)))
    return inputs.feeds(run, stage, frozen)


@pytest.mark.slow
def test_data_that_changed_since(trainer, plain, tmp_path):
    other = trainer.beside(tmp_path / "other")
    fed(other, plain, tmp_path / "run").train(0)  # the same pictures in another place
    pictures = tmp_path / "other" / "pictures"
    captions = pictures / "captions.jsonl"
    row = {"image": "new.png", "text": "a new one", "split": "train"}
    grown = captions.read_text(encoding="utf-8") + 30 * (json.dumps(row) + "\n")
    captions.write_text(grown, encoding="utf-8")
    shutil.copy(pictures / "1.png", pictures / "new.png")
    with pytest.raises(InputError, match=r"no features of the medium 'new.png'.*train split"):
        list(fed(other, plain, tmp_path / "run").train(0))
    captions.write_text(grown.replace("new.png", "2.png"), encoding="utf-8")
    shutil.copy(pictures / "1.png", pictures / "2.png")
    with pytest.raises(InputError, match=r"'2.png' of dataset .* is not the one that was encoded"):
        fed(other, plain, tmp_path / "run")
    with pytest.raises(InputError, match="needs a frozen encoder"):
        fed(trainer, plain, tmp_path / "run", trainable="('^vision/', '^xattn/')")


@pytest.mark.slow
def test_bad_media(trainer, same, folder, one_device, tmp_path):
    """Reasons, replacements and augmented versions are those of features kept in memory."""
    broken = trainer.beside(tmp_path / "broken")
    (tmp_path / "broken" / "pictures" / "1.png").write_bytes(b"no picture")
    assert prepare(broken, tmp_path / "out", folder.path, "--config.data.versions=2") == 0
    disk, memory = (dataclasses.replace(folder, path=tmp_path / n) for n in ("disk", "memory"))
    for run, flag in ((disk, f"features={tmp_path / 'out'}"), (memory, "cache_features=True")):
        trained(broken, run.path, "--config.data.versions=2", f"--config.data.{flag}")
    same(disk, memory)
    assert disk.text("rejects") == memory.text("rejects") and disk.rows("rejects")


@pytest.mark.slow
def test_between_two_stages(trainer, three_stages, same, folder, tmp_path, capsys):
    """Train stops where features are missing, and goes on with those of its own encoder."""
    three_stages.copy(folder.path, upto=0)
    out = tmp_path / "features"
    flag = f"--config.data.features={out}"
    stopped = trainer.process(folder.path, flag, variant="stages")
    assert stopped.code == 2 and "give a folder that prepare features finished" in stopped.err
    flags = ["prepare", "features", f"--config={trainer.experiment}:stages", f"--out={out}"]
    argv = [sys.executable, "-m", "flamingo_jax", *flags, f"--workdir={folder.path}"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "prepared features" in done.stdout
    assert trainer.process(folder.path, flag, variant="stages").code == 0
    same(folder, three_stages)


@pytest.mark.slow
def test_a_folder_is_told_of(plain, capsys):
    assert cli.main(["inspect", str(plain)]) == 0
    told = capsys.readouterr().out
    assert "24 media, 24 versions of them, 24 frames of bfloat16[4, 256]" in told
    assert "dataset named: folder " in told and "5 shards" in told


@pytest.mark.slow
def test_the_verb_refuses_fresh_augmentation(trainer, tmp_path, capsys):
    assert prepare(trainer, tmp_path / "out", tmp_path / "run") == 2
    assert "is augmented anew at each visit" in capsys.readouterr().err


def test_what_the_verb_refuses(trainer, tmp_path, capsys):
    argv = ["prepare", "features", f"--out={tmp_path / 'out'}"]
    config_flag, run = f"--config={trainer.experiment}", f"--workdir={tmp_path / 'run'}"
    for flags, said in (
        ([config_flag], "needs --config=FILE and --workdir=DIR"),
        ([config_flag, run, "--stage=language"], "only the stage flamingo has features"),
        ([config_flag, run, "--path=a"], "--path belongs to documents"),
        ([f"{config_flag}:stages", run], "the stage language of"),
    ):
        assert cli.main([*argv, *flags]) == 2, flags
        assert said in capsys.readouterr().err
    assert cli.main(["prepare", "pairs", f"--out={tmp_path / 'out'}", run]) == 2
    assert "belong to prepare features" in capsys.readouterr().err
