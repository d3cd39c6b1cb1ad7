"""Model FLOPs from shapes against the traced step; bytes of the state against the compiler."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from flamingo_jax import assemble, config, sharding
from flamingo_jax.model import counts, nfnet
from flamingo_jax.planning import analytic, flops
from tests.small import ENCODER, FEATURES, SIDE, VOCABULARY, described, make_mesh

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"
pytestmark = pytest.mark.usefixtures("smallest")


def small(more: Any = None, **fields: Any) -> Any:
    """All of Flamingo, as small as it can be split, with a short last group; `more` datasets."""
    c = described()
    c.model.dtype = c.model.vision.dtype = "bfloat16"
    c.model.language.blocks, c.model.resampler.depth, c.model.xattn.every = 3, 2, 2
    c.train.datasets.clips = config.dataset(layout="clip", batch=8, length=10, frames=3)
    c.train.datasets.update(more or {})
    c.model.loss_chunk = 5  # logits in two chunks: the same work
    c.pretrain.language.steps = 5
    c.pretrain.language.datasets.text = config.dataset(layout="text", batch=8, length=10)
    for field, value in fields.items():
        config.override(c, field.replace("__", "."), str(value))
    return config.finish(c)


def traced(
    c: Any,
    name: str,
    vocabulary: assemble.Vocabulary,
    media: tuple[int, int] | None = None,
) -> tuple[flops.Flops, analytic.Work]:
    """FLOPs of the real training step's jaxpr, and from shapes alone."""
    stage = assemble.stage(c, name, vocabulary, make_mesh())
    step = stage.update.trace(stage.state, stage.frozen, stage.abstract_batches(media))
    found = flops.count(step.jaxpr)
    return found, analytic.work(c, stage, vocabulary, cached=media is not None)


def agree(found: flops.Flops, work: analytic.Work) -> None:
    attention = sum(part.total for part in work.attention.values())
    assert found.by_kind["batched product"] == attention
    assert found.total == work.total == work.without_attention + attention
    assert found.again == 0


TRAINED = ("^resampler/", "^xattn/", "^project/", "^embed/new$")


@pytest.mark.parametrize(
    "trainable",
    [
        None,
        pytest.param((*TRAINED, "^vision/"), marks=pytest.mark.slow),
        pytest.param(("",), marks=pytest.mark.slow),
    ],
    ids=["as the paper", "and the encoder", "everything"],
)
def test_a_step_costs_what_its_shapes_say(trainable):
    fields = {} if trainable is None else {"trainable": trainable}
    agree(*traced(small(**fields), "flamingo", VOCABULARY))


def test_several_datasets_share_what_rows_share():
    rows = {
        "pages": config.dataset(layout="page", batch=4, length=8, images=2),
        "lines": config.dataset(layout="text", batch=2, length=5),
    }
    agree(*traced(small(rows), "flamingo", VOCABULARY))


def test_a_vit_costs_what_its_shapes_say():
    """Frozen, with attention of its own."""
    c: config.Config = config.ConfigDict(small()).unlock()
    c.model.vision.kind = "vit"
    c.model.vision.vit.update(patch=8, width=8, blocks=2, heads=2, hidden=16)
    found, work = traced(config.finish(c), "flamingo", VOCABULARY)
    agree(found, work)
    assert work.attention[counts.VISION].forward > 0 == work.attention[counts.VISION].backward
    assert work.weights[counts.VISION].backward == 0


def test_given_features_cost_no_encoder():
    c = small()
    found, work = traced(c, "flamingo", VOCABULARY, media=FEATURES)
    agree(found, work)
    assert work.weights[counts.VISION].total == 0
    assert (work.tokens, work.images) == (8 * 10, 8 * 3)
    stage = assemble.stage(c, "flamingo", VOCABULARY, make_mesh())
    seen = analytic.work(c, stage, VOCABULARY)
    encoder = seen.weights[counts.VISION]
    assert encoder.forward == 8 * 3 * nfnet.count_flops(ENCODER, SIDE) and encoder.backward == 0
    assert seen.total - work.total == encoder.forward


