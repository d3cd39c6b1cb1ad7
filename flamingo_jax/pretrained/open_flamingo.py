"""OpenFlamingo's resampler and gated layers: names, shapes, and one trait of its attention.

Its layers are those of flamingo-pytorch with a width of the media of their own; both have layer
norms with eps 1e-5, exact GELU, a fused `to_kv` and no norm on the media of the gated layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flamingo_jax.model.masks import media_mask
from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.pretrained.table import HALVES, LINEAR, ROWS, SCALAR, Row, Table, norm_rows
from flamingo_jax.shapes import Array


def resampler_config(fields: Mapping[str, Any]) -> ResamplerConfig:
    """The arguments of the peer's PerceiverResampler → ours; its defaults for those left out."""
    width = fields["dim"]
    return ResamplerConfig(
        depth=fields.get("depth", 6),
        latents=fields.get("num_latents", 64),
        width=width,
        heads=fields.get("heads", 8),
        head_dim=fields.get("dim_head", 64),
        hidden=width * fields.get("ff_mult", 4),
        activation="gelu",
        in_width=width,
        project=False,
        max_frames=fields.get("max_num_frames") or 0,
        max_media=fields.get("max_num_media") or 0,
    )


def xattn_config(fields: Mapping[str, Any]) -> XattnConfig:
    """The arguments of the peer's GatedCrossAttentionBlock → ours."""
    width = fields["dim"]
    return XattnConfig(
        width=width,
        media_width=fields["dim_visual"],
        heads=fields.get("heads", 8),
        head_dim=fields.get("dim_head", 64),
        hidden=width * fields.get("ff_mult", 4),
        activation="gelu",
        media_norm=False,
    )


def resampler_table(name: str = "perceiver.", path: str = "") -> Table:
    """Rows of a resampler: `name` is put before the foreign names, `path` before ours."""
    layer, ours = f"{name}layers.{{layer}}.", f"{path}layers/"
    return (
        Row(f"{name}latents", f"{path}latents"),
        Row(f"{name}frame_embs", f"{path}time"),
        Row(f"{name}media_time_embs", f"{path}media", ROWS),
        *norm_rows(f"{layer}0.norm_media", f"{ours}norm_media"),
        *norm_rows(f"{layer}0.norm_latents", f"{ours}norm_latents"),
        *attention_rows(f"{layer}0.", ours),
        *dense_rows(f"{layer}1.", ours),
        *norm_rows(f"{name}norm", f"{path}norm"),
    )


def gated_table(name: str, path: str = "") -> Table:
    """Rows of gated layers: one, or with `{layer}` in `name` a stack."""
    return (
        Row(f"{name}attn_gate", f"{path}gate_attention", SCALAR),
        Row(f"{name}ff_gate", f"{path}gate_dense", SCALAR),
        *masked_table(f"{name}attn.", path),
        *dense_rows(f"{name}ff.", path),
    )


def masked_table(name: str, path: str = "") -> Table:
    """Rows of the attention of a gated layer alone."""
    return (*norm_rows(f"{name}norm", f"{path}norm_query"), *attention_rows(name, path))


def attention_rows(name: str, path: str) -> Table:
    """Queries, keys and values, output."""
    return (
        Row(f"{name}to_q.weight", f"{path}query/kernel", LINEAR),
        Row(f"{name}to_kv.weight", (f"{path}key/kernel", f"{path}value/kernel"), HALVES),
        Row(f"{name}to_out.weight", f"{path}out/kernel", LINEAR),
    )


def dense_rows(name: str, path: str) -> Table:
    """A norm and a feed-forward layer."""
    return (
        *norm_rows(f"{name}0", f"{path}norm_dense"),
        Row(f"{name}1.weight", f"{path}dense/up/kernel", LINEAR),
        Row(f"{name}3.weight", f"{path}dense/down/kernel", LINEAR),
    )


def peer_mask(
    media_of_token: Array, frames: Array, latents: int, attend: str = "one"
) -> tuple[Array, Array]:
    """The masks that reproduce what the peer does for tokens that may see nothing.

    Where all of a row is masked, our attention gives exactly zero. The peer's softmax over equally
    low scores gives the mean of all values instead; it is set to zero only for tokens before the
    first medium, and that only with `attend="one"`. So its attention is uniform over all media for

    - a token that names a medium which is not there ("one"), and
    - a token before the first medium ("upto").

    Pages with no more `<image>`s than media have none of the first kind, and the peer masks the
    second from its loss: use `media_mask` unless these very numbers are needed.

    Args:
      media_of_token: i32[B, T].
      frames: i32[B, M].
      latents: R.
      attend: "one" or "upto".

    Returns:
      mask bool[B, 1, T, M·R] and uniform bool[B, T], both for `GatedCrossAttention`.
    """
    mask = media_mask(media_of_token, frames, latents, attend)
    uniform = ~jnp.any(mask, axis=(1, 3))
    if attend == "one":
        uniform = uniform & (media_of_token > 0)
    return mask | uniform[:, None, :, None], uniform
