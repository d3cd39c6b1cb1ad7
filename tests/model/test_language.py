"""The decoder: causality, padding, caches, grouped heads, rows of new tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.shapes import Batch, Params

T, V = 7, 19
SHAPE: dict[str, Any] = {"vocab": V, "width": 16, "blocks": 3, "heads": 4, "head_dim": 6}
KINDS = {
    "chinchilla": DecoderConfig(**SHAPE, hidden=32),
    "llama": DecoderConfig(
        **SHAPE,
        hidden=32,
        positions="rotary",
        activation="silu",
        gated=True,
        kv_heads=2,
        tied=False,
    ),
}


class Model:
    """A decoder's jitted forward pass and decoding step over a plain dict of parameters."""

    def __init__(self, cfg: DecoderConfig, dtype: str = "float32"):
        whole = FlamingoConfig(cfg, dtype=dtype)
        model = nnx.eval_shape(lambda: Flamingo(whole, rngs=nnx.Rngs(0)))
        graph, _ = nnx.split(model)
        self.params: Params = jax.jit(
            lambda: nnx.to_pure_dict(nnx.state(Flamingo(whole, rngs=nnx.Rngs(0))))
        )()
        key = jax.random.key(3)
        for name in ("content_bias", "position_bias"):  # zeros at the start: they must matter
            if name in self.params["language"]["blocks"]:
                shape = self.params["language"]["blocks"][name].shape
                self.params["language"]["blocks"][name] = jax.random.normal(key, shape)
        self.forward = jax.jit(lambda params, batch: nnx.merge(graph, params)(batch))

        def step(params, tokens, positions, cache):
            model = nnx.merge(graph, params)
            hidden, cache = model.step(tokens, positions, jnp.zeros_like(tokens), cache)
            return model.logits(hidden), cache

        self.step, self.model = jax.jit(step), model

    def logits(self, tokens, positions=None) -> np.ndarray:
        return np.asarray(self.forward(self.params, batch(tokens, positions)))


def batch(tokens, positions=None) -> Batch:
    tokens = jnp.asarray(tokens)
    B, T = tokens.shape
    positions = jnp.tile(jnp.arange(T), (B, 1)) if positions is None else jnp.asarray(positions)
    none = jnp.zeros((B, 0), jnp.int32)
    media = jnp.zeros((B, 0, 1, 4, 4, 3), jnp.uint8)
    zeros = jnp.zeros_like(tokens)
    return Batch(tokens, positions, media, none, zeros, zeros.astype(jnp.float32))


def tokens_of(seed: int, rows: int = 2, length: int = T) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (rows, length), np.int32)


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Model:
    return Model(KINDS[request.param])


def test_later_tokens_change_nothing(model):
    tokens = tokens_of(0)
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % V
    one, two = model.logits(tokens), model.logits(changed)
    np.testing.assert_array_equal(one[:, :4], two[:, :4])
    assert np.abs(one[:, 4:] - two[:, 4:]).max() > 1e-3


def test_order_matters(model):
    tokens = tokens_of(0)
    swapped = tokens.copy()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    assert np.abs(model.logits(tokens)[:, -1] - model.logits(swapped)[:, -1]).max() > 1e-4


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(model, left):
    tokens = tokens_of(1)
    whole = model.logits(tokens)
    for padding in (1, 3):
        valid = T - padding
        width = ((0, 0), (padding, 0) if left else (0, padding))
        padded = np.pad(tokens[:, :valid], width, constant_values=5)
        positions = np.pad(np.tile(np.arange(valid), (2, 1)), width, constant_values=-1)
        found = model.logits(padded, positions)
        found = found[:, padding:] if left else found[:, :valid]
        np.testing.assert_allclose(found, whole[:, :valid], atol=2e-5)