def test_what_is_computed_again_is_no_model_flops():
    """Of LLaMA's kind, in two parts, recomputed: what the second time costs is told apart."""
    fields = {"positions": "rotary", "gated": True, "kv_heads": 1, "tied": False}
    named = {f"model__language__{name}": value for name, value in fields.items()}
    c = small(model__remat="full", train__micro_batches=2, **named)
    found, work = traced(c, "flamingo", VOCABULARY)
    assert found.total - found.again == work.total
    assert found.again > 0.15 * work.total


def load(name: str, variant: str, **fields: Any) -> Any:
    c = config.load(f"{EXPERIMENTS / name}.py:{variant}")
    for field, value in fields.items():
        config.override(c, field.replace("__", "."), str(value))
    return config.finish(c)


def test_a_language_stage():
    c = load("openmoji", "tiny", model__remat="none")
    agree(*traced(c, "language", assemble.Vocabulary(300, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "stage"),
    [
        ("openmoji", "tiny", "contrastive"),
        ("openmoji", "tiny", "flamingo"),
        ("openmoji", "full", "contrastive"),
        ("openmoji", "full", "flamingo"),
        ("flamingo_3b", "tiny", "contrastive"),
        ("flamingo_80b", "tiny", "flamingo"),
    ],
)
def test_stages_of_experiments(name, variant, stage):
    c = load(name, variant, model__remat="none")
    agree(*traced(c, stage, assemble.Vocabulary(300, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flamingo_3b", "flamingo_9b", "flamingo_80b"])
def test_the_papers_sizes(name):
    """The whole step at full size, four datasets and pixels: traced, no array is made.

    In one part; each of two encodes the distances of the frozen model's attention.
    """
    vocabulary = assemble.Vocabulary(32_000, 1)
    whole = load(name, "full", model__remat="none", train__micro_batches=1)
    found, work = traced(whole, "flamingo", vocabulary)
    agree(found, work)
    halves = load(name, "full", model__remat="none", train__micro_batches=2)
    again, same = traced(halves, "flamingo", vocabulary)
    language = assemble.flamingo_config(whole, vocabulary).language
    longest = max(row.length for row in whole.train.datasets.values())
    assert same == work
    assert again.total - work.total == counts.distances(language, longest, trained=False).total
    # 4·P a token for the frozen language model, but its distance encodings and the new token's row.
    c = language
    weights = c.blocks * c.width * (4 * c.heads * c.head_dim + 2 * c.hidden) + c.width * c.vocab
    total = work.weights[counts.LANGUAGE].total
    assert 4 * weights * work.tokens < total < 1.001 * 4 * weights * work.tokens


def split(name: str) -> tuple[assemble.Stage, dict[str, int]]:
    """A stage on 4 x 2 devices, and the bytes of its state on each."""
    stage = assemble.stage(small(), name, VOCABULARY, sharding.make_mesh(1, 4, 2))
    return stage, analytic.state_bytes(stage)


def test_bytes_are_those_of_the_arrays():
    """Each device holds as many once the arrays are made."""
    stage, found = split("flamingo")
    tree = {"state": stage.state, "frozen": stage.frozen, "batch": stage.abstract_batches()}
    arrays = jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding), tree)
    for device in range(8):
        shards = [leaf.addressable_shards[device].data for leaf in jax.tree.leaves(arrays)]
        assert sum(shard.nbytes for shard in shards) == sum(found.values())
    assert found["moments"] == 2 * found["trainable"]
    alone = assemble.stage(small(), "flamingo", VOCABULARY, make_mesh())
    whole = analytic.state_bytes(alone)
    assert whole["trainable"] == 4 * sum(a.size for a in jax.tree.leaves(stage.trainable))
    assert whole["batch"] == 4 * found["batch"]  # rows are split over fsdp alone
    assert whole["trainable"] / 8 <= found["trainable"] < whole["trainable"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language", "flamingo"])
def test_bytes_are_the_compilers(name):
    """The compiled step takes as many bytes of arguments; what it never reads it does not take."""
    stage, found = split(name)
    batches = stage.abstract_batches()
    step = stage.update.lower(stage.state, stage.frozen, batches).compile()
    unread = [batch.media_of_token for batch in batches.values()] if name == "language" else []
    expected = sum(found.values()) - analytic.device_bytes(unread)
    assert step.memory_analysis().argument_size_in_bytes == expected
    assert bool(found["frozen"]) == (name == "flamingo")
