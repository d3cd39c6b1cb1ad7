"""LLaMA's kind against transformers: logits, hidden states, both paddings, greedy tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.errors import InputError
from flamingo_jax.model.flamingo import Flamingo, FlamingoConfig
from flamingo_jax.model.language import place
from flamingo_jax.model.masks import causal_mask
from flamingo_jax.pretrained import llama
from flamingo_jax.pretrained.table import revert
from flamingo_jax.shapes import Batch


@pytest.fixture(scope="module")
def families(peers):
    found = [peer for peer in peers("lm_*") if peer.config.get("model_type") == "llama"]
    assert found
    return found


def build(peer, abstract):
    cfg = llama.config(peer.config)
    whole = FlamingoConfig(cfg, dtype="float32")
    graph, shapes = abstract(lambda: Flamingo(whole, rngs=nnx.Rngs(0)))
    params = llama.language_params(peer.weights(), cfg, shapes)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    return cfg, graph, jax.tree.map(jnp.asarray, params)


def batch(tokens, mask) -> Batch:
    tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    positions = jnp.where(mask > 0, jnp.cumsum(mask, axis=1) - 1, -1).astype(jnp.int32)
    media = jnp.zeros((tokens.shape[0], 0, 1, 4, 4, 3), jnp.uint8)
    frames, zeros = jnp.zeros((tokens.shape[0], 0), jnp.int32), jnp.zeros_like(tokens)
    return Batch(tokens, positions, media, frames, zeros, zeros.astype(jnp.float32))


def hidden_states(graph, params, cfg, given: Batch) -> list:
    """The residual stream before each block, and after the last one and the final norm."""
    model = nnx.merge(graph, params)
    x = model.embed(given.tokens, jnp.float32)
    where = place(cfg, given.positions, causal_mask(given.positions))
    blocks, state = nnx.split(model.language.blocks)
    states = [x]
    for i in range(cfg.blocks):
        block = nnx.merge(blocks, jax.tree.map(lambda a, i=i: a[i], state))
        x, _ = block(x, where, None, jnp.float32)
        states.append(x)
    return [*states[:-1], model.language.norm(x, jnp.float32)]


def test_outputs_are_transformers(families, abstract):
    for peer in families:
        cfg, graph, params = build(peer, abstract)
        forward = jax.jit(lambda p, b, graph=graph: nnx.merge(graph, p)(b))
        tokens = peer["input_ids"]
        full = batch(tokens, np.ones_like(tokens))
        peer.compare("logits", forward(params, full))
        states = jax.jit(lambda p, b, graph=graph, cfg=cfg: hidden_states(graph, p, cfg, b))
        for i, state in enumerate(states(params, full)):
            peer.compare(f"hidden{i}", state)
        for side in ("left", "right"):
            mask = peer[f"attention_mask_{side}"]
            ours = forward(params, batch(tokens, mask))
            peer.compare(f"logits_{side}_padded", ours, mask > 0)

        # Greedy decoding in one shape: what is not there yet is padding on the right.
        wanted, logits = peer["greedy_tokens"], []
        T, steps = tokens.shape[1], wanted.shape[1]
        tokens = np.pad(tokens, ((0, 0), (0, steps)))
        for t in range(T, T + steps):
            mask = np.broadcast_to(np.arange(T + steps) < t, tokens.shape).astype(np.int32)
            logits.append(np.asarray(forward(params, batch(tokens, mask)))[:, t - 1])
            tokens[:, t] = logits[-1].argmax(-1)
        np.testing.assert_array_equal(tokens[:, T:], wanted)
        peer.compare("greedy_logits", np.stack(logits, axis=1))
        peer.assert_all_used()


def test_there_and_back(families, abstract):
    for peer in families:
        cfg, _, params = build(peer, abstract)
        back, theirs = revert(llama.table(cfg), params), peer.weights()
        assert set(back) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_rows_of_new_tokens_are_left_to_the_caller(families, abstract):
    for peer in families:
        cfg = llama.config(peer.config, new_tokens=2)
        whole = FlamingoConfig(cfg, dtype="float32")
        _, shapes = abstract(lambda whole=whole: Flamingo(whole, rngs=nnx.Rngs(0)))
        params = llama.language_params(peer.weights(), cfg, shapes)
        assert "new" in shapes["embed"] and "new" not in params["embed"]


def test_another_size_is_refused_with_every_reason(families, abstract):
    peer = families[0]
    cfg = llama.config(peer.config)
    other = dataclasses.replace(cfg, blocks=cfg.blocks + 1, vocab=cfg.vocab + 1)
    _, shapes = abstract(lambda: Flamingo(FlamingoConfig(other), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError) as error:
        llama.language_params(peer.weights(), other, shapes)
    text = str(error.value)
    assert f"missing: 'model.layers.{cfg.blocks}.mlp.up_proj.weight'" in text
    assert "wrong shape: 'model.embed_tokens.weight'" in text


@pytest.mark.parametrize("field", ["rope_scaling", "hidden_act", "attention_bias"])
def test_what_the_decoder_does_not_compute_is_refused(families, field):
    with pytest.raises(InputError, match=field):
        llama.config({**families[0].config, field: {"type": "linear", "factor": 2.0}})
