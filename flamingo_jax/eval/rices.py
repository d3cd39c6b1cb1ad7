"""RICES: the shots most like the query (Yang et al. 2021; Flamingo v1, §4.2 and C.3).

Support and queries are features of the frozen model, unit vectors whose product is the cosine:

- "rices": of pictures and clips, by the vision encoder, averaged over positions and frames;
- "rices_text": of questions with their context, by the language model's last residual stream,
  averaged over tokens;
- "rices_both": the mean of both cosines.

The search is exact: a product of matrices, some queries at a time. Features are computed once and
kept in a folder, a hundred or so to a file, under a digest of the encoder's weights and of what was
encoded. Processes that share the folder begin at different places and take what others have made
already: each encodes a share, none waits for another, and a kill loses no finished file.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from flamingo_jax.data.prompt import Video
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import Example, Stored

RANDOM, VISION, TEXT, BOTH = "random", "rices", "rices_text", "rices_both"
SELECTIONS = (RANDOM, VISION, TEXT, BOTH)
"""How shots are found."""

ENCODED = 64
"""Media held at once."""

KEPT = 128
"""Features of a file."""

SOUGHT = 1024
"""Queries whose cosines with all of the support are held at once."""


class Encoder(Protocol):
    """What features are made by."""

    def embed(self, images: Sequence[Any]) -> np.ndarray:
        """Pictures and clips → f32[n, E]."""
        ...

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → f32[n, D]."""
        ...

    def digest(self, part: str) -> str:
        """A digest of the weights below a path."""
        ...


def unit(features: np.ndarray) -> np.ndarray:
    """f32[n, E] → the same directions, of length 1; zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def nearest(queries: np.ndarray, support: np.ndarray, count: int) -> np.ndarray:
    """The places in the support that are most like each query, the most similar first.

    Args:
      queries: unit vectors f32[Q, E].
      support: unit vectors f32[n, E].
      count: how many of each; n at most.

    Returns:
      i32[Q, count]; of equal ones the first.
    """
    return _nearest(lambda part: queries[part] @ support.T, len(queries), len(support), count)


def _nearest(
    cosines: Callable[[slice], np.ndarray], queries: int, support: int, count: int
) -> np.ndarray:
    count = min(count, support)
    found = np.zeros((queries, count), np.int32)
    for start in range(0, queries, SOUGHT):
        rows = cosines(slice(start, start + SOUGHT))
        # Rounded: equal media have cosines that differ in the last bits, whatever the batch.
        found[start : start + SOUGHT] = np.argsort(-rows.round(5), axis=1, kind="stable")[:, :count]
    return found


class Finder:
    """Finds neighbours in one support."""

    def __init__(
        self,
        encoder: Encoder,
        prepare: Callable[[Example], Any],
        cache: pathlib.Path | None = None,
        begin: float = 0.0,
    ):
        """Takes what encodes.

        Args:
          encoder: the model.
          prepare: an example's medium as the encoder takes it.
          cache: a folder for features; None = they are not kept.
          begin: where to begin, in [0, 1) of the examples; other processes begin elsewhere.
        """
        self._encoder, self._prepare, self._cache = encoder, prepare, cache
        self._begin = begin

    def neighbours(
        self, selection: str, queries: Sequence[Example], support: Sequence[Example], count: int
    ) -> np.ndarray:
        """i32[queries, count], places in the support, the most similar first.

        Raises:
          InputError: for another selection, or examples without what it goes by.
        """
        if selection not in (VISION, TEXT, BOTH):
            raise InputError(f"there is no selection {selection!r}; {', '.join(SELECTIONS)}")
        makers = {VISION: (self._media,), TEXT: (self._texts,), BOTH: (self._media, self._texts)}
        pairs = [(maker(queries), maker(support)) for maker in makers[selection]]

        def cosines(part: slice) -> np.ndarray:
            total = sum(asked[part] @ shown.T for asked, shown in pairs)
            return np.asarray(total) / len(pairs)

        return _nearest(cosines, len(queries), len(support), count)

    def _media(self, examples: Sequence[Example]) -> np.ndarray:
        for example in examples:
            if example.medium is None:
                raise InputError(
                    f"{example.key!r} has neither picture nor clip to find its like by; "
                    f"take {RANDOM} or {TEXT}"
                )

        def encode(part: slice) -> np.ndarray:
            some, found = examples[part], []
            for start in range(0, len(some), ENCODED):
                media = [self._prepare(one) for one in some[start : start + ENCODED]]
                found.append(self._encoder.embed(media))
            return np.concatenate(found)

        return self._features("vision", [_of_medium(example) for example in examples], encode)

    def _texts(self, examples: Sequence[Example]) -> np.ndarray:
        texts = [f"{example.context} {example.question}".strip() for example in examples]
        if not all(texts):
            raise InputError(
                f"{examples[texts.index('')].key!r} has no question to find its like by; "
                f"take {RANDOM} or {VISION}"
            )
        return self._features("text", texts, lambda part: self._encoder.embed_text(texts[part]))

    def _features(
        self, kind: str, names: Sequence[str], encode: Callable[[slice], np.ndarray]
    ) -> np.ndarray:
        """Unit vectors f32[names, E], a file of them after another."""
        weights = self._encoder.digest("vision" if kind == "vision" else "")
        parts = [slice(start, start + KEPT) for start in range(0, len(names), KEPT)]
        first = int(self._begin * len(parts))
        found: dict[int, np.ndarray] = {}
        for place in [*range(first, len(parts)), *range(first)]:
            part = parts[place]
            path = None if self._cache is None else self._cache / _file(kind, weights, names[part])
            known = None if path is None else _read(path, len(names[part]))
            if known is None:
                known = unit(encode(part).astype(np.float32))
                if path is not None:
                    _write(path, known)
            found[place] = known
        return np.concatenate([found[place] for place in range(len(parts))])


def _file(kind: str, weights: str, names: Sequence[str]) -> str:
    """The name of the file of these features."""
    digest = hashlib.blake2b(weights.encode(), digest_size=16)
    for name in names:
        digest.update(name.encode() + b"\0")
    return f"{kind}-{digest.hexdigest()}.npy"


def _write(path: pathlib.Path, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines, whose numbers may be the same, write side by side.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.save(file, features)
    os.replace(file.name, path)


def _read(path: pathlib.Path, rows: int) -> np.ndarray | None:
    """Features that were kept; None if there are none, or not all of them."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == rows else None


def _of_medium(example: Example) -> str:
    """What tells a medium from others: its file as it is now, and the part that is shown."""
    medium = example.medium
    if isinstance(medium, Stored):
        return f"{example.key} {medium.index} {medium.field}"
    part = ""
    if isinstance(medium, Video):
        part = f"{medium.start} {medium.end}"
        medium = pathlib.Path(medium.path)
    assert medium is not None
    try:
        about = medium.stat()
    except OSError as error:
        raise InputError(f"the medium of {example.key!r}: {error}") from error
    return f"{medium} {about.st_size} {about.st_mtime_ns} {part}"
