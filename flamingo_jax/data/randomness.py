"""Randomness that is a pure function of names and numbers, so that a row can be made anywhere."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose whole stream is decided by `key`, on any machine and in any thread.

    Philox is counter-based: distinct 128-bit keys give independent streams (Salmon et al., 2011),
    so a hash of the key needs no further mixing.
    """
    return np.random.Generator(np.random.Philox(key=_hash(key, 16)))


def seed32(*key: int | str) -> int:
    """A 32-bit seed decided by `key`, for what takes no more than that."""
    return _hash(key, 4)


def _hash(key: tuple[int | str, ...], size: int) -> int:
    # Integers of NumPy print differently from Python's, hence int().
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "little")
