"""Flamingo as a whole: what the first step, pixels, masks, segments and caches may change."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model import segments as seg
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import DecoderConfig, place
from flamingo_jax.model.masks import causal_mask, media_mask
from flamingo_jax.model.nfnet import NFNetConfig
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.vision import VisionConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import Batch, Params, flatten_paths, map_paths

B, T, V, M, F, SIDE = 2, 8, 19, 3, 2, 8
SMALL: dict[str, Any] = {"vocab": V, "width": 16, "blocks": 4, "heads": 4, "head_dim": 6}
CHINCHILLA = DecoderConfig(**SMALL, hidden=32)
LLAMA = DecoderConfig(
    **SMALL, hidden=32, positions="rotary", activation="silu", gated=True, kv_heads=2, tied=False
)
ENCODER = NFNetConfig(
    widths=(8,), depths=(1,), strides=(1,), stem=((4, 2), (8, 2)), group_width=8, final_width=8
)


def whole(language: DecoderConfig = CHINCHILLA, **fields: Any) -> FlamingoConfig:
    resampler = ResamplerConfig(
        depth=1, latents=3, width=12, heads=2, head_dim=6, hidden=24, in_width=8, max_frames=F
    )
    cfg = FlamingoConfig(
        dataclasses.replace(language, new_tokens=2),
        VisionConfig(ENCODER),
        resampler,
        XattnConfig(width=16, media_width=16, heads=2, head_dim=6, hidden=24),
        every=2,
        dtype="float32",
    )
    return dataclasses.replace(cfg, **fields)


@functools.cache
def _everything(language: DecoderConfig) -> Params:
    """Parameters of a model with a gated layer before each block.

    Biases and skip gains, which start at 0, are drawn as well: they must not be what makes things
    equal.
    """
    cfg = whole(language, every=1)

    def make() -> Params:
        params = nnx.to_pure_dict(nnx.state(Flamingo(cfg, rngs=nnx.Rngs(0))))

        def draw(path: str, leaf: Any) -> Any:
            hidden = path.endswith(("skip_gain", "content_bias", "position_bias"))
            return 0.5 + jax.random.uniform(jax.random.key(1), leaf.shape) if hidden else leaf

        return map_paths(draw, params)

    return jax.jit(make)()


def init(cfg: FlamingoConfig) -> tuple[Any, Params]:
    """Graph and parameters of a model: what it has of `_everything`'s."""
    language = dataclasses.replace(cfg.language, new_tokens=0)
    flat = flatten_paths(_everything(language))
    graph, state = nnx.split(nnx.eval_shape(lambda: Flamingo(cfg, rngs=nnx.Rngs(0))))

    def take(path: str, shape: Any) -> Any:
        return flat[path][: len(shape)] if path.startswith("xattn/") else flat[path]

    return graph, map_paths(take, nnx.to_pure_dict(state))


def opened(params: Params) -> Params:
    """Parameters with the gates opened, each to another width."""

    def widen(path: str, leaf: Any) -> Any:
        return jnp.linspace(0.4, 0.9, len(leaf)) if path.startswith("xattn/gate_") else leaf

    return map_paths(widen, params)


