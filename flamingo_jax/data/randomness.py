"""Randomness that is a pure function of names and numbers, so that a row can be made anywhere."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose whole stream is decided by `key`, on any machine and in any thread.

    Philox is counter-based: distinct 128-bit keys give independent streams (Salmon et al., 2011),
    so a hash of the key needs no further mixing.
    """
    words: Any = _Key(_digest(key, 16))  # NumPy's stubs know no seeds but its own
    return np.random.Generator(np.random.Philox(words))


class _Key(ISeedSequence):
    """Philox's key itself: given as `key=`, it first gathers entropy that it does not use."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key's words, of which Philox takes two of 64 bits."""
        return self._words.astype(dtype, copy=False)[:n_words]


def seed32(*key: int | str) -> int:
    """A 32-bit seed decided by `key`, for what takes no more than that."""
    return int.from_bytes(_digest(key, 4), "little")


def _digest(key: tuple[int | str, ...], size: int) -> bytes:
    # Integers of NumPy print differently from Python's, hence int().
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
