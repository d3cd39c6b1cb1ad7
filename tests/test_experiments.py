"""The published sizes count what the paper prints; every experiment assembles."""

import decimal
import json
import pathlib
import runpy

import jax
import pytest
from flax import nnx

from flamingo_jax import assemble, config, sharding
from flamingo_jax.model import counts
from flamingo_jax.model.flamingo import Flamingo
from flamingo_jax.model.segments import xattn_layers

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
VOCABULARY = assemble.Vocabulary(32_000, 1)  # <EOC> is new
# finetune.py begins from a run: tests/experiments has its tests.
FILES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "finetune")
SIZES = ("flamingo_3b", "flamingo_9b", "flamingo_80b")

# Flamingo v2 Table 5 as printed: frozen LM, frozen vision, GATED XATTN-DENSE, resampler.
TABLE_5 = {
    "flamingo_3b": ("1.4B", "435M", "1.2B", "194M"),
    "flamingo_9b": ("7.1B", "435M", "1.6B", "194M"),
    "flamingo_80b": ("70B", "435M", "10B", "194M"),
}


def load(name: str, variant: str):
    return config.finish(config.load(f"{EXPERIMENTS / name}.py:{variant}"))


def count(c) -> dict[str, int]:
    """Parameters by part, from shapes alone, for a tokenizer of 32,000 tokens with <EOC> added."""
    shape = assemble.flamingo_config(c, VOCABULARY)
    model = nnx.eval_shape(lambda: Flamingo(shape, rngs=nnx.Rngs(0)))
    return counts.parameters(nnx.to_pure_dict(nnx.state(model)))


def printed(number: int, like: str) -> str:
    """`number` in the unit of `like` ("1.4B", "435M"), rounded to as many decimals."""
    unit = {"B": 10**9, "M": 10**6}[like[-1]]
    digits = decimal.Decimal(like[:-1])
    return f"{(decimal.Decimal(number) / unit).quantize(digits)}{like[-1]}"


@pytest.mark.parametrize("name", SIZES)
def test_parts_count_what_table_5_prints(name):
    found = count(load(name, "full"))
    order = (counts.LANGUAGE, counts.VISION, counts.GATED, counts.RESAMPLER)
    expected = TABLE_5[name]
    rounded = tuple(printed(found[p], like) for p, like in zip(order, expected, strict=True))
    assert rounded == expected
    assert set(found) == {*order, counts.NEW}


def test_what_is_printed_and_not_counted():
    """Table 4's 40 blocks with 10 gated layers, and heads of 96: not Table 5's numbers."""
    c = load("flamingo_9b", "printed")
    shape = assemble.flamingo_config(c, VOCABULARY)
    assert (shape.language.blocks, xattn_layers(shape.segments)) == (40, 10)
    found = count(c)
    assert printed(found[counts.LANGUAGE], "7.1B") == "8.9B"
    assert printed(found[counts.GATED], "1.6B") == "2.0B"
    assert printed(count(load("flamingo_3b", "head96"))[counts.RESAMPLER], "194M") == "175M"


@pytest.mark.parametrize(
    ("name", "layers"), [("flamingo_3b", 24), ("flamingo_9b", 8), ("flamingo_80b", 12)]
)
def test_gated_layers_are_as_many_as_counted(name, layers):
    c = load(name, "full")
    shape = assemble.flamingo_config(c, VOCABULARY)
    assert xattn_layers(shape.segments) == layers
    assert shape.segments[0].has_xattn


@pytest.mark.parametrize("name", SIZES)
def test_training_is_the_papers(name):
    c = load(name, "full")
    rows = c.train.datasets
    assert {key: row.weight for key, row in rows.items()} == {
        "m3w": 1.0,
        "align": 0.2,
        "ltip": 0.2,
        "vtp": 0.03,
    }
    times = 6 if name == "flamingo_80b" else 1
    batches = [times * batch for batch in (256, 512, 512, 64)]  # those of the ablations
    assert [rows[key].batch for key in ("m3w", "align", "ltip", "vtp")] == batches
    m3w, vtp = rows["m3w"], rows["vtp"]
    assert (m3w.length, m3w.images, m3w.frames, m3w.p_next) == (256, 5, 1, 0.5)
    assert (vtp.images, vtp.frames, vtp.leading_space) == (1, 8, 0.5)
    spec = assemble.optimizer_spec(c, "flamingo")
    assert (spec.lr, spec.weight_decay, spec.clip, spec.warmup) == (1e-4, 0.1, 1.0, 5_000)
    assert (spec.schedule, c.train.steps) == ("constant", 500_000)
    assert (c.model.vision.variant, c.model.vision.image_size) == ("F6", 320)


@pytest.mark.parametrize("name", FILES)
def test_tiny_assembles_every_stage(name):
    """Shapes, shardings, patterns and batches of each stage fit; nothing is compiled."""
    c = load(name, "tiny")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    for stage in c.stages:
        built = assemble.stage(c, stage, assemble.Vocabulary(300, 2), mesh)
        assert set(built.datasets) == set(config.stage_settings(c, stage).datasets)
        assert built.steps == config.stage_settings(c, stage).steps


def test_a_tiny_step_gives_the_state_back():
    """The whole step of a model with a short last group, traced with four datasets."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    c = load("flamingo_80b", "tiny")
    stage = assemble.stage(c, "flamingo", assemble.Vocabulary(300, 2), mesh)
    assert {part.blocks for part in assemble.flamingo_config(c, VOCABULARY).segments} == {7, 3}
    state, metrics = stage.update.eval_shape(stage.state, stage.frozen, stage.abstract_batches())
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), (state, stage.state))
    assert shapes[0] == shapes[1]
    assert {f"{name}/loss" for name in ("m3w", "align", "ltip", "vtp")} <= metrics.keys()


@pytest.mark.slow
def test_the_benchmark_of_updates(capsys):
    path = EXPERIMENTS / "benchmarks" / "update.py"
    main = runpy.run_path(str(path))["main"]
    main([f"--config={EXPERIMENTS / 'openmoji.py'}:tiny", "--stage=language", "--updates=3"])
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["fastest"] <= told["seconds"] <= told["slowest"]
    assert told["tokens_per_second"] > 0