def example(seed: int = 0, media_of_token: Any = None) -> Batch:
    rng = np.random.default_rng(seed)
    of_token = [[0, 1, 1, 1, 2, 2, 3, 3], [1, 1, 1, 2, 2, 0, 0, 0]]
    return Batch(
        tokens=rng.integers(0, V, (B, T), np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        media=rng.integers(0, 256, (B, M, F, SIDE, SIDE, 3), np.uint8),
        frames=np.asarray([[1, 2, 1], [2, 1, 0]], np.int32),
        media_of_token=np.asarray(of_token if media_of_token is None else media_of_token, np.int32),
        loss_mask=np.ones((B, T), np.float32),
    )


def example_of_features() -> Batch:
    """As `example`, with what an encoder might have made of the pixels."""
    features = np.random.default_rng(1).normal(size=(B, M, F, 4, 8))
    return dataclasses.replace(example(), media=features.astype(np.float32))


# As users' programs are compiled: bits depend on what XLA fuses, which conftest.py spares.
USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


def forward(graph: Any, options: Any = None) -> Any:
    return jax.jit(lambda params, batch: nnx.merge(graph, params)(batch), compiler_options=options)


def without_media(batch: Batch, kept: int = M) -> Batch:
    none = np.zeros_like(batch.media_of_token)
    return dataclasses.replace(
        batch,
        media=batch.media[:, :kept],
        frames=np.zeros_like(batch.frames[:, :kept]),
        media_of_token=none,
    )


SLOW = pytest.mark.slow
SEGMENTATIONS = [(3, 1), *(pytest.param(*of, marks=SLOW) for of in [(1, 0), (2, 0), (4, 3)])]
LANGUAGES = {"chinchilla": CHINCHILLA, "llama": LLAMA}
BARE: dict[str, Any] = {"vision": None, "resampler": None, "xattn": None}


def bare_logits(cfg: FlamingoConfig, batch: Batch) -> np.ndarray:
    """The logits of the LM alone, as it was before it was given eyes."""
    language = dataclasses.replace(cfg.language, new_tokens=0)
    graph, params = init(dataclasses.replace(cfg, language=language, **BARE))
    assert not {"xattn", "resampler", "project", "vision"} & params.keys()
    return np.asarray(forward(graph, USERS)(params, batch))


@functools.cache
def canonical(name: str) -> np.ndarray:
    """The bare model's logits of `example_of_features`, block after block."""
    return bare_logits(whole(LANGUAGES[name], every=1), example_of_features())


@pytest.mark.parametrize(("every", "offset"), SEGMENTATIONS)
@pytest.mark.parametrize("name", ["chinchilla", pytest.param("llama", marks=SLOW)])
def test_the_first_logits_are_the_bare_models_bit_for_bit(name, every, offset):
    """In f32, whatever the segments: the bare model runs in its own, block after block."""
    batch = example_of_features()
    assert np.abs(canonical(name)).max() > 0.1
    graph, params = init(whole(LANGUAGES[name], every=every, offset=offset, vision=None))
    run = forward(graph, USERS)
    for seen in (batch, without_media(batch)):
        found = np.asarray(run(params, seen))
        assert found.shape == (B, T, V + 2)
        np.testing.assert_array_equal(found[..., :V], canonical(name))


@SLOW
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_logits_are_the_bare_models_with_groups_unrolled(dtype):
    cfg = whole(every=1, dtype=dtype, vision=None, unroll=True)
    graph, params = init(cfg)
    batch, run = example_of_features(), forward(graph, USERS)
    expected = bare_logits(cfg, batch)
    for seen in (batch, without_media(batch)):
        np.testing.assert_array_equal(run(params, seen)[..., :V], expected)


@SLOW
@pytest.mark.parametrize(("every", "offset"), SEGMENTATIONS)
def test_the_first_logits_in_bfloat16_are_the_bare_models_in_the_same_segments(every, offset):
    cfg = whole(every=every, offset=offset, dtype="bfloat16", vision=None)
    graph, params = init(cfg)
    batch, run = example_of_features(), forward(graph, USERS)
    expected = bare_logits(cfg, batch)
    for seen in (batch, without_media(batch)):
        np.testing.assert_array_equal(run(params, seen)[..., :V], expected)


def test_a_batch_of_text_alone_is_the_bare_models():
    """M = 0, as rows of layout "text" have it: no pictures to encode, none to attend to."""
    batch = without_media(example(), kept=0)
    assert batch.media.shape[1] == 0
    graph, params = init(whole(every=4))
    found = forward(graph, USERS)(params, batch)
    np.testing.assert_array_equal(found[..., :V], bare_logits(whole(every=1), batch))


class Watched:
    """Flamingo with open gates, layer by layer: what each cross-attention gathers, and logits."""

    def __init__(self, cfg: FlamingoConfig):
        self.cfg = cfg
        graph, params = init(cfg)
        self.params = opened(params)
        self.forward = forward(graph)
        self.run = jax.jit(lambda params, batch: self._watch(nnx.merge(graph, params), batch))

    def __call__(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """What is gathered, [n, B, T, D], and logits [B, T, V + W]."""
        gathered, logits = self.run(self.params, batch)
        return np.asarray(gathered), np.asarray(logits)

    def _watch(self, model: Any, batch: Batch) -> tuple[Any, Any]:
        cfg, gathered = self.cfg, []
        media = model.resample(model.encode(batch.media), batch.frames)
        mask = media_mask(batch.media_of_token, batch.frames, 3, cfg.attend)
        where = place(cfg.language, batch.positions, causal_mask(batch.positions))
        x = model.embed(batch.tokens, jnp.float32)
        blocks, layers = nnx.split(model.language.blocks), nnx.split(model.xattn)

        def layer_of(parts: Any, i: int) -> Any:
            return nnx.merge(parts[0], jax.tree.map(lambda a: a[i], parts[1]))

        for i in range(cfg.language.blocks):
            if i % cfg.every == 0:
                layer = layer_of(layers, i // cfg.every)
                k, v = layer.keys_values(media, jnp.float32)
                gathered.append(layer.attention(x, k, v, mask, jnp.float32))
                x = layer(x, k, v, mask, jnp.float32)
            x, _ = layer_of(blocks, i)(x, where, None, jnp.float32)
        return jnp.stack(gathered), model.logits(model.language.norm(x, jnp.float32))


@pytest.fixture(scope="module", params=["one", "upto"])
def watched(request) -> Watched:
    return Watched(whole(attend=request.param))


def test_layer_by_layer_is_the_model(watched):
    batch = example()
    _, logits = watched(batch)
    np.testing.assert_allclose(watched.forward(watched.params, batch), logits, atol=1e-5)


def test_rows_without_an_image_gather_exactly_nothing(watched):
    batch = example()
    gathered, _ = watched(batch)
    none = batch.media_of_token == 0
    assert np.all(gathered[:, none] == 0)
    assert np.all(np.abs(gathered[:, ~none]).max(axis=-1) > 1e-4)
    gathered, _ = watched(without_media(batch))
    assert np.all(gathered == 0)
    gathered, _ = watched(dataclasses.replace(batch, frames=np.zeros_like(batch.frames)))
    assert np.all(gathered == 0)


def changed_pixels(batch: Batch, row: int, medium: int, frame: int = 0) -> Batch:
    media = batch.media.copy()
    media[row, medium, frame] = 255 - media[row, medium, frame]
    return dataclasses.replace(batch, media=media)


def test_pixels_of_an_image_a_token_may_not_see_change_nothing(watched):
    """Medium 2 of row 0 is seen by tokens 4 and 5, and with "upto" by 6 and 7 (of medium 3)."""
    batch = example()
    before, logits = watched(batch)
    after, new_logits = watched(changed_pixels(batch, row=0, medium=1))
    sees = [4, 5] if watched.cfg.attend == "one" else [4, 5, 6, 7]
    blind = [t for t in range(T) if t not in sees]
    # In the first layer nothing else differs; further up later tokens hear of it through the LM.
    np.testing.assert_array_equal(after[0, 0, blind], before[0, 0, blind])
    np.testing.assert_array_equal(after[:, 0, :4], before[:, 0, :4])
    np.testing.assert_array_equal(after[:, 1], before[:, 1])
    assert np.all(np.abs(after[0, 0, sees] - before[0, 0, sees]).max(axis=-1) > 1e-6)
    np.testing.assert_array_equal(new_logits[0, :4], logits[0, :4])
    np.testing.assert_array_equal(new_logits[1], logits[1])
    assert np.all(np.abs(new_logits[0, 4:] - logits[0, 4:]).max(axis=-1) > 1e-7)


def test_pixels_that_are_not_there_change_nothing(watched):
    batch = example()
    before, logits = watched(batch)
    for row, medium, frame in ((1, 2, 0), (0, 0, 1)):  # an absent medium, a frame past the last
        after, new_logits = watched(changed_pixels(batch, row, medium, frame))
        np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(new_logits, logits)
    after, _ = watched(changed_pixels(batch, row=0, medium=1, frame=1))  # a clip's second frame
    assert np.abs(after - before).max() > 1e-6


def test_cached_features_are_the_pixels(watched):
    batch = example()
    graph, _ = init(watched.cfg)
    encode = jax.jit(lambda params, media: nnx.merge(graph, params).encode(media))
    features = encode(watched.params, batch.media)
    assert features.shape == (B, M, F, 4, 8)
    found = watched.forward(watched.params, dataclasses.replace(batch, media=features))
    np.testing.assert_allclose(found, watched.forward(watched.params, batch), atol=1e-5)


@pytest.mark.parametrize(("every", "offset"), [pytest.param(2, 0, marks=SLOW), (3, 1)])
def test_cached_decoding_equals_the_whole_pass(every, offset):
    """A prompt with pictures, one row padded on the left, then single tokens."""
    graph, params = init(whole(every=every, offset=offset, vision=None))
    params, batch = opened(params), example_of_features()
    pad = np.asarray([[0], [2]])
    positions = np.where(np.arange(T) < pad, -1, np.arange(T) - pad).astype(np.int32)
    batch = dataclasses.replace(batch, positions=positions)
    expected = np.asarray(forward(graph)(params, batch))

    @jax.jit
    def start(params, batch):
        model = nnx.merge(graph, params)
        return model.start_cache(
            T + 2, model.resample(model.encode(batch.media), batch.frames), batch.frames
        )

    @jax.jit
    def step(params, tokens, positions, of_token, cache):
        model = nnx.merge(graph, params)
        hidden, cache = model.step(tokens, positions, of_token, cache)
        return model.logits(hidden), cache

    cache, pieces = start(params, batch), []
    for low, high in ((0, 5), (5, 6), (6, 7), (7, 8)):
        columns = (a[:, low:high] for a in (batch.tokens, positions, batch.media_of_token))
        found, cache = step(params, *columns, cache)
        pieces.append(found)
    valid = positions >= 0
    found = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Cut(FlamingoConfig):
    """A Flamingo whose segments are given outright."""

    parts: tuple[seg.Segment, ...] = ()

    @property
    def segments(self) -> tuple[seg.Segment, ...]:
        return self.parts


def gradients(cfg: FlamingoConfig) -> dict[str, Any]:
    """The gradient of a mean log-likelihood for every parameter, gates open."""
    graph, params = init(cfg)

    def loss(params: Params, batch: Batch) -> Any:
        logits = nnx.merge(graph, params)(batch)
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_probs, batch.tokens[:, 1:, None], axis=-1))

    return flatten_paths(jax.jit(jax.grad(loss))(opened(params), example_of_features()))


TWO_GROUPS = (seg.Segment(True, 2, 2),)
TWO_SEGMENTS = (seg.Segment(True, 2, 1), seg.Segment(True, 2, 1))


def same_gradients(reference: FlamingoConfig, others: Sequence[FlamingoConfig]) -> None:
    expected = gradients(reference)
    assert max(float(jnp.abs(g).max()) for g in expected.values()) > 0.05
    for cfg in others:
        found = gradients(cfg)
        for path, gradient in expected.items():
            np.testing.assert_allclose(found[path], gradient, atol=1e-6, err_msg=path)


def cut(parts: tuple[seg.Segment, ...], remat: str = "none", **laid_out: bool) -> Cut:
    base = dataclasses.replace(whole(vision=None, remat=remat), **laid_out)
    fields: dict[str, Any] = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return Cut(**fields, parts=parts)


def test_segments_and_rematerialisation_leave_flamingos_gradients():
    same_gradients(cut(TWO_GROUPS), [cut(TWO_SEGMENTS, "dots")])


@pytest.mark.slow
def test_rematerialisation_and_unrolling_leave_flamingos_gradients():
    others = [
        cut(TWO_GROUPS, "full"),
        cut(TWO_GROUPS, "dots", unroll_blocks=True),
        cut(TWO_SEGMENTS, "dots", unroll=True),
    ]
    same_gradients(cut(TWO_GROUPS), others)


@pytest.mark.slow
def test_segments_and_rematerialisation_leave_the_bare_models_gradients():
    same_gradients(
        whole(**BARE, every=1),
        [
            whole(**BARE, every=2, remat="full"),
            whole(**BARE, every=3, offset=1, remat="dots"),
        ],
    )
