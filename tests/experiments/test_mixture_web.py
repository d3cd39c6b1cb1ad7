"""The mixture of public sets: the paper's weights and rows, sets chosen by name, real shards."""

import dataclasses
import functools
import pathlib

import jax
import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax import assemble, config, sharding
from flamingo_jax.data import sources
from flamingo_jax.data.corpora import mmc4
from flamingo_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIXTURE = ROOT / "experiments" / "mixture_web.py"
PAPER = ROOT / "experiments" / "flamingo_3b.py"
ROLE = {"obelics": "m3w", "mmc4": "m3w", "laion": "align", "coyo": "align", "datacomp": "align"}
ROLES = "tiny,obelics,laion,recap,webvid"  # each costs as much to compile as the other
ROLE |= {"recap": "ltip", "webvid": "vtp"}


def load(variant: str, overrides: dict[str, str] | None = None):
    return config.finish(config.load(f"{MIXTURE}:{variant}", overrides))


def paths(shared: pathlib.Path) -> dict[str, str]:
    """Real shards for every set that is used by default; the rules that suit small pictures."""
    data = shared / "data"
    found = {
        "obelics.path": f"{data}/interleaved/obelics/train-*.parquet",
        "obelics.files": f"{data}/interleaved",
        "mmc4.path": f"{data}/interleaved/mmc4-webdataset/train-*.tar",
        "mmc4.validation_path": f"{data}/interleaved/mmc4-webdataset/val-*.tar",
        "mmc4.options.min_bytes": "0",
        "mmc4.options.min_similarity": "-1.0",
        "mmc4.options.drop_single": "0.0",
        "laion.path": f"{data}/pairs/align/*.tar",
        "recap.path": f"{data}/pairs/ltip/*.tar",
        "webvid.path": f"{data}/video/*.tar",
    }
    return {f"train.datasets.{field}": value for field, value in found.items()}


@pytest.mark.parametrize(
    "variant",
    ["3b", "3b,obelics,laion,recap,webvid", "obelics,mmc4,laion,coyo,datacomp,recap,webvid"],
)
def test_sets_fill_the_papers_roles(variant):
    """Sets of one role have its λ and no more rows between them; all else is the role's."""
    c, paper = load(variant), config.finish(config.load(str(PAPER)))
    for role, wanted in paper.train.datasets.items():
        rows = {name: row for name, row in c.train.datasets.items() if ROLE[name] == role}
        assert sum(row.weight for row in rows.values()) == pytest.approx(wanted.weight)
        total = sum(row.batch for row in rows.values())
        assert wanted.batch * 0.7 < total <= wanted.batch
        assert all(row.batch % 64 == 0 for row in rows.values())
        for row in rows.values():
            for field in ("layout", "length", "images", "frames", "p_next", "leading_space"):
                assert row[field] == wanted[field], (role, field)
    assert c.model == paper.model and c.train.optimizer == paper.train.optimizer
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = assemble.stage(c, "flamingo", assemble.Vocabulary(32_000, 1), mesh)
    assert set(stage.datasets) == set(c.train.datasets)


def test_sets_that_are_not_named_are_left_out():
    c = load("3b,coyo,webvid")
    assert set(c.train.datasets) == {"coyo", "webvid"}
    assert c.train.datasets.coyo.weight == 0.2


def test_rules_are_options():
    """Every option is one of its corpus; MMC4's are OpenFlamingo's with five images."""
    c = load("3b", {"train.datasets.laion.options.min_characters": "5"})
    preset = dataclasses.asdict(mmc4.OPENFLAMINGO) | {"max_images": 5}
    rules = c.train.datasets.mmc4.options.to_dict()
    assert rules and rules.items() <= preset.items()
    assert {k: v for k, v in preset.items() if v != getattr(mmc4.Mmc4Options(), k)} == rules
    assert c.train.datasets.laion.options.min_characters == 5


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("3b,lion", "'lion' is no set; give one of 3b, small, tiny"),
        ("small,obelics", "from pairs; name one"),
    ],
)
def test_refused_variants(variant, said):
    with pytest.raises(InputError, match=said):
        load(variant)


def test_a_path_is_said_once():
    """The stages of `small` before Flamingo's and its tokenizer read the same files."""
    flags = {"train.datasets.obelics.path": "a", "train.datasets.obelics.files": "b"}
    c = load("small", flags | {"train.datasets.laion.path": "c"})
    text, pairs = c.pretrain.language.datasets.text, c.pretrain.contrastive.datasets.pairs
    assert (text.source, text.path, text.files) == ("obelics", "a", "b")
    assert (pairs.source, pairs.path, c.tokenizer.source) == ("pairs", "c", "pairs")
    assert c.tokenizer.path == "c"
    again = config.from_json(config.to_json(c))
    assert again.pretrain.language.datasets.text.path == "a"


def test_a_set_without_a_path_is_refused(tmp_path, capsys):
    flags = ["--config.tokenizer.kind=bytes", "--config.stages=('flamingo',)"]
    command = ["train", f"--config={MIXTURE}:tiny,laion", f"--workdir={tmp_path / 'run'}", *flags]
    assert cli.main(command) == 2
    [line] = [row for row in capsys.readouterr().err.splitlines() if "GFLOP/s" not in row]
    assert "'' is no path; give a file, a folder or a pattern of shards" in line


def test_every_stage_of_small_reads_real_shards(shared):
    """Splits are there, texts without pictures for the tokenizer, and documents of each set."""
    c = load("tiny", paths(shared))
    for stage in c.stages:
        for name, spec in assemble.source_specs(c, stage).items():
            for split in sources.SPLITS:
                assert len(sources.open_source(spec, split, c.seed)) > 0, (stage, name, split)
    spec = sources.SourceSpec(c.tokenizer.source, c.tokenizer.path)
    assert isinstance(sources.open_source(spec)[0].items[-1], str)


@pytest.mark.slow
def test_tiny_rehearsed_on_real_shards(shared, tmp_path, monkeypatch, capsys):
    """All four roles at once: a batch, a step, a save and a restore."""
    make = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", make)
    fields = {k: v for k, v in paths(shared).items() if ".mmc4." not in k}
    fields["stages"] = "('flamingo',)"
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["train", f"--config={MIXTURE}:{ROLES}", f"--workdir={tmp_path}", "--check", *flags]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert "check passed" in capsys.readouterr().out
