"""How a decoder knows the order of its tokens: rotary and Transformer-XL relative positions."""

from __future__ import annotations

import jax.numpy as jnp

from flamingo_jax.shapes import Array


def rotary_angles(positions: Array, width: int, base: float) -> tuple[Array, Array]:
    """Cosines and sines of rotary embeddings (Su et al. 2021, §3.4.2), half-split as LLaMA's.

    Args:
      positions: i32[B, T]; padding (-1) counts as 0, it is masked anyway.
      width: H, even.
      base: 10,000 in the paper.

    Returns:
      cos, sin: f32[B, T, 1, H/2].
    """
    inverse = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.maximum(positions, 0).astype(jnp.float32)[..., None] * inverse
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates the pairs (x[i], x[i + H/2]) of [B, T, N, H] by the angles; f32 inside."""
    cos, sin = angles
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def sinusoids(distances: Array, width: int) -> Array:
    """Sinusoidal encodings of distances (Dai et al. 2019, §3.3): i32[S] → f32[S, width]."""
    inverse = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances.astype(jnp.float32)[:, None] * inverse
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def descending_distances(queries: int, keys: int, offset: Array | int) -> Array:
    """Distances from the last query (slot offset + queries - 1) to slots -1, 0, 1, …: i32[S + 1].

    No slot -1 is there: it is the column that `relative_shift` takes away. Slots beyond the last
    query are masked for every query and get distance 0.
    """
    return jnp.maximum(offset + queries - jnp.arange(keys + 1), 0)


def relative_shift(scores: Array) -> Array:
    """Turns scores by distance into scores by key (Dai et al. 2019, appendix B).

    Args:
      scores: [B, N, T, S + 1]; column j of row t belongs to the j-th entry of
        `descending_distances`, that is, to a distance from the LAST query. The column more is
        another distance's product instead of zeros put before all: those are a pass over memory.

    Returns:
      [B, N, T, S]; column s of row t belongs to the distance between query t and key s. Columns of
      keys after the query hold other rows' scores: they must be masked.
    """
    B, N, T, columns = scores.shape
    return scores.reshape(B, N, columns, T)[:, :, 1:].reshape(B, N, T, columns - 1)
