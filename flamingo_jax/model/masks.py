"""Which token may attend to what: pure functions of positions and `media_of_token`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from flamingo_jax.shapes import Array

ATTEND = ("one", "upto")
BLIND, UNSEEN = -1, -2
"""Segments of queries that see nothing, and of keys that nobody sees."""


@dataclasses.dataclass(frozen=True)
class Segments:
    """A mask in few numbers, as fused kernels take it: a query sees the keys of its own segment.

    Attributes:
      queries: i32[B, T]; `BLIND`, or a segment with at least one key that the query sees.
      keys: i32[B, S]; `UNSEEN`, or a segment.
      causal: of those keys, none that stands after the query (S = T).
    """

    queries: Array
    keys: Array
    causal: bool = False


@dataclasses.dataclass(frozen=True)
class Mask:
    """Who may attend to whom.

    Attributes:
      dense: bool, [B, 1, T, S] or broadcastable to it; True = may attend.
      segments: the same in few numbers, where it can be said so.
    """

    dense: Array
    segments: Segments | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `dense`."""
        return self.dense.shape


def make_causal(positions: Array) -> Mask:
    """`causal_mask` of i32[B, T], and its segments: one, of all but padding."""
    queries, keys = (jnp.where(positions >= 0, 0, no) for no in (BLIND, UNSEEN))
    return Mask(causal_mask(positions), Segments(queries, keys, causal=True))


def make_media(media_of_token: Array, frames: Array, latents: int, attend: str = "one") -> Mask:
    """`media_mask` of the same arguments; with "one" a medium and its tokens are a segment."""
    dense = media_mask(media_of_token, frames, latents, attend)
    M = frames.shape[1]
    if attend != "one" or M == 0:
        return Mask(dense)
    numbers = jnp.arange(1, M + 1)
    keys = jnp.repeat(jnp.where(frames > 0, numbers, UNSEEN), latents, axis=1)
    there = jnp.any(dense[:, 0], axis=-1)
    return Mask(dense, Segments(jnp.where(there, media_of_token, BLIND), keys))


def make_valid(valid: Array, queries: int) -> Mask:
    """bool[B, S] of keys that all of so many queries see; at least one must be True."""
    keys = jnp.where(valid, 0, UNSEEN)
    blank = jnp.zeros((valid.shape[0], queries), keys.dtype)
    return Mask(valid[:, None, None, :], Segments(blank, keys))


def causal_mask(positions: Array) -> Array:
    """Each token sees itself and what stands before it, padding excepted.

    With positions [-1, 0, 1, 2] (left padding), rows are queries and columns keys:

        0 0 0 0     padding sees nothing (its row is zero, not uniform)
        0 1 0 0
        0 1 1 0
        0 1 1 1

    Args:
      positions: i32[B, T], -1 at padding.

    Returns:
      bool[B, 1, T, T].
    """
    T = positions.shape[1]
    valid = positions >= 0
    order = jnp.tril(jnp.ones((T, T), bool))
    return (order[None] & valid[:, None, :] & valid[:, :, None])[:, None]


def cached_causal_mask(valid: Array, offset: Array, length: int) -> Array:
    """The causal mask of `length` new tokens written at slots offset, offset + 1, … of a cache.

    Args:
      valid: bool[B, S], the slots that hold a token, the new ones included.
      offset: i32[] slot of the first new token.
      length: T, the number of new tokens.

    Returns:
      bool[B, 1, T, S].
    """
    S = valid.shape[1]
    queries = offset + jnp.arange(length)
    order = jnp.arange(S)[None, :] <= queries[:, None]
    return (order[None] & valid[:, None, :])[:, None]


def media_mask(media_of_token: Array, frames: Array, latents: int, attend: str = "one") -> Array:
    """Each text token sees the latents of its medium (Flamingo §2.3, φ), or of all up to it.

    `<image>a cat<EOC><image>a dog` has media_of_token 1 1 1 1 2 2 2; the columns of one medium's
    latents are all alike:

        token   one    upto
        0       0 0    0 0      text before any image: a row of zeros
        1       1 0    1 0
        2       0 1    1 1

    A medium that is not there (frames = 0, or past the last) is seen by nobody.

    Args:
      media_of_token: i32[B, T], counted from 1; 0 = none.
      frames: i32[B, M] valid frames of each medium.
      latents: R, latents of one medium.
      attend: "one" or "upto".

    Returns:
      bool[B, 1, T, M·R].

    Raises:
      ValueError: if `attend` is neither.
    """
    if attend not in ATTEND:
        raise ValueError(f"attend is 'one' or 'upto', not {attend!r}")
    M = frames.shape[1]
    media = jnp.arange(1, M + 1)[None, None, :]
    of_token = media_of_token[:, :, None]
    sees = media == of_token if attend == "one" else (media <= of_token)
    sees = sees & (frames > 0)[:, None, :]
    return jnp.repeat(sees, latents, axis=2)[:, None]
