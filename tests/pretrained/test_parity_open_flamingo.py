"""OpenFlamingo's and flamingo-pytorch's resamplers and gated layers, with their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax.model.masks import media_mask
from flamingo_jax.model.resampler import Resampler, ResamplerConfig
from flamingo_jax.model.xattn import GatedCrossAttention
from flamingo_jax.pretrained import flamingo_pytorch, open_flamingo
from flamingo_jax.pretrained.table import convert, revert
from flamingo_jax.shapes import flatten_paths, merge_trees, unflatten_paths

MODES = {"immediate": "one", "all_previous": "upto"}


@pytest.fixture(scope="module")
def peer(peers):
    (found,) = peers("open_flamingo_modules")
    yield found
    found.assert_all_used()


def resampler(abstract, cfg: ResamplerConfig, table, weights):
    graph, shapes = abstract(lambda: Resampler(cfg, rngs=nnx.Rngs(0)))
    params = convert(table, weights, shapes)
    assert set(revert(table, params)) == set(weights)

    @jax.jit
    def run(x):
        frames = jnp.full(x.shape[:2], x.shape[2], jnp.int32)
        return nnx.merge(graph, params)(x, frames, jnp.float32)

    return graph, params, run


def gated(abstract, cfg, table, weights, only: str | None = None):
    """A gated layer; `only` its attention where the weights are no more than that."""
    graph, shapes = abstract(lambda: GatedCrossAttention(cfg, rngs=nnx.Rngs(0)))
    if only is None:
        params = convert(table, weights, shapes)
        assert set(revert(table, params)) == set(weights)
        return graph, shapes, params
    rows = {path for row in table for path in row.targets}
    part = {p: a for p, a in flatten_paths(shapes).items() if p in rows}
    rest = {p: jnp.zeros(a.shape) for p, a in flatten_paths(shapes).items() if p not in rows}
    params = convert(table, weights, unflatten_paths(part))
    return graph, shapes, merge_trees(params, unflatten_paths(rest))


def test_resampler(peer, abstract):
    cfg = open_flamingo.resampler_config(peer.config["resampler"])
    weights = peer.weights("resampler.")
    table = open_flamingo.resampler_table("resampler.")
    graph, params, run = resampler(abstract, cfg, table, weights)
    peer.compare("resampler.out", run(peer["resampler.x"]))
    peer.compare("resampler.video_out", run(peer["resampler.video_x"]))

    # Layer by layer: what each attention and feed-forward layer adds to the latents.
    x = peer["resampler.x"]
    B, M, F, P, E = x.shape
    features = x.reshape(B * M, F * P, E)
    latents = jnp.broadcast_to(params["latents"], (B * M, *params["latents"].shape))
    layers, state = nnx.split(nnx.merge(graph, params).layers)

    @jax.jit
    def step(layer, latents):
        layer = nnx.merge(layers, layer)
        gathered = layer.attention(latents, features, None, jnp.float32)
        return gathered, layer.feed_forward(latents + gathered, jnp.float32)

    for i in range(cfg.depth):
        gathered, dense = step(jax.tree.map(lambda a, i=i: a[i], state), latents)
        peer.compare(f"resampler.layer{i}.attn", gathered.reshape(B, M, -1, E))
        peer.compare(f"resampler.layer{i}.ff", dense.reshape(B, M, -1, E))
        latents = latents + gathered + dense


def test_resampler_with_embeddings_of_frames_and_media(peer, abstract):
    cfg = open_flamingo.resampler_config(peer.config["resampler_frames"])
    table = open_flamingo.resampler_table("resampler_frames.")
    _, params, run = resampler(abstract, cfg, table, peer.weights("resampler_frames."))
    assert {"time", "media"} <= set(params)
    peer.compare("resampler_frames.out", run(peer["resampler_frames.x"]))
    peer.compare("resampler_frames.single_out", run(peer["resampler_frames.single_x"]))


def places(peer, latents: int, name: str = "xattn.media_locations"):
    """media_of_token, the media as one row of latents, and how many there are."""
    media = peer["xattn.media"]
    B, M, R, E = media.shape
    assert latents == R
    of_token = jnp.cumsum(peer[name], axis=1, dtype=jnp.int32)
    return of_token, media.reshape(B, M * R, E), jnp.ones((B, M), jnp.int32)


@pytest.mark.parametrize("mode", MODES)
def test_attention_alone(peer, abstract, mode):
    cfg = open_flamingo.xattn_config({**peer.config["masked"], "ff_mult": 1})
    table = open_flamingo.masked_table("masked.")
    graph, _, params = gated(abstract, cfg, table, peer.weights("masked."), only="attention")
    R = peer["xattn.media"].shape[2]
    of_token, media, frames = places(peer, R)
    x = peer["xattn.text"]

    @jax.jit
    def run(x, mask, uniform):
        layer = nnx.merge(graph, params)
        return layer.attention(x, *layer.keys_values(media), mask, jnp.float32, uniform)

    masks = functools.partial(open_flamingo.peer_mask, latents=R, attend=MODES[mode])
    peer.compare(f"masked.{mode}.out", run(x, *masks(of_token, frames)))
    everything = jnp.ones((*x.shape[:2], media.shape[1]), bool)[:, None]
    peer.compare(f"masked.{mode}.no_locations.out", run(x, everything, None))
    cached = f"masked.{mode}.cached.out"
    T = peer.io[cached].shape[1]
    last = jnp.repeat(of_token[:, -1:], T, axis=1)
    peer.compare(cached, run(x[:, -T:], *masks(last, frames)))


def test_more_tags_than_media(peer, abstract, nearly):
    """The peer looks at all media alike where a token's own is not there; we give zero."""
    cfg = open_flamingo.xattn_config({**peer.config["masked"], "ff_mult": 1})
    table = open_flamingo.masked_table("masked.")
    graph, _, params = gated(abstract, cfg, table, peer.weights("masked."), only="attention")
    R = peer["xattn.media"].shape[2]
    of_token, media, frames = places(peer, R, "edge.more_tags_than_media.media_locations")
    absent = np.asarray(of_token > frames.shape[1])
    assert absent.any() and not absent.all()

    @jax.jit
    def run(mask, uniform):
        layer = nnx.merge(graph, params)
        return layer.attention(
            peer["xattn.text"], *layer.keys_values(media), mask, jnp.float32, uniform
        )

    name = "edge.more_tags_than_media.masked_out"
    peer.compare(name, run(*open_flamingo.peer_mask(of_token, frames, R)))
    zero = np.asarray(run(media_mask(of_token, frames, R), None))
    assert (zero[absent] == 0).all()
    nearly(zero, peer[name], "where the medium is there", ~absent)


