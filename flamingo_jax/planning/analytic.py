"""What a step must do at least, from shapes alone: model FLOPs, and the bytes of its state.

Model FLOPs are the products and convolutions of the two passes (`model.counts`), each weight
counted by the positions it is applied to: text tokens for the language model and the gated layers'
query, out and dense weights; M·R media tokens for their keys and values; features and latents for
the resampler's; pictures for the encoder. A trained weight costs 6 FLOPs a position, a frozen one
that a gradient passes through 4, a frozen encoder's 2; what has no gradient to pass on costs 2
less: the resampler's first product on a frozen encoder's features (4), the frozen product of the
language model's distance encodings (2), the encoder's first product on pixels. Attention's
pairs, 4·T·S FLOPs a row and unit of its width in the forward pass, are told apart, so that
utilisation can be told with or without them (PaLM, Chowdhery et al. 2022, appendix B). The backward
pass of attention is twice its forward, frozen or not: all its operands are activations.

The distance encodings' product is shared by all rows and datasets: that of the longest rows. With
several micro-batches it runs once for each; here it is counted once.

Not counted: embedding lookups, norms, activations, the optimizer, and what is computed again.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from flamingo_jax import assemble, offload
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.model import counts
from flamingo_jax.model.contrastive import ContrastiveConfig
from flamingo_jax.model.counts import Flops
from flamingo_jax.model.flamingo import FlamingoConfig
from flamingo_jax.model.segments import xattn_layers
from flamingo_jax.shapes import flatten_paths

NONE = Flops()


@dataclasses.dataclass(frozen=True)
class Work:
    """Model FLOPs of a step, over all devices.

    Attributes:
      weights: part of the model (`counts.PARTS`) → FLOPs of its products with weights.
      attention: part → FLOPs of attention's products of activations with one another.
      tokens: text tokens of the batches, padding included.
      images: pictures and frames of clips that the step sees, absent ones included.
    """

    weights: dict[str, Flops]
    attention: dict[str, Flops]
    tokens: int
    images: int

    @property
    def without_attention(self) -> int:
        """4·P·T for the frozen language model, 6·P·T for what is trained, 2·P for the encoder."""
        return sum(part.total for part in self.weights.values())

    @property
    def total(self) -> int:
        """With attention."""
        return self.without_attention + sum(part.total for part in self.attention.values())

    def __add__(self, other: Work) -> Work:
        return Work(
            _joined(self.weights, other.weights),
            _joined(self.attention, other.attention),
            self.tokens + other.tokens,
            self.images + other.images,
        )


def _joined(a: dict[str, Flops], b: dict[str, Flops]) -> dict[str, Flops]:
    return {part: a.get(part, NONE) + b.get(part, NONE) for part in a | b}


def work(
    c: Any, stage: assemble.Stage, vocabulary: assemble.Vocabulary, cached: bool = False
) -> Work:
    """Model FLOPs of one update of a stage, summed over its datasets.

    Args:
      c: the finished config.
      stage: as assembled of it.
      vocabulary: as it was assembled with.
      cached: are the vision features given rather than computed?

    Raises:
      ValueError: if the gated layers or the resampler are there and frozen.
    """
    trained = trained_parts(stage)
    total = Work({}, {}, 0, 0)
    for spec in stage.datasets.values():
        if stage.name == "contrastive":
            total += contrastive_work(assemble.contrastive_config(c, vocabulary), spec)
        else:
            total += flamingo_work(_shape(c, stage, vocabulary), spec, trained, cached)
    if stage.name != "contrastive":
        cfg = assemble.language_config(c, vocabulary)
        _, *shorter = sorted((spec.length for spec in stage.datasets.values()), reverse=True)
        for length in shorter:
            again = counts.distances(cfg, length, trained=counts.LANGUAGE in trained)
            one = total.weights[counts.LANGUAGE]
            one = Flops(one.forward - again.forward, one.backward - again.backward)
            total.weights[counts.LANGUAGE] = one
    return total


def has_work(stage: assemble.Stage) -> bool:
    """Whether `work` knows the stage: which gradients frozen layers that join take, it does not."""
    joined = {counts.GATED, counts.RESAMPLER}
    return stage.name != "flamingo" or joined <= trained_parts(stage)


def _shape(c: Any, stage: assemble.Stage, vocabulary: assemble.Vocabulary) -> FlamingoConfig:
    cfg = assemble.flamingo_config(c, vocabulary)
    if stage.name == "flamingo":
        return cfg
    language = dataclasses.replace(cfg.language, new_tokens=0)
    return FlamingoConfig(language, dtype=cfg.dtype)


def trained_parts(stage: assemble.Stage) -> frozenset[str]:
    """The parts of the model of which a matrix is trained."""
    trained = flatten_paths(stage.trainable).items()
    return frozenset(counts.part_of(path) for path, leaf in trained if len(leaf.shape) >= 2)


def flamingo_work(
    cfg: FlamingoConfig, spec: DatasetSpec, trained: frozenset[str], cached: bool = False
) -> Work:
    """Model FLOPs of one dataset's batch, through Flamingo or a bare language model.

    Args:
      cfg: the model.
      spec: the dataset's shapes.
      trained: parts that are trained.
      cached: are the vision features given?
    """
    sees = cfg.vision is not None
    media, frames = (spec.media, spec.frames) if sees else (0, 0)
    all_work = counts.flamingo(
        cfg,
        rows=spec.batch,
        length=spec.length,
        media=media,
        frames=frames,
        image_size=spec.image_size,
        cached=cached,
        trained=trained,
    )
    images = spec.batch * media * frames
    if cfg.vision is not None and counts.VISION in trained and not cached:
        seen, first = all_work[counts.VISION], cfg.vision.first_flops(spec.image_size)
        all_work[counts.VISION] = Flops(seen.forward, seen.backward - images * first)
    pairs = _attention(cfg, spec, trained, 0 if cached else images)
    weights = {
        part: Flops(
            flops.forward - pairs.get(part, NONE).forward,
            flops.backward - pairs.get(part, NONE).backward,
        )
        for part, flops in all_work.items()
    }
    return Work(weights, pairs, spec.batch * spec.length, images)


def _pairs(rows: int, queries: int, keys: int, width: int, backward: int = 2) -> Flops:
    """Scores and values: 2 products of `queries` and `keys` over N·H = `width`."""
    forward = 4 * rows * queries * keys * width
    return Flops(forward, backward * forward)


def _attention(
    cfg: FlamingoConfig, spec: DatasetSpec, trained: frozenset[str], seen: int
) -> dict[str, Flops]:
    """Attention's products of activations, by part; `seen` pictures go through the encoder."""
    c, B, T = cfg.language, spec.batch, spec.length
    width = c.heads * c.head_dim
    block = _pairs(B, T, T, width)
    if c.positions == "xl":
        # Half as many again: queries with distances (one more than there are keys), whose own side
        # has a gradient if trained.
        forward = 2 * B * T * (T + 1) * width
        block += Flops(forward, (2 if counts.LANGUAGE in trained else 1) * forward)
    found = {counts.LANGUAGE: block * c.blocks}
    if cfg.vision is None or cfg.resampler is None or cfg.xattn is None:
        return found
    r, x = cfg.resampler, cfg.xattn
    features = spec.frames * cfg.vision.features(spec.image_size)
    layer = _pairs(B * spec.media, r.latents, features + r.latents, r.heads * r.head_dim)
    found[counts.RESAMPLER] = layer * r.depth
    layer = _pairs(B, T, spec.media * r.latents, x.heads * x.head_dim)
    found[counts.GATED] = layer * xattn_layers(cfg.segments)
    forward = seen * cfg.vision.attention_flops(spec.image_size)
    if forward:
        found[counts.VISION] = Flops(forward, 2 * forward if counts.VISION in trained else 0)
    return found


