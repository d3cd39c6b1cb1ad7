"""What each kind of stage minimises and measures: functions of a graph, parameters and a batch.

`graph` is an NNX graph definition: `nnx.merge(graph, params)` is the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax.shapes import Array, Batch, Params, merge_trees
from flamingo_jax.train import objective


def text_loss(
    graph: Any,
    params: Params,
    frozen: Params,
    batch: Batch,
    key: Array,
    count: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The mean NLL of the batch's targets (Flamingo eq. (2)), and their number.

    Of a part of a batch, `count` is the number of the whole batch's targets: losses add up.
    """
    del key
    model = nnx.merge(graph, merge_trees(params, frozen))
    nll, own = _next_token(model, batch)
    return nll / jnp.maximum(own if count is None else count, 1.0), {"tokens": own}


def encoded(
    graph: Any, params: Params, frozen: Params, batches: dict[str, Batch]
) -> dict[str, Batch]:
    """The batches with features for pixels: the frozen encoder sees all datasets' pictures at once.

    One pass has one program and full products, and no gradient goes into it.
    """
    model = nnx.merge(graph, merge_trees(params, frozen))
    features = model.encode_all([batch.media for batch in batches.values()])
    pairs = zip(batches.items(), features, strict=True)
    return {name: dataclasses.replace(batch, media=media) for (name, batch), media in pairs}


def _next_token(model: Any, batch: Batch) -> tuple[Array, Array]:
    """Summed NLL and number of targets of a Flamingo or a bare language model."""
    head, chunk = model.head_weights(), model.cfg.loss_chunk
    return objective.next_token(model.logit_parts, head, model.hidden(batch), batch, chunk)


def text_measure(graph: Any, params: Params, frozen: Params, batch: Batch) -> dict[str, Array]:
    """Summed NLL with the right media and, where there are media, with other rows' media."""
    model = nnx.merge(graph, merge_trees(params, frozen))
    if batch.media.shape[1] == 0:
        nll, count = _next_token(model, batch)
        return {"nll": nll, "count": count}
    features = model.encode(batch.media)
    shown = [(jnp.roll(features, n, axis=0), jnp.roll(batch.frames, n, axis=0)) for n in (0, 1)]

    def nll_of(media: tuple[Array, Array]) -> tuple[Array, Array]:
        other = dataclasses.replace(batch, media=media[0], frames=media[1])
        return _next_token(model, other)

    # A loop of two rather than two calls: half as much to compile.
    (nll, shuffled), count = lax.map(nll_of, jax.tree.map(lambda *pair: jnp.stack(pair), *shown))
    return {"nll": nll, "count": count[0], "shuffled_nll": shuffled}


def _contrastive_embeddings(
    graph: Any, params: Params, frozen: Params, batch: Batch, key: Array | None
) -> tuple[Any, Array, Array]:
    model = nnx.merge(graph, merge_trees(params, frozen))
    images = model.embed_images(batch.media[:, 0, 0], key)
    return model, images, model.embed_texts(batch.tokens, batch.positions)


def contrastive_loss(
    graph: Any, params: Params, frozen: Params, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """The contrastive loss of the batch's pairs."""
    model, images, texts = _contrastive_embeddings(graph, params, frozen, batch, key)
    return model.loss(images, texts)


def contrastive_measure(
    graph: Any, params: Params, frozen: Params, batch: Batch
) -> dict[str, Array]:
    """Sums over pairs, so that batches add up: the mean loss times B."""
    model, images, texts = _contrastive_embeddings(graph, params, frozen, batch, None)
    loss, aux = model.loss(images, texts)
    pairs = jnp.asarray(images.shape[0], jnp.float32)
    return {"nll": loss * pairs, "count": pairs, "retrieval": aux["retrieval"] * pairs}


def gates(params: Params) -> dict[str, Array]:
    """|tanh| of every gated layer's two gates."""
    layers = params.get("xattn", {})
    return {
        f"{kind}/{i}": jnp.abs(jnp.tanh(layers[kind][i]))
        for kind in ("gate_attention", "gate_dense")
        if kind in layers
        for i in range(layers[kind].shape[0])
    }