def test_cached_decoding_equals_the_whole_pass(model):
    """A prompt padded on the left, then single tokens, in a cache with slots to spare."""
    tokens = tokens_of(2)
    prompt = 4
    pad = np.asarray([0, 2])  # of each row
    positions = np.arange(T) - pad[:, None]
    positions = np.where(positions < 0, -1, positions)
    whole = model.logits(tokens, positions)
    cache = model.model.start_cache(T + 3, None, jnp.zeros((2, 0), jnp.int32))
    found, cache = model.step(model.params, tokens[:, :prompt], positions[:, :prompt], cache)
    pieces = [found]
    for t in range(prompt, T):
        found, cache = model.step(
            model.params, tokens[:, t : t + 1], positions[:, t : t + 1], cache
        )
        pieces.append(found)
    found = np.concatenate(pieces, axis=1)
    valid = positions >= 0
    np.testing.assert_allclose(found[valid], whole[valid], atol=2e-5)
    assert int(cache.offset) == T
    np.testing.assert_array_equal(cache.valid[:, :T], valid)


def test_grouped_heads_are_repeated_heads():
    cfg = KINDS["llama"]
    grouped = Model(cfg)
    full = Model(dataclasses.replace(cfg, kv_heads=0))
    blocks = grouped.params["language"]["blocks"]

    def repeat(kernel):
        heads = kernel.reshape(3, 16, 2, 6)
        return jnp.repeat(heads, 2, axis=2).reshape(3, 16, 24)

    repeated = {name: {"kernel": repeat(blocks[name]["kernel"])} for name in ("key", "value")}
    language = {**grouped.params["language"], "blocks": {**blocks, **repeated}}
    full.params = {**grouped.params, "language": language}
    tokens = tokens_of(3)
    np.testing.assert_allclose(full.logits(tokens), grouped.logits(tokens), atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", pytest.param("chinchilla", marks=pytest.mark.slow)])
def test_new_tokens_have_their_own_rows(kind):
    bare = Model(KINDS[kind])
    wider = Model(dataclasses.replace(KINDS[kind], new_tokens=2))
    tied = KINDS[kind].tied
    new = {name: wider.params[name]["new"] for name in (("embed",) if tied else ("embed", "head"))}
    # The second new token is given the rows of token 3: it must then be just like it.
    new["embed"] = new["embed"].at[1].set(bare.params["embed"]["table"][3])
    if not tied:
        new["head"] = new["head"].at[:, 1].set(bare.params["head"]["kernel"][:, 3])
    for name, rows in new.items():
        wider.params[name] = {**bare.params[name], "new": rows}
    wider.params["language"] = bare.params["language"]
    tokens = tokens_of(4)
    tokens[0, 2] = 3
    one, two = bare.logits(tokens), wider.logits(tokens)
    assert two.shape == (2, T, V + 2) and two.dtype == np.float32
    np.testing.assert_array_equal(two[..., :V], one)
    np.testing.assert_allclose(two[..., V + 1], one[..., 3], atol=1e-5)
    tokens[0, 2] = V + 1
    np.testing.assert_array_equal(wider.logits(tokens), two)
    tokens[0, 2] = V
    other = wider.logits(tokens)
    assert np.abs(other[0, 2:] - two[0, 2:]).max() > 1e-4
    np.testing.assert_array_equal(other[0, :2], two[0, :2])


def test_bfloat16_gives_float32_logits_near_the_exact_ones(model):
    low = Model(model.model.cfg.language, "bfloat16")
    low.params = model.params
    tokens = tokens_of(5)
    exact, found = model.logits(tokens), low.logits(tokens)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())


def test_residual_branches_start_small():
    """Deviations of a deep stack's outputs do not grow with its depth."""
    deep = dataclasses.replace(KINDS["chinchilla"], blocks=24)
    out = Model(deep).params["language"]["blocks"]["out"]["kernel"]
    np.testing.assert_allclose(np.std(out), (2 * 24 * 24) ** -0.5, rtol=0.05)