def contrastive_work(cfg: ContrastiveConfig, spec: DatasetSpec) -> Work:
    """Model FLOPs of a batch of pairs through both towers, all of it trained."""
    B, T, text, vision = spec.batch, spec.length, cfg.text, cfg.vision
    pairs = {counts.TEXT: _pairs(B, T, T, text.width) * text.blocks}
    shown = B * vision.attention_flops(spec.image_size)
    if shown:
        pairs[counts.VISION] = Flops(shown, 2 * shown)
    see = B * vision.flops(spec.image_size) - shown
    weights = text.blocks * (4 * text.width**2 + 2 * text.width * text.hidden)
    read = 2 * B * T * weights
    # Both projections, and every picture with every text.
    joint = 2 * B * cfg.width * (vision.width + text.width + B)
    return Work(
        {
            counts.VISION: Flops(see, 2 * see - B * vision.first_flops(spec.image_size)),
            counts.TEXT: Flops(read, 2 * read),
            counts.JOINT: Flops(joint, 2 * joint),
        },
        pairs,
        B * T,
        B,
    )


def state_bytes(stage: assemble.Stage, media: tuple[int, ...] | None = None) -> dict[str, int]:
    """Bytes on each device by kind: what a compiled step's arguments must add up to.

    Args:
      stage: as assembled, whose shardings count.
      media: dims of a frame's cached features, (P, E); None = pixels.

    Returns:
      {"trainable", "moments", "frozen", "batch", "counters"}; the last are the optimizer's and the
      step's scalars.
    """
    moments, counters = 0, device_bytes(stage.state.step)
    for leaf in jax.tree.leaves(stage.state.opt):
        if leaf.shape:
            moments += device_bytes(leaf)
        else:
            counters += device_bytes(leaf)
    return {
        "trainable": device_bytes(stage.state.params),
        "moments": moments,
        "frozen": device_bytes(stage.frozen),
        "batch": device_bytes(stage.abstract_batches(media)),
        "counters": counters,
    }


def device_bytes(tree: Any) -> int:
    """Bytes of a device's shards of abstract arrays with shardings, those on the hosts left out."""
    return _shard_bytes(tree, on_host=False)


def host_bytes(tree: Any) -> int:
    """Bytes of a device's shards that lie on its host."""
    return _shard_bytes(tree, on_host=True)


def _shard_bytes(tree: Any, on_host: bool) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == offload.HOST) == on_host
    )
