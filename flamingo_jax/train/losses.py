"""What each kind of stage minimises and measures: functions of a graph, parameters and a batch.

`graph` is an NNX graph definition: `nnx.merge(graph, params)` is the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from flamingo_jax import offload
from flamingo_jax.shapes import Array, Batch, Params, merge_trees
from flamingo_jax.train import objective

Losses = tuple[dict[str, Array], dict[str, dict[str, Array]]]
"""{dataset: f32[]} to be weighted and summed, and {dataset: {name: f32[]}} to be logged."""


def text_losses(
    graph: Any,
    params: Params,
    frozen: Params,
    batches: dict[str, Batch],
    key: Array,
    counts: dict[str, Array] | None = None,
) -> Losses:
    """The mean NLL of each batch's targets (Flamingo eq. (2)), and their number.

    Of parts of batches, `counts` are the numbers of the whole batches' targets: losses add up.
    """
    del key
    model = nnx.merge(graph, merge_trees(params, frozen))
    found = dict(zip(batches, _next_tokens(model, list(batches.values())), strict=True))
    over = counts or {name: own for name, (_, own) in found.items()}
    losses = {name: nll / jnp.maximum(over[name], 1.0) for name, (nll, _) in found.items()}
    return losses, {name: {"tokens": own} for name, (_, own) in found.items()}


def encoded(
    graph: Any, params: Params, frozen: Params, batches: dict[str, Batch]
) -> dict[str, Batch]:
    """The batches with features for pixels: the frozen encoder sees all datasets' pictures at once.

    One pass has one program and full products, and no gradient goes into it. Weights that lie on
    the hosts are brought for it.
    """
    if any(batch.media.dtype == jnp.uint8 for batch in batches.values()):
        frozen = frozen | {"vision": offload.bring(frozen["vision"])}
    model = nnx.merge(graph, merge_trees(params, frozen))
    features = model.encode_all([batch.media for batch in batches.values()])
    pairs = zip(batches.items(), features, strict=True)
    return {name: dataclasses.replace(batch, media=media) for (name, batch), media in pairs}


def _next_tokens(model: Any, batches: Sequence[Batch]) -> list[tuple[Array, Array]]:
    """Summed NLL and number of targets of each batch, of a Flamingo or a bare language model."""
    head, chunk = model.head_weights(), model.cfg.loss_chunk
    return [
        objective.next_token(model.logit_parts, head, hidden, batch, chunk)
        for hidden, batch in zip(model.hidden_all(batches), batches, strict=True)
    ]


def text_measures(
    graph: Any, params: Params, frozen: Params, batches: dict[str, Batch]
) -> dict[str, dict[str, Array]]:
    """Summed NLL with the right media and, where there are media, with other rows' media."""
    model = nnx.merge(graph, merge_trees(params, frozen))
    given = list(batches.values())
    seeing = [batch.media.shape[1] > 0 for batch in given]
    if not any(seeing):
        return {
            name: {"nll": nll, "count": count}
            for name, (nll, count) in zip(batches, _next_tokens(model, given), strict=True)
        }
    media = zip(model.encode_all([b.media for b in given]), [b.frames for b in given], strict=True)
    shown = [tuple(jnp.stack([jnp.roll(a, 1, 0), a]) for a in pair) for pair in media]

    def nll_of(shown: Any) -> list[tuple[Array, Array]]:
        pairs = zip(given, shown, strict=True)
        return _next_tokens(
            model, [dataclasses.replace(b, media=m, frames=n) for b, (m, n) in pairs]
        )

    # A loop of two rather than two calls: half as much to compile.
    found = lax.map(nll_of, shown)
    sums = {}
    for name, sees, (nll, count) in zip(batches, seeing, found, strict=True):
        sums[name] = {"nll": nll[1], "count": count[1]}
        sums[name] |= {"shuffled_nll": nll[0]} if sees else {}
    return sums


def _contrastive_embeddings(
    graph: Any, params: Params, frozen: Params, batch: Batch, key: Array | None
) -> tuple[Any, Array, Array]:
    model = nnx.merge(graph, merge_trees(params, frozen))
    images = model.embed_images(batch.media[:, 0, 0], key)
    return model, images, model.embed_texts(batch.tokens, batch.positions)


def contrastive_losses(
    graph: Any, params: Params, frozen: Params, batches: dict[str, Batch], key: Array
) -> Losses:
    """The contrastive loss of each batch's pairs."""
    found = {}
    for place, (name, batch) in enumerate(batches.items()):
        own = jax.random.fold_in(key, place)
        model, images, texts = _contrastive_embeddings(graph, params, frozen, batch, own)
        found[name] = model.loss(images, texts)
    return {name: loss for name, (loss, _) in found.items()}, {
        k: aux for k, (_, aux) in found.items()
    }


def contrastive_measures(
    graph: Any, params: Params, frozen: Params, batches: dict[str, Batch]
) -> dict[str, dict[str, Array]]:
    """Sums over pairs, so that batches add up: the mean loss times B."""
    sums = {}
    for name, batch in batches.items():
        model, images, texts = _contrastive_embeddings(graph, params, frozen, batch, None)
        loss, aux = model.loss(images, texts)
        pairs = jnp.asarray(images.shape[0], jnp.float32)
        sums[name] = {"nll": loss * pairs, "count": pairs, "retrieval": aux["retrieval"] * pairs}
    return sums


def gates(params: Params) -> dict[str, Array]:
    """|tanh| of every gated layer's two gates."""
    layers = params.get("xattn", {})
    return {
        f"{kind}/{i}": jnp.abs(jnp.tanh(layers[kind][i]))
        for kind in ("gate_attention", "gate_dense")
        if kind in layers
        for i in range(layers[kind].shape[0])
    }
