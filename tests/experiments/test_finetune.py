"""Fine-tuning begins with the run it names, changes what it trains alone, and learns."""

import csv
import functools
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from PIL import Image

import flamingo_jax
from flamingo_jax import __main__ as cli
from flamingo_jax import assemble, config, inputs, logs, sharding, stages
from flamingo_jax.data.sources import open_source
from flamingo_jax.errors import InputError
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import flatten_paths
from flamingo_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
FINETUNE = ROOT / "experiments" / "finetune.py"
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}

BASE = """
from flamingo_jax import config

def get_config():
    c = config.base()
    c.name = "begun"
    c.model.update(dtype="float32", remat="none")
    c.model.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="smallest", image_size=32, dtype="float32", standardise=True)
    c.model.resampler.update(depth=1, latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.data.resize = "crop"
    c.train.update(steps=2, log_every=1, eval_batches=1)
    c.train.datasets.named = config.dataset(source="folder", path={path!r}, batch=4, length=40)
    c.train.optimizer.update(lr=3e-2, multipliers=(("gate_", 5.0),))
    c.alarm.step = 0
    return c
"""


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Sixteen squares and captions.csv; four of them are for validation."""
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text", "split"])
        for number in range(16):
            name, colour = list(COLOURS.items())[number % len(COLOURS)]
            pixels = np.full((32, 32, 3), 255, np.uint8)
            pixels[number : number + 16, 8:24] = colour
            Image.fromarray(pixels).save(folder / f"{number}.png")
            split = "train" if number % 4 else "validation"
            rows.writerow([f"{number}.png", f"{name}, number {number}", split])
    return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", make)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    return draw(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def begun(pictures, smallest, tmp_path_factory) -> pathlib.Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "base.py").write_text(BASE.format(path=str(pictures)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", make)
        flags = (f"--config={folder / 'base.py'}", f"--workdir={folder / 'run'}")
        assert cli.main(["train", *flags]) == 0
    return folder / "run"


def tune(run: pathlib.Path, pictures: pathlib.Path, workdir: pathlib.Path, **fields) -> int:
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    own = f"--config.train.datasets.own.path={pictures}"
    return cli.main(["train", f"--config={FINETUNE}:{run}", own, f"--workdir={workdir}", *flags])


def validations(workdir: pathlib.Path) -> list[float]:
    rows = logs.read_rows(workdir / "metrics.jsonl")
    return [row["own/loss"] for row in rows if row["kind"] == "validation"]


def params(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(flamingo_jax.load(folder).params)
    }


def test_begins_with_the_parameters_of_the_run(begun, pictures, tmp_path):
    """Trained or frozen: at the first step all are the run's, bit for bit."""
    own = {"train.datasets.own.path": str(pictures)}
    c = config.finish(config.load(f"{FINETUNE}:{begun}", own))
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    tokenizer = inputs.tokenizer(c, workdir)
    run = inputs.Run(c, workdir, tokenizer, sharding.make_mesh(), {}, StopRequest())
    stage = run.assemble("flamingo")
    trained, frozen, digest = stages.parameters(run, stage, None)
    found = flatten_paths(trained) | flatten_paths(frozen)
    wanted = flatten_paths(flamingo_jax.load(begun).params)
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted[path]), err_msg=path)
    assert [path.name for path in (begun / "frozen").iterdir()] == [digest]


