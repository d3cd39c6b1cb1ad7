"""One document as one row of a batch: a pure function of (seed, dataset, index)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from flamingo_jax.data import images, interleave, video
from flamingo_jax.data.augment import AugmentSpec, augment
from flamingo_jax.data.document import Document, Medium, Source
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.randomness import generator
from flamingo_jax.data.tokenizer import Tokenizer

LAYOUTS = ("page", "pair", "clip", "text", "contrastive")
TEXT_FIELDS = ("tokens", "positions", "media_of_token", "loss_mask")
"""Those of `interleave.Row` that a batch has."""
CLEAN = -1
"""The version of a medium that is not augmented; a clip's begins at its beginning."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How a dataset's documents become rows.

    Attributes:
      name: the dataset's name; its order and its draws go by it.
      layout: page, pair, clip, text or contrastive (see `interleave`).
      batch: B, over all hosts.
      length: T, tokens of a row.
      images: M, at most so many media a row.
      frames: F, frames of a medium.
      fps: frames a second that are taken of a clip.
      p_next: pages: probability that text is tied to the medium after it.
      next_layout: "kept", or "text_first" for such pages.
      leading_space: pairs, clips: probability of a space before the text.
      rules: pages, pairs, clips: what is closed by <EOC>, and what is a target of the loss.
      image_size: Y and X of a frame.
      resize: pad, crop or squash (see `images.decode`).
      augment: how media are augmented in training.
      versions: K augmented versions of each medium, the same at each visit; 0 = a fresh one.
    """

    name: str
    layout: str
    batch: int
    length: int
    images: int = 1
    frames: int = 1
    fps: float = 1.0
    p_next: float = 0.0
    next_layout: str = "kept"
    leading_space: float = 0.0
    rules: interleave.Rules = interleave.PAPER
    image_size: int = 64
    resize: str = "pad"
    augment: AugmentSpec = dataclasses.field(default_factory=AugmentSpec)
    versions: int = 0

    @property
    def media(self) -> int:
        """M of the batch: 0 where rows are text alone."""
        return 0 if self.layout == "text" else self.images


class Features(Protocol):
    """Cached vision features of a dataset's media."""

    @property
    def shape(self) -> tuple[int, int]:
        """(P, E), the features of one frame."""
        ...

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray:
        """bf16[f, P, E] of (medium's key, version), f ≤ F valid frames; KeyError if it has none."""
        ...


class Laid(NamedTuple):
    """A row without its media.

    Attributes:
      row: its tokens, and what goes with them.
      media: what it shows, in order.
      versions: of each; `CLEAN` where none is drawn.
    """

    row: interleave.Row
    media: list[Medium]
    versions: list[int]


def make_row(
    document: Document,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    seed: int,
    index: int,
    train: bool = True,
    features: Features | None = None,
) -> dict[str, np.ndarray]:
    """Makes a row of `shapes.Batch`, without its B: `lay_row`, then `show_media`.

    Args:
      document: what the row shows.
      spec: how.
      tokenizer: the language model's.
      seed: the run's.
      index: the row's place in the dataset's endless order; with the seed and the dataset's name
        it decides every draw: the window, p_next, the leading space, versions, augmentation.
      train: are media augmented and p_next and the leading space drawn? Windows always are.
      features: cached features instead of pixels.

    Returns:
      The fields of `shapes.Batch`: tokens, positions, media_of_token i32[T], loss_mask f32[T],
      frames i32[M], and media u8[M, F, Y, X, 3] or bf16[M, F, P, E].

    Raises:
      BadRecord: if the document does not fit the layout, or a medium cannot be decoded (or has no
        cached features).
    """
    laid = lay_row(document, spec, tokenizer, seed, index, train)
    media = empty_media(spec, features)
    frames = show_media(laid, spec, seed, index, media, train, features)
    found = {name: getattr(laid.row, name) for name in TEXT_FIELDS}
    return found | {"media": media, "frames": frames}


def lay_row(
    document: Document,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    seed: int,
    index: int,
    train: bool = True,
) -> Laid:
    """The part of `make_row` that opens no media; arguments and errors as there."""
    rng = generator("row", seed, spec.name, index)
    row, shown = _lay(document, spec, tokenizer, rng, train)
    versions = [CLEAN] * len(shown)
    if train and spec.versions:
        # One by one is faster than an array of so few.
        versions = [int(rng.integers(spec.versions)) for _ in shown]
    return Laid(row, shown, versions)


def show_media(
    laid: Laid,
    spec: DatasetSpec,
    seed: int,
    index: int,
    media: np.ndarray,
    train: bool = True,
    features: Features | None = None,
) -> np.ndarray:
    """The other part of `make_row`: fills an array with a row's media.

    Args:
      laid: the row.
      spec: how.
      seed: the run's.
      index: the row's.
      media: u8[M, F, Y, X, 3] or bf16[M, F, P, E], see `empty_media`; 0 where there is no medium or
        frame. Where this raises it holds anything.
      train: are media augmented?
      features: cached features instead of pixels.

    Returns:
      i32[M] valid frames of each medium.

    Raises:
      BadRecord: if a medium cannot be decoded, or has no cached features.
    """
    frames = np.zeros(spec.media, np.int32)
    whole = media if media.base is None else media.base
    for place, (medium, version) in enumerate(zip(laid.media, laid.versions, strict=True)):
        if features is not None:
            seen = _cached(features, medium.key, version)
        elif train and not spec.versions:
            drawn = medium.kind == "clip" or not spec.augment.identity
            rng = generator("fresh", seed, spec.name, index, place) if drawn else None
            seen = render(medium, spec, rng, media[place])
        else:
            seen = render_version(medium, spec, seed, version)
        frames[place] = len(seen)
        if seen.base is not whole:  # else it was written there
            media[place, : len(seen)] = seen
        if len(seen) < spec.frames:
            media[place, len(seen) :] = 0
    if len(laid.media) < spec.media:
        media[len(laid.media) :] = 0
    return frames


