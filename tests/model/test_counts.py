"""Counted FLOPs and parameters against the traced program itself."""

import dataclasses
import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import nnx

from flamingo_jax.model import counts
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.model.nfnet import VARIANTS
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.vision import VisionConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import Batch, flatten_paths, merge_trees, unflatten_paths

ROWS, LENGTH, MEDIA, FRAMES, SIDE = 2, 9, 3, 2, 64


def language(**fields: Any) -> DecoderConfig:
    shape: dict[str, Any] = {"vocab": 37, "width": 24, "blocks": 3, "heads": 4, "head_dim": 10}
    shape |= {"hidden": 52, "new_tokens": 2} | fields
    return DecoderConfig(**shape)


def whole(decoder: DecoderConfig, **fields: Any) -> FlamingoConfig:
    resampler = ResamplerConfig(
        depth=2, latents=5, width=18, heads=2, head_dim=8, hidden=30, in_width=64, max_frames=2
    )
    media_width = decoder.width if fields.get("project", True) else resampler.width
    xattn = XattnConfig(decoder.width, media_width, heads=2, head_dim=14, hidden=44)
    vision = VisionConfig(VARIANTS["tiny"])
    return FlamingoConfig(decoder, vision, resampler, xattn, every=2, dtype="float32", **fields)


def batch(cfg: FlamingoConfig) -> Batch:
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    media = jax.ShapeDtypeStruct((ROWS, MEDIA, FRAMES, SIDE, SIDE, 3), jnp.uint8)
    frames = jax.ShapeDtypeStruct((ROWS, MEDIA), jnp.int32)
    mask = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32)
    return Batch(tokens, tokens, media, frames, tokens, mask)


def traced_flops(jaxpr: Any) -> int:
    """FLOPs of all products and convolutions of a jaxpr, those in loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = equation.params["dimension_numbers"].rhs_spec[0]
            inner = math.prod(kernel) // kernel[out]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(
            traced_flops(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params)
        )
    return total


@pytest.fixture(scope="module")
def traced():
    """(config, trained parts) → FLOPs of forward, of forward and backward."""

    def trace(cfg: FlamingoConfig, trained: frozenset[str]) -> tuple[int, int]:
        graph, state = nnx.split(nnx.eval_shape(lambda: Flamingo(cfg, rngs=nnx.Rngs(0))))
        flat = flatten_paths(nnx.to_pure_dict(state))
        trainable = {p: a for p, a in flat.items() if counts.part_of(p) in trained}
        frozen = {p: a for p, a in flat.items() if p not in trainable}

        def loss(trainable: Any, frozen: Any, batch: Batch) -> Any:
            return jnp.sum(nnx.merge(graph, merge_trees(trainable, frozen))(batch))

        args = (unflatten_paths(trainable), unflatten_paths(frozen), batch(cfg))
        forward = jax.make_jaxpr(loss)(*args)
        both = jax.make_jaxpr(jax.value_and_grad(loss))(*args)
        return traced_flops(forward.jaxpr), traced_flops(both.jaxpr)

    return trace


CASES = {
    "chinchilla": whole(language()),
    "llama": whole(language(positions="rotary", gated=True, kv_heads=2, tied=False)),
    "unprojected": whole(language(), project=False),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_a_step_costs_what_its_program_says(traced, name):
    cfg = CASES[name]
    parts = counts.flamingo(
        cfg, rows=ROWS, length=LENGTH, media=MEDIA, frames=FRAMES, image_size=SIDE
    )
    forward, both = traced(cfg, counts.TRAINED)
    assert sum(part.forward for part in parts.values()) == forward
    assert sum(part.total for part in parts.values()) == both


def test_a_trained_language_model_costs_three_times_its_forward(traced):
    cfg = FlamingoConfig(language(new_tokens=0), dtype="float32")
    forward, both = traced(cfg, frozenset({counts.LANGUAGE}))
    assert counts.flops_per_token(cfg.language, LENGTH, ROWS) * ROWS * LENGTH == forward
    part = counts.decoder(cfg.language, ROWS, LENGTH, trained=True, new=False)
    # No gradient goes into the encodings of distances, of which there is one more than of tokens.
    distances = 2 * (LENGTH + 1) * cfg.language.width * 40 * cfg.language.blocks
    assert part.total == both == 3 * forward - distances


def test_cached_features_cost_no_encoder():
    cfg = CASES["chinchilla"]
    shape: dict[str, Any] = {
        "rows": ROWS,
        "length": LENGTH,
        "media": MEDIA,
        "frames": FRAMES,
        "image_size": SIDE,
    }
    seen, cached = counts.flamingo(cfg, **shape), counts.flamingo(cfg, **shape, cached=True)
    assert cached[counts.VISION].total == 0 < seen[counts.VISION].total
    assert cached[counts.RESAMPLER] == seen[counts.RESAMPLER]


def test_weights_cost_two_four_and_six_flops_a_token():
    """2·P forward, 4·P when frozen, 6·P when trained, apart from attention."""
    cfg = language(width=512, heads=4, head_dim=128, hidden=2048, positions="rotary", new_tokens=0)
    weights = cfg.blocks * 12 * 512 * 512 + cfg.vocab * 512
    pairs = cfg.blocks * 4 * 512 * LENGTH
    assert counts.flops_per_token(cfg, LENGTH) == 2 * weights + pairs
    for trained, factor in ((False, 4), (True, 6)):
        flops = counts.decoder(cfg, 1, LENGTH, trained=trained, new=False)
        assert flops.total == LENGTH * (factor * weights + 3 * pairs)


def test_every_parameter_has_a_part():
    cfg = CASES["llama"]
    model = nnx.eval_shape(lambda: Flamingo(cfg, rngs=nnx.Rngs(0)))
    tree = nnx.to_pure_dict(nnx.state(model))
    found = counts.parameters(tree)
    assert sum(found.values()) == sum(a.size for a in flatten_paths(tree).values())
    assert found[counts.NEW] == 2 * 2 * 24
    with pytest.raises(ValueError, match="no row"):
        counts.part_of("unheard/of")


def test_flops_are_refused_where_they_are_not_known():
    shape: dict[str, Any] = {"rows": 1, "length": 1, "media": 1, "frames": 1, "image_size": SIDE}
    with pytest.raises(ValueError, match="resampler"):
        counts.flamingo(CASES["chinchilla"], **shape, trained=frozenset({counts.GATED}))


def test_a_wider_vocabulary_costs_its_head_alone():
    small, large = language(), dataclasses.replace(language(), vocab=137)
    more = counts.flops_per_token(large, 8) - counts.flops_per_token(small, 8)
    assert more == 2 * 100 * small.width