@pytest.mark.slow
def test_begins_at_the_loss_of_the_checkpoint(begun, pictures, tmp_path):
    """Before the first step, and after one at a rate of 0: what the run scores on held-out rows."""
    fields = {"train__optimizer__lr": 0.0, "train__steps": 1, "train__eval_batches": 1}
    fields |= {"train__datasets__own__batch": 4, "data__cache_features": False}
    assert tune(begun, pictures, tmp_path / "run", **fields) == 0
    flamingo = flamingo_jax.load(begun)
    total = count = 0.0
    with (pictures / "captions.csv").open(encoding="utf-8") as file:
        held = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    for row in held:
        text = row["text"]
        total -= float(flamingo.score([[pictures / row["image"]]], [text])[0, 0])
        count += len(flamingo.tokenizer.encode(text)) + 1
    assert len(held) == 4
    np.testing.assert_allclose(validations(tmp_path / "run"), [total / count] * 2, rtol=1e-5)
    before, after = params(begun), params(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all((before[path] == after[path]).all() for path in before)


@pytest.mark.slow
def test_learns_and_can_be_used(begun, pictures, tmp_path):
    fields = {"train__steps": 40, "train__eval_every": 10, "train__eval_batches": 1}
    assert tune(begun, pictures, tmp_path / "run", **fields) == 0
    losses = validations(tmp_path / "run")
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.1, losses
    frozen = [
        [path.name for path in (run / "frozen").iterdir()] for run in (begun, tmp_path / "run")
    ]
    assert frozen[0] == frozen[1]  # the digest of what is frozen
    before, after = params(begun), params(tmp_path / "run")
    changed = {path.split("'")[1] for path in before if (before[path] != after[path]).any()}
    assert changed == {"resampler", "xattn", "project", "embed"}
    flamingo = flamingo_jax.load(tmp_path / "run")
    [said] = flamingo.generate([[pictures / "0.png"]], max_new_tokens=4)
    assert isinstance(said, str)
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_what_is_taken_from_the_run(begun):
    """Model, tokenizer and how pictures are shown are the run's, whatever is named of it."""
    run = config.from_json((begun / "config.json").read_text(encoding="utf-8"))
    step = begun / "checkpoints" / "flamingo" / "2"
    for named in (begun, step.parent, step):
        c = config.finish(config.load(f"{FINETUNE}:{named}"))
        assert c.model.to_dict() == run.model.to_dict()
        assert (c.data.resize, c.init.run) == ("crop", str(named))
        assert pathlib.Path(c.tokenizer.path) == begun / "tokenizer"
        assert c.train.optimizer.lr == pytest.approx(3e-3)
        assert c.train.optimizer.multipliers == (("gate_", 5.0),)
        assert c.trainable == config.base().trainable


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("", "no model to begin from"),
        ("{tmp}/absent", "there is no folder"),
        ("{tmp}/other", "holds no config.json"),
        ("{tmp}/hub", "no step of a Flamingo stage"),
        ("{tmp}/broken", "is not that of a run"),
        ("{begun}/report", "no step of a Flamingo stage|no config.json"),
    ],
)
def test_what_cannot_be_begun_from(run, said, begun, tmp_path):
    (tmp_path / "other").mkdir()
    for name, text in (("hub", '{"model_type": "opt"}'), ("broken", "[]")):
        (tmp_path / name / "checkpoints" / "flamingo" / "1").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "hub" / "checkpoints" / "flamingo" / "1").rmdir()
    with pytest.raises(InputError, match=said) as caught:
        config.load(f"{FINETUNE}:{run.format(tmp=tmp_path, begun=begun)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "absent"}, "there is no folder 'absent'"),
        ({"path": ""}, "there is no folder ''"),
        ({"files": "elsewhere"}, "has no use for files"),
        ({"options.strip": True}, "has no use for options"),
    ],
)
def test_wrong_folders_are_one_line(change, said, begun, pictures, tmp_path, capsys):
    flags = [f"--config.train.datasets.own.{name}={value}" for name, value in change.items()]
    own = f"--config.train.datasets.own.path={pictures}"
    assert (
        cli.main(
            ["train", f"--config={FINETUNE}:{begun}", own, *flags, f"--workdir={tmp_path / 'run'}"]
        )
        == 2
    )
    [line] = [row for row in capsys.readouterr().err.splitlines() if "GFLOP/s" not in row]
    assert said in line


def test_shared_captions(shared, tmp_path):
    """A folder made of real captions: the default holds some pictures out, with all their texts."""
    c = runpy.run_path(str(FINETUNE))["tuned"](config.base())
    told = json.loads((shared / "data" / "eval" / "coco" / "captions_train.json").read_text())
    names = {image["id"]: image["file_name"] for image in told["images"]}
    with (tmp_path / "captions.jsonl").open("w", encoding="utf-8") as file:
        for one in told["annotations"]:
            row = {"image": names[one["image_id"]], "text": one["caption"]}
            file.write(json.dumps(row) + "\n")
    for name in names.values():
        (tmp_path / name).symlink_to(shared / "data" / "eval" / "images" / "train" / name)
    c.train.datasets.own.path = str(tmp_path)
    spec = assemble.source_specs(c, "flamingo")["own"]
    train, held = (open_source(spec, split) for split in ("train", "validation"))
    assert len(train) + len(held) == len(told["annotations"])
    keys = [{source[i].key for i in range(len(source))} for source in (train, held)]
    assert keys[1] and not keys[0] & keys[1]