def _cached(features: Features, key: str, version: int) -> np.ndarray:
    try:
        return features[key, version]
    except KeyError as error:  # what could not be decoded has no features
        raise BadRecord("no cached features", f"{key} version {version}") from error


def empty_media(
    spec: DatasetSpec, features: Features | None = None, leading: tuple[int, ...] = ()
) -> np.ndarray:
    """An array for the media of a row, with further leading dims; it holds anything yet."""
    side, count = spec.image_size, spec.media
    if features is not None and count:
        shape = (*leading, count, spec.frames, *features.shape)
        return np.empty(shape, ml_dtypes.bfloat16)
    return np.empty((*leading, count, spec.frames, side, side, 3), np.uint8)


def _lay(
    document: Document,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    train: bool,
) -> tuple[interleave.Row, list[Medium]]:
    """The row's tokens and the media it shows."""
    draw_next, draw_space, draw_window = rng.random(), rng.random(), rng.random()
    media = [item for item in document.items if isinstance(item, Medium)]
    controls = controls_of(tokenizer)
    if spec.layout == "page":
        items = _page_items(document, tokenizer)
        following = train and draw_next < spec.p_next
        text_first = spec.next_layout == "text_first"
        strip = interleave.page(items, controls, following, text_first, spec.rules)
        row = interleave.row(strip, controls, spec.length, spec.images, draw_window, spec.rules)
        return row, [media[index] for index in row.media]
    text = "".join(item for item in document.items if isinstance(item, str))
    if not text:
        raise BadRecord("no text", document.key)
    if spec.layout == "text":
        strip = interleave.text(tokenizer.encode(text), controls)
        return interleave.row(strip, controls, spec.length, 0, draw_window), []
    if len(media) != 1:
        raise BadRecord("no medium" if not media else "more than one medium", document.key)
    if spec.layout == "contrastive":
        return interleave.contrastive(tokenizer.encode(text), controls, spec.length), media
    if train and draw_space < spec.leading_space:
        text = " " + text
    strip = interleave.page([0, tokenizer.encode(text)], controls, rules=spec.rules)
    return interleave.row(strip, controls, spec.length, 1, rules=spec.rules), media


def _page_items(document: Document, tokenizer: Tokenizer) -> list[interleave.Item]:
    items: list[interleave.Item] = []
    media = 0
    for item in document.items:
        if isinstance(item, Medium):
            items.append(media)
            media += 1
        else:
            items.append(tokenizer.encode(item))
    if not any(item != [] for item in items):
        raise BadRecord("empty document", document.key)
    return items


def controls_of(tokenizer: Tokenizer) -> interleave.Controls:
    """The control tokens' ids."""
    return interleave.Controls(tokenizer.bos, tokenizer.eos, tokenizer.eoc, tokenizer.image)


def render(
    medium: Medium,
    spec: DatasetSpec,
    rng: np.random.Generator | None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes and augments a medium.

    Args:
      medium: an image, or a clip of which frames are taken, `spec.fps` a second.
      spec: sizes and augmentation.
      rng: what augmentation and a clip's beginning are drawn from; None = neither is drawn.
      out: u8[F, Y, X, 3] that an image without augmentation may be written into.

    Returns:
      u8[f, Y, X, 3], f ≤ F valid frames.

    Raises:
      BadRecord: if the medium cannot be decoded.
    """
    try:
        if medium.kind == "clip":
            offset = 0.0 if rng is None else rng.random()
            size, resize = spec.image_size, spec.resize
            pixels = video.frames(medium.data, spec.frames, size, resize, spec.fps, offset)
        else:
            place = None if out is None or rng is not None else out[0]
            pixels = images.decode(medium.data, spec.image_size, spec.resize, out=place)[None]
    except BadRecord as error:
        raise BadRecord(error.reason, f"{medium.key}: {error.detail}") from error
    return pixels if rng is None else augment(pixels, spec.augment, rng)


def render_version(medium: Medium, spec: DatasetSpec, seed: int, version: int) -> np.ndarray:
    """One version of a medium, the same wherever the medium is met.

    Args:
      medium: an image or a clip.
      spec: sizes and augmentation.
      seed: the run's.
      version: 0…K-1, or `CLEAN`.

    Returns:
      u8[f, Y, X, 3], f ≤ F valid frames.

    Raises:
      BadRecord: if the medium cannot be decoded.
    """
    rng = None if version == CLEAN else generator("version", seed, medium.key, version)
    return render(medium, spec, rng)


def enumerate_media(source: Source, documents: int | None = None) -> Iterator[Medium]:
    """Yields every medium of a source once, by its key, in the order they are first met.

    A source that knows its media without reading every document has a method `media()`. Documents
    that cannot be read have none: whoever reads their rows is told so again.

    Args:
      source: the documents.
      documents: where all must be read, read about so many of them at most, from all over.
    """
    quick = getattr(source, "media", None)
    stride = max(len(source) // documents, 1) if documents else 1
    found = iter(quick()) if quick is not None else _items(source, stride)
    seen: set[str] = set()
    for medium in found:
        if isinstance(medium, Medium) and medium.key not in seen:
            seen.add(medium.key)
            yield medium


def _items(source: Source, stride: int) -> Iterator[str | Medium]:
    for index in range(0, len(source), stride):
        with contextlib.suppress(BadRecord):
            yield from source[index].items
