"""NFNets against timm's outputs: stem, every stage, features, mean feature, logits."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.errors import InputError
from flamingo_jax.model.nfnet import VARIANTS, NFNet
from flamingo_jax.pretrained import nfnet
from flamingo_jax.pretrained.table import convert, revert


def by_rule(name: str, shape: list[int], seed: int) -> np.ndarray:
    """The rule by which weights that are too large to store are made (the fixture's README)."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    r = generator.standard_normal(shape, dtype=np.float32)
    last = name.split(".")[-1]
    if last == "skipinit_gain":
        return (0.3 + 0.1 * r).astype(np.float32)
    if last == "gain":
        return (1.0 + 0.1 * r).astype(np.float32)
    if last == "bias":
        return (0.05 * r).astype(np.float32)
    return (r / np.float32(math.sqrt(math.prod(shape[1:])))).astype(np.float32)


def weights(peer) -> dict[str, np.ndarray]:
    if peer.stored:
        return peer.weights()
    shapes, seed = peer.config["shapes"], peer.meta["seed"]
    return {name: by_rule(name, shape, seed) for name, shape in shapes.items()}


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


@pytest.mark.parametrize("kind", ["stored", pytest.param("by rule", marks=pytest.mark.slow)])
def test_outputs_are_timms(peers, abstract, kind):
    chosen = [peer for peer in peers("nfnet_*") if peer.stored == (kind == "stored")]
    assert chosen
    for peer in chosen:
        cfg = nfnet.config(peer.config["cfg"], peer.config["num_classes"])
        graph, shapes = abstract(lambda cfg=cfg: NFNet(cfg, rngs=nnx.Rngs(0)))
        params = convert(nfnet.table(cfg), weights(peer), shapes)

        @jax.jit
        def run(params, x, graph=graph):
            model = nnx.merge(graph, params)
            outputs = model.activations(x, jnp.float32)
            return outputs, model.logits(outputs[-1])

        inputs = [name for name in peer.io if name.split(".")[-1] == "x"]
        assert inputs
        for name in inputs:
            outputs, logits = run(params, nhwc(peer[name]))
            prefix = name[: -len("x")]
            names = ["stem", *(f"stage{i}" for i in range(len(cfg.widths)))]
            outputs = [np.asarray(a).transpose(0, 3, 1, 2) for a in outputs]
            features = outputs[-1]
            for key, ours in zip(names, outputs[: len(names)], strict=True):
                if prefix + key in peer.io:
                    peer.compare(prefix + key, ours)
            peer.compare(prefix + "features", features)
            peer.compare(prefix + "pooled", features.mean((2, 3)))
            peer.compare(prefix + "logits", logits)
        peer.assert_all_used()


def test_there_and_back(peers, abstract):
    for peer in peers("nfnet_*"):
        if not peer.stored:
            continue
        cfg = nfnet.config(peer.config["cfg"], peer.config["num_classes"])
        _, shapes = abstract(lambda cfg=cfg: NFNet(cfg, rngs=nnx.Rngs(0)))
        theirs = weights(peer)
        back = revert(nfnet.table(cfg), convert(nfnet.table(cfg), theirs, shapes))
        assert set(back) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.slow
def test_parameter_counts_are_timms(peers, abstract):
    """F0, F1, … with and without their classifier, as timm counts them."""
    counted = 0
    for peer in peers("nfnet_*"):
        for name, row in peer.config.get("parameter_counts", {}).items():
            variant = VARIANTS[name.split("_")[-1].upper()]
            assert variant.final_width == row["num_features"]
            cfg = dataclasses.replace(variant, classes=peer.config["num_classes"])
            _, shapes = abstract(lambda cfg=cfg: NFNet(cfg, rngs=nnx.Rngs(0)))
            head = sum(math.prod(leaf.shape) for leaf in shapes.pop("head").values())
            count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
            assert count == row["without_head"], name
            assert count + head == row["total"], name
            counted += 1
    assert counted


def test_shapes_are_the_variants(peers):
    """timm's options of a published model give the variant of the same name."""
    for peer in peers("nfnet_*"):
        ours = nfnet.config(peer.config["cfg"])
        for name, variant in VARIANTS.items():
            if peer.folder.name == f"nfnet_{name.lower()}" and name.startswith("F"):
                numbers = {"activation": "gelu", "ws_eps": ours.ws_eps, "ws_form": "add"}
                assert dataclasses.replace(variant, **numbers) == ours


def test_foreign_options_are_refused(peers):
    cfg = peers("nfnet_*")[0].config["cfg"]
    for field, value in {"stem_type": "3x3", "reg": True, "act_layer": "mish"}.items():
        with pytest.raises(InputError, match=f"{field}="):
            nfnet.config({**cfg, field: value})