@pytest.mark.parametrize("mode", MODES)
def test_gated_layer(peer, abstract, mode):
    cfg = open_flamingo.xattn_config(peer.config["gated"])
    table = open_flamingo.gated_table("gated.")
    graph, _, params = gated(abstract, cfg, table, peer.weights("gated."))
    R = peer["xattn.media"].shape[2]
    of_token, media, frames = places(peer, R)
    x = peer["xattn.text"]

    @jax.jit
    def run(x, mask, uniform):
        layer = nnx.merge(graph, params)
        return layer(x, *layer.keys_values(media), mask, jnp.float32, uniform)

    masks = functools.partial(open_flamingo.peer_mask, latents=R, attend=MODES[mode])
    peer.compare(f"gated.{mode}.out", run(x, *masks(of_token, frames)))
    cached = f"gated.{mode}.cached.out"
    T = peer.io[cached].shape[1]
    last = jnp.repeat(of_token[:, -1:], T, axis=1)
    peer.compare(cached, run(x[:, -T:], *masks(last, frames)))


def test_gradients(peer, abstract, nearly):
    cfg = open_flamingo.xattn_config(peer.config["gated"])
    table = open_flamingo.gated_table("gated.")
    graph, shapes, params = gated(abstract, cfg, table, peer.weights("gated."))
    R = peer["xattn.media"].shape[2]
    of_token, media, frames = places(peer, R)
    mask = media_mask(of_token, frames, R)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(params, x, media):
        layer = nnx.merge(graph, params)
        out = layer(x, *layer.keys_values(media), mask, jnp.float32)
        return jnp.sum(out * peer["gated.grad.cotangent"])

    ours, text, of_media = gradients(params, peer["xattn.text"], media)
    peer.compare("gated.grad.text", text)
    peer.compare("gated.grad.media", of_media.reshape(peer["xattn.media"].shape))
    # The peer's gradients come into our shapes by the same table as its weights.
    prefix = "gated.grad.param."
    theirs = {
        "gated." + name[len(prefix) :]: peer[name] for name in peer.io if name.startswith(prefix)
    }
    theirs, ours = flatten_paths(convert(table, theirs, shapes)), flatten_paths(ours)
    assert set(ours) == set(theirs)
    for path, gradient in theirs.items():
        nearly(ours[path], gradient, f"gradient of {path}")


def test_flamingo_pytorch(peers, abstract):
    (peer,) = peers("flamingo_pytorch_modules")
    cfg = flamingo_pytorch.resampler_config(peer.config["resampler"])
    table = flamingo_pytorch.resampler_table("resampler.")
    _, _, run = resampler(abstract, cfg, table, peer.weights("resampler."))
    media = run(peer["resampler.x"][:, :, None])
    peer.compare("resampler.out", media)

    cfg = flamingo_pytorch.xattn_config(peer.config["gated"])
    table = flamingo_pytorch.gated_table("gated.")
    graph, _, params = gated(abstract, cfg, table, peer.weights("gated."))
    B, M, R, E = media.shape
    of_token = jnp.cumsum(peer["gated.media_locations"], axis=1, dtype=jnp.int32)
    mask, uniform = open_flamingo.peer_mask(of_token, jnp.ones((B, M), jnp.int32), R)

    @jax.jit
    def out(x, media):
        layer = nnx.merge(graph, params)
        return layer(x, *layer.keys_values(media), mask, jnp.float32, uniform)

    peer.compare("gated.out", out(peer["gated.text"], media.reshape(B, M * R, E)))
    peer.assert_all_used()


def test_a_stack_of_gated_layers(peer, abstract):
    """Layers of a whole checkpoint, one in four blocks, are stacked."""
    cfg = open_flamingo.xattn_config(peer.config["gated"])
    weights = peer.weights("gated.")
    _, shapes = abstract(lambda: GatedCrossAttention(cfg, rngs=nnx.Rngs(0)))
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), shapes)
    name = "lang_encoder.transformer.blocks.{layer*4+3}.gated_cross_attn_layer."
    table = open_flamingo.gated_table(name, "xattn/")
    foreign = {
        name.replace("{layer*4+3}", str(block)) + key.removeprefix("gated."): array * block
        for block in (3, 7)
        for key, array in weights.items()
    }
    params = flatten_paths(convert(table, foreign, {"xattn": stacked})["xattn"])
    one = flatten_paths(convert(open_flamingo.gated_table("gated."), weights, shapes))
    for path, array in one.items():
        np.testing.assert_array_equal(params[path], np.stack([array * 3, array * 7]), err_msg=path)
