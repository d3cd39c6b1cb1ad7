"""How large a model is and what it costs: parameters by part, FLOPs of the two passes.

Only matrix products and convolutions are counted, a multiplication and an addition each (Hoffmann
et al. 2022, appendix F, less its embedding lookup, softmax and reductions). Attention is counted
over all pairs, as it is computed, masked ones included. The backward pass of a product costs twice
its forward where both operands need a gradient, once where one of them is frozen or a constant:
6·P FLOPs a token for P trained weights, 4·P for frozen ones that a gradient passes through, 2·P for
frozen ones before all that is trained (the encoder). What rematerialisation computes again is left
out: these are model FLOPs, of which utilisation is told (PaLM, Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import dataclasses
import math
import re

from flamingo_jax.model.flamingo import FlamingoConfig
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.segments import xattn_layers
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.shapes import Params, flatten_paths

LANGUAGE = "language model"
VISION = "vision encoder"
GATED = "gated cross-attention"
RESAMPLER = "resampler"
NEW = "new tokens"
TEXT = "text encoder"
JOINT = "joint space"

PARTS: tuple[tuple[str, str], ...] = (
    (LANGUAGE, r"^(language/|embed/table$|head/kernel$)"),
    (VISION, r"^vision/"),
    (GATED, r"^(xattn|project)/"),  # the projection of media to D is counted here: DECISIONS.md
    (RESAMPLER, r"^resampler/"),
    (NEW, r"^(embed|head)/new$"),
    (TEXT, r"^text/"),
    (JOINT, r"^((image|text)_projection/|logit_scale$)"),
)
"""(part, regex of its parameters' paths): Flamingo v2 Table 5's columns, and what it leaves out."""

TRAINED = frozenset({GATED, RESAMPLER, NEW})
"""What Flamingo trains."""


def part_of(path: str) -> str:
    """The part that a parameter belongs to.

    Raises:
      ValueError: for a path of no part.
    """
    for part, pattern in PARTS:
        if re.search(pattern, path):
            return part
    raise ValueError(f"no row of counts.PARTS matches the parameter {path!r}")


def parameters(tree: Params) -> dict[str, int]:
    """Numbers of parameters by part, in the order of `PARTS`; their sum is the total.

    Args:
      tree: parameters, or their shapes (`jax.eval_shape`).
    """
    found = dict.fromkeys((part for part, _ in PARTS), 0)
    for path, leaf in flatten_paths(tree).items():
        found[part_of(path)] += math.prod(leaf.shape)
    return {part: count for part, count in found.items() if count}


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of the two passes."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Of both passes."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.forward * times, self.backward * times)


def _product(rows: int, inner: int, out: int, gradients: int) -> Flops:
    """[rows, inner] · [inner, out], of whose operands so many (0, 1, 2) need a gradient."""
    forward = 2 * rows * inner * out
    return Flops(forward, gradients * forward)


def decoder(cfg: DecoderConfig, rows: int, length: int, *, trained: bool, new: bool) -> Flops:
    """The bare decoder with its head.

    Args:
      cfg: its shape.
      rows: B.
      length: T.
      trained: are its weights trained? If not, a gradient passes through them alone.
      new: are the rows of new tokens trained?
    """
    D, N, K, H, I, T = cfg.width, cfg.heads, cfg.kv, cfg.head_dim, cfg.hidden, length
    weight = 2 if trained else 1
    tokens = rows * T
    block = _product(tokens, D, 2 * N * H + 2 * K * H, weight)  # query, out; key, value
    block += _product(tokens, D, (3 if cfg.gated else 2) * I, weight)
    block += _product(tokens * N, H, 2 * T, 2)  # scores and values
    if cfg.positions == "xl":
        block += _product(tokens * N, H, T + 1, weight)
    # With a tied table the head's product is the same.
    head = _product(tokens, D, cfg.vocab, weight)
    head += _product(tokens, D, cfg.new_tokens, 2 if new else weight)
    return block * cfg.blocks + head + distances(cfg, T, trained=trained)


def distances(cfg: DecoderConfig, length: int, *, trained: bool) -> Flops:
    """The products of all blocks with encodings of distances: constants, the same for all rows."""
    if cfg.positions != "xl":
        return Flops()
    inner = cfg.heads * cfg.head_dim
    # One more than there are: see `positions.descending_distances`.
    return _product(length + 1, cfg.width, inner, 1 if trained else 0) * cfg.blocks


def flops_per_token(cfg: DecoderConfig, length: int, rows: int = 1) -> float:
    """Forward FLOPs of the decoder for each token of `rows` sequences of `length` tokens."""
    return decoder(cfg, rows, length, trained=False, new=False).forward / (rows * length)


def gated_layer(cfg: XattnConfig, rows: int, length: int, media: int) -> Flops:
    """One trained GATED XATTN-DENSE layer: `length` text tokens see `media` media tokens."""
    inner = cfg.heads * cfg.head_dim
    text = _product(rows * length, cfg.width, 2 * inner + 2 * cfg.hidden, 2)
    keys_values = _product(rows * media, cfg.media_width, 2 * inner, 2)
    return text + keys_values + _product(rows * length * inner, 1, 2 * media, 2)


def resampler(cfg: ResamplerConfig, media: int, features: int, *, into: bool = False) -> Flops:
    """The trained resampler.

    Args:
      cfg: its shape.
      media: how many images or clips.
      features: F · P, of one of them.
      into: does a gradient go on into the features (a trained encoder)?
    """
    E, R, inner = cfg.width, cfg.latents, cfg.heads * cfg.head_dim
    layer = _product(media * R, E, 2 * inner + 2 * cfg.hidden, 2)
    layer += _product(media * (features + R), E, 2 * inner, 2)
    layer += _product(media * R * inner, 1, 2 * (features + R), 2)
    project = _product(media * features, cfg.in_width, E, 2 if into else 1)
    return layer * cfg.depth + (project if cfg.project else Flops())


def flamingo(
    cfg: FlamingoConfig,
    *,
    rows: int,
    length: int,
    media: int,
    frames: int,
    image_size: int,
    cached: bool = False,
    trained: frozenset[str] = TRAINED,
) -> dict[str, Flops]:
    """One training step on a batch of one dataset, by part; the head is in the language model's.

    Args:
      cfg: the whole model.
      rows: B.
      length: T.
      media: M; absent ones are computed too.
      frames: F.
      image_size: of a side, in pixels.
      cached: are the vision features given rather than computed?
      trained: parts that are trained; the gated layers and the resampler must be among them.

    Raises:
      ValueError: if the gated layers or the resampler are not trained.
    """
    train_language, train_new = LANGUAGE in trained, NEW in trained
    found = {LANGUAGE: decoder(cfg.language, rows, length, trained=train_language, new=train_new)}
    if cfg.vision is None or cfg.resampler is None or cfg.xattn is None:
        return found
    if not {GATED, RESAMPLER} <= trained:
        raise ValueError("FLOPs are known where gated layers and resampler are trained")
    R, E = cfg.resampler.latents, cfg.resampler.width
    features = frames * cfg.vision.features(image_size)
    pictures = 0 if cached else rows * media * frames
    see = cfg.vision.flops(image_size) * pictures
    into = VISION in trained and not cached
    found[VISION] = Flops(see, 2 * see if into else 0)
    found[RESAMPLER] = resampler(cfg.resampler, rows * media, features, into=into)
    found[GATED] = gated_layer(cfg.xattn, rows, length, media * R) * xattn_layers(cfg.segments)
    if cfg.project:
        found[GATED] += _product(rows * media * R, E, cfg.language.width, 2)
    return found
