"""The tables: every parameter has its letters; one device and eight give the same training."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from flamingo_jax import assemble, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.model.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.model.nfnet import VARIANTS
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.text import TextConfig
from flamingo_jax.model.vision import VisionConfig
from flamingo_jax.model.vit import ViTConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import flatten_paths, merge_trees
from flamingo_jax.train.step import TrainState
from tests.small import ONE, VOCABULARY, begin, example, make_mesh, pages

pytestmark = pytest.mark.usefixtures("smallest")
MESHES = {
    "fsdp 8": {"replica": 1, "fsdp": 8, "tensor": 1},
    "fsdp 4 x tensor 2": {"replica": 1, "fsdp": 4, "tensor": 2},
    "replica 2 x fsdp 2 x tensor 2": {"replica": 2, "fsdp": 2, "tensor": 2},
}


def decoder(**fields: Any) -> DecoderConfig:
    shape: dict[str, Any] = {"vocab": 32, "width": 16, "blocks": 2, "heads": 2, "head_dim": 8}
    shape |= {"hidden": 32, "new_tokens": 2} | fields
    return DecoderConfig(**shape)


def flamingo(language: DecoderConfig, variant: str = "tiny", **fields: Any) -> FlamingoConfig:
    vision = VisionConfig(VARIANTS[variant], standardise=True)
    width = vision.width
    return FlamingoConfig(
        language,
        vision,
        ResamplerConfig(in_width=width, max_media=3),
        XattnConfig(width=16, media_width=1536 if fields.get("project") is False else 16),
        **fields,
    )


VIT = ViTConfig(image_size=16, patch=8, width=16, blocks=2, heads=2, hidden=32)
LLAMA: dict[str, Any] = {"positions": "rotary", "gated": True, "kv_heads": 1, "tied": False}
MODELS = {
    "language": FlamingoConfig(decoder(new_tokens=0)),
    "language, untied": FlamingoConfig(decoder(new_tokens=0, norm="layer", **LLAMA)),
    "flamingo": flamingo(decoder()),
    "flamingo, untied": flamingo(decoder(**LLAMA)),
    "flamingo, unprojected": flamingo(decoder(), project=False),
    **{f"flamingo on {name}": flamingo(decoder(), name) for name in VARIANTS},
    "flamingo on a ViT": FlamingoConfig(
        decoder(), VisionConfig(vit=VIT), ResamplerConfig(in_width=16), XattnConfig(16, 16)
    ),
    "contrastive": ContrastiveConfig(
        VisionConfig(VARIANTS["F0"]), TextConfig(32, 16, 2, 2, 32, 8), width=16
    ),
    "classifier": ContrastiveConfig(
        VisionConfig(dataclasses.replace(VARIANTS["F0"], classes=10)),
        TextConfig(32, 16, 2, 2, 32, 8),
        width=16,
    ),
}


def shapes_of(cfg: Any) -> dict[str, Any]:
    kind: Any = Contrastive if isinstance(cfg, ContrastiveConfig) else Flamingo
    model = nnx.eval_shape(lambda: kind(cfg, rngs=nnx.Rngs(0)))
    return flatten_paths(nnx.to_pure_dict(nnx.state(model)))


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_has_its_letters(name):
    """A weight of rank ≥ 2 matches a row; only vectors (stacked or not) go without letters."""
    for path, leaf in shapes_of(MODELS[name]).items():
        found = sharding.letters(path, len(leaf.shape))
        assert len(found) == len(leaf.shape)
        if set(found) <= {"."}:
            assert path.rsplit("/", 1)[-1] in VECTORS, path


VECTORS = {
    *("bias", "scale", "gain", "skip_gain", "mean", "deviation", "logit_scale"),
    *("gate_attention", "gate_dense", "class_token"),
}


@pytest.mark.parametrize("name", ["flamingo", "contrastive", "classifier"])
def test_the_vision_encoder_is_not_split(name):
    """As in the paper (Flamingo v1 §4.1.4), whose NFNet is on every device whole."""
    mesh = sharding.make_mesh(2, 2, 2)
    for path, leaf in shapes_of(MODELS[name]).items():
        if path.startswith("vision/"):
            assert sharding.spec(path, leaf.shape, mesh) == P(), path


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("embed/table", (32, 16), P("tensor", "fsdp")),
        ("vision/vit/patches/kernel", (192, 16), P(None, "fsdp")),
        ("vision/vit/positions", (5, 16), P(None, "fsdp")),
        ("vision/vit/blocks/query/kernel", (2, 16, 16), P(None, "fsdp", "tensor")),
        ("vision/vit/blocks/dense/down/kernel", (2, 32, 16), P(None, "tensor", "fsdp")),
        ("embed/new", (2, 16), P(None, "fsdp")),
        ("head/kernel", (16, 32), P("fsdp", "tensor")),
        ("language/blocks/query/kernel", (4, 16, 24), P(None, "fsdp", "tensor")),
        ("language/blocks/out/kernel", (4, 24, 16), P(None, "tensor", "fsdp")),
        ("language/blocks/dense/down/kernel", (4, 32, 16), P(None, "tensor", "fsdp")),
        ("language/blocks/content_bias", (4, 2, 8), P(None, "tensor")),
        ("language/blocks/norm_dense/scale", (4, 16), P()),
        ("xattn/gate_attention", (4,), P()),
        ("resampler/layers/key/kernel", (1, 16, 24), P(None, "fsdp", "tensor")),
        ("resampler/project/kernel", (24, 16), P(None, "fsdp")),
        # What an axis does not divide is left whole, and only that.
        ("embed/table", (33, 16), P(None, "fsdp")),
        ("embed/table", (32, 15), P("tensor")),
        ("language/blocks/query/kernel", (4, 15, 25), P()),
    ],
)
def test_specs(path, shape, expected):
    assert sharding.spec(path, shape, sharding.make_mesh(2, 2, 2)) == expected


def test_axes_of_size_one_are_not_named():
    mesh = sharding.make_mesh(1, 8, 1)
    assert sharding.spec("embed/table", (32, 16), mesh) == P(None, "fsdp")


def test_a_weight_without_a_row_is_refused():
    with pytest.raises(ValueError, match="no row"):
        sharding.letters("language/blocks/unheard/weight", 3)


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert dict(sharding.make_mesh(-1, 2, 2).shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
    for sizes in ((1, 3, 1), (-1, -1, 1), (1, -1, 3), (2, -1, 16)):
        with pytest.raises(InputError, match=r"config\.mesh"):
            sharding.make_mesh(*sizes)


def test_rows_of_this_process():
    mesh = sharding.make_mesh(2, 2, 2)
    assert sharding.local_rows(8, mesh) == (0, 8)
    placed = sharding.to_devices(np.arange(16).reshape(8, 2), mesh)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, np.arange(16).reshape(8, 2))


B = 8


def make_stage(sizes: dict[str, int], frozen: str = "sharded") -> assemble.Stage:
    c = pages(B, frozen=frozen)
    return assemble.stage(c, "flamingo", VOCABULARY, make_mesh(**sizes))


@pytest.fixture(scope="module")
def start() -> dict[str, np.ndarray]:
    """Initial values of all parameters, made once."""
    stage = make_stage(ONE)
    values = flatten_paths(stage.initial(0, set(flatten_paths(stage.abstract))))
    return {path: np.asarray(value) for path, value in values.items()}


def train(
    stage: assemble.Stage, start: dict[str, np.ndarray]
) -> tuple[TrainState, Any, list[float]]:
    """State, frozen parameters, and the losses of five steps."""
    state, frozen = begin(stage, start)
    losses = []
    for seed in range(5):
        batches = {"pages": sharding.to_devices(example(B, seed), stage.mesh)}
        state, metrics = stage.update(state, frozen, batches)
        losses.append(float(metrics["loss"]))
    assert stage.update._cache_size() == 1
    return state, frozen, losses


@pytest.fixture(scope="module")
def alone(start) -> list[float]:
    """The losses on one device."""
    return train(make_stage(ONE), start)[2]


EACH = "replica 2 x fsdp 2 x tensor 2"  # every axis of more than one device


@pytest.mark.parametrize(
    "name", [n if n == EACH else pytest.param(n, marks=pytest.mark.slow) for n in MESHES]
)
def test_eight_devices_train_as_one(name, start, alone):
    stage = make_stage(MESHES[name])
    state, frozen, losses = train(stage, start)
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-5)
    assert len(set(losses)) == 5
    _shardings_are_the_tables(stage, state, frozen)
    if all(size > 1 for size in stage.mesh.shape.values()):
        _logits_are_split(stage, state, frozen)


@pytest.mark.slow
def test_replicated_frozen_weights_train_alike(start, alone):
    """None is split over fsdp, nor gathered; what is trained is split as before."""
    stage, other = (make_stage(MESHES[EACH], frozen) for frozen in ("replicated", "sharded"))
    _, frozen, losses = train(stage, start)
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-5)
    assert stage.state_shardings == other.state_shardings
    for path, leaf in flatten_paths(frozen).items():
        expected = sharding.spec(path, leaf.shape, stage.mesh, stage.heads, ("tensor",))
        assert leaf.sharding.spec == expected and "fsdp" not in expected, path
    drawn = flatten_paths(stage.initial(0, set(flatten_paths(frozen))))
    for path, leaf in flatten_paths(frozen).items():
        assert drawn[path].sharding == leaf.sharding
        np.testing.assert_array_equal(drawn[path], leaf)
    gathered, before = (_gathers(one) for one in (stage, other))
    assert gathered < before


def _gathers(stage: assemble.Stage) -> int:
    """How many all-gathers a step has."""
    batches = {"pages": sharding.to_devices(example(B, 0), stage.mesh)}
    lowered = stage.update.lower(stage.state, stage.frozen, batches)
    return len(re.findall(r" all-gather(?:-start)?\(", lowered.compile().as_text()))


def _shardings_are_the_tables(stage: assemble.Stage, state: TrainState, frozen: Any) -> None:
    """Parameters, both moments of each, and frozen parameters lie as the table says."""
    mesh = stage.mesh
    moments = [part for part in jax.tree.leaves(state.opt, is_leaf=_is_tree) if _is_tree(part)]
    assert len(moments) == 2
    split = 0
    for tree in (state.params, frozen, *moments):
        for path, leaf in flatten_paths(tree).items():
            expected = sharding.spec(path, leaf.shape, mesh)
            assert leaf.sharding.spec == expected, path
            split += expected != P()
    assert split > 20
    kernel = state.params["xattn"]["query"]["kernel"]  # [n, D, N·H]
    shard = kernel.addressable_shards[0].data.shape
    assert shard == (2, 16 // mesh.shape["fsdp"], 16 // mesh.shape["tensor"])


def _is_tree(part: Any) -> bool:
    return isinstance(part, dict) and "xattn" in part


def _logits_are_split(stage: assemble.Stage, state: TrainState, frozen: Any) -> None:
    """Rows of the logits stay where the rows of the batch are."""

    @jax.jit
    def forward(params, frozen, batch):
        return nnx.merge(stage.graph, merge_trees(params, frozen))(batch)

    logits = forward(state.params, frozen, sharding.to_devices(example(B, 0), stage.mesh))
    rows = stage.mesh.shape["replica"] * stage.mesh.shape["fsdp"]
    assert {shard.data.shape[0] for shard in logits.addressable_shards} == {B // rows}


def test_initial_values_do_not_depend_on_the_mesh():
    one, many = (
        make_stage(sizes).initial(3, {"embed/table", "xattn/query/kernel"})
        for sizes in (
            {"replica": 1, "fsdp": 1, "tensor": 1},
            MESHES["replica 2 x fsdp 2 x tensor 2"],
        )
    )
    for path, leaf in flatten_paths(one).items():
        np.testing.assert_array_equal(leaf, flatten_paths(many)[path], err_msg=path)


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(InputError) as error:
        assemble.stage(pages(6), "flamingo", VOCABULARY, sharding.make_mesh())
    message = str(error.value)
    assert "'pages'" in message and "6" in message and "8" in message and "\n" not in message
