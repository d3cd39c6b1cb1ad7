"""ViTs against the outputs of transformers' CLIP, of IDEFICS and of OpenFlamingo's encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.errors import InputError
from flamingo_jax.model.vit import ViT, ViTConfig
from flamingo_jax.pretrained import clip
from flamingo_jax.pretrained.table import convert, revert


def tower(abstract, cfg: ViTConfig, table, weights):
    """A function of a method's name and pixels [B, 3, Y, X]; the weights there and back."""
    graph, shapes = abstract(lambda: ViT(cfg, rngs=nnx.Rngs(0)))
    params = convert(table, weights, shapes)
    back = revert(table, params)
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    dropped = {row.name for row in table if not row.targets}
    assert set(weights) - set(back) <= dropped

    def run(method: str, pixels: np.ndarray):
        def call(params, x):
            return getattr(nnx.merge(graph, params), method)(x, jnp.float32)

        return jax.jit(call)(params, pixels.transpose(0, 2, 3, 1))

    return run


def test_clip(peers, abstract):
    for peer in peers("clip"):
        cfg = clip.config(peer.config["vision_config"])
        run = tower(abstract, cfg, clip.table(), peer.weights("vision_model."))
        states = run("hidden", peer["pixel_values"])
        assert len(states) == cfg.blocks + 1
        for i, state in enumerate(states):
            peer.compare(f"vision_hidden{i}", state)
        peer.compare("vision_last_hidden_state", states[-1])
        features = run("__call__", peer["pixel_values"])
        np.testing.assert_array_equal(features, states[-1][:, 1:])

        whole = dataclasses.replace(cfg, class_feature=True, normed=True)
        run = tower(abstract, whole, clip.table(), peer.weights("vision_model."))
        peer.compare("vision_pooler_output", run("__call__", peer["pixel_values"])[:, 0])


def test_idefics(peers, abstract):
    for peer in peers("idefics*"):
        cfg = clip.idefics_config(peer.config["vision_config"])
        name = "model.vision_model."
        run = tower(abstract, cfg, clip.table(name), peer.weights(name))
        shown = peer["pixel_values"]
        theirs = peer["vision_last_hidden"]
        ours = run("__call__", shown.reshape(-1, *shown.shape[-3:]))
        peer.compare("vision_last_hidden", ours.reshape(theirs.shape))


def test_open_flamingo(peers, abstract):
    found = [peer for peer in peers("open_flamingo_*") if "vision" in peer.config]
    assert found
    for peer in found:
        fields = peer.config["vision"]
        cfg = clip.open_clip_config(fields["vision_cfg"], fields["quick_gelu"])
        name = "vision_encoder."
        run = tower(abstract, cfg, clip.open_clip_table(name), peer.weights(name))
        shown = peer["vision_x"]
        theirs = peer["vit_tokens"]
        ours = run("__call__", shown.reshape(-1, *shown.shape[-3:]))
        peer.compare("vit_tokens", ours.reshape(theirs.shape))


def test_foreign_options_are_refused(peers):
    (peer,) = peers("clip")
    with pytest.raises(InputError, match="hidden_act='mish'"):
        clip.config({**peer.config["vision_config"], "hidden_act": "mish"})
    fields = {"image_size": 28, "patch_size": 14, "width": 16, "layers": 1}
    with pytest.raises(InputError, match="attentional_pool=True"):
        clip.open_clip_config({**fields, "attentional_pool": True}, quick_gelu=False)
