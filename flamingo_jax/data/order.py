"""The endless order of a dataset's documents: each once an epoch, shuffled anew each time."""

from __future__ import annotations

import functools
from typing import Any

import grain
import numpy as np

from flamingo_jax.data.randomness import generator, seed32

# Grain shuffles by walking through 2^16 places until it meets one below the length, which takes
# a few steps at most from here on, and a millisecond a document at a length of 20.
_SMALL = 1 << 14


def endless(count: int, seed: int, name: str, shuffled: bool) -> grain.MapDataset:
    """A dataset without end whose element i is the index of a document, read in any order.

    Args:
      count: how many documents there are.
      seed: the run's.
      name: the dataset's.
      shuffled: otherwise 0, 1, … count - 1, 0, 1, …
    """
    documents = grain.MapDataset.range(count)
    if shuffled and count < _SMALL:
        documents = _Permuted(documents, seed, name)
    elif shuffled:
        documents = documents.seed(seed32("order", seed, name)).shuffle()
    return documents.repeat(None)


class _Permuted(grain.MapDataset):
    """A permutation for each epoch, written out."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, seed: int, name: str) -> None:
        super().__init__(parent)

        @functools.lru_cache(maxsize=4)
        def permutation(epoch: int) -> np.ndarray:
            return generator("order", seed, name, epoch).permutation(len(parent))

        self._permutation = permutation

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, len(self))
        return self._parent[int(self._permutation(epoch)[place])]
