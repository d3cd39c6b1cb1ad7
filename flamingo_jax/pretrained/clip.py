"""CLIP's vision towers: in transformers' format (CLIPModel, IDEFICS) and in open_clip's.

transformers' names stand behind `vision_model.` in a CLIPModel and `model.vision_model.` in
IDEFICS, open_clip's behind `visual.` in its CLIP and `vision_encoder.` in a whole OpenFlamingo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.model.vit import ViTConfig
from flamingo_jax.pretrained.table import (
    DROP,
    LINEAR,
    PATCHES,
    THIRDS,
    VECTORS,
    Row,
    Table,
    norm_rows,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of R, G, B in 0…1: what CLIP's pictures are normalised by (openai/CLIP, clip.py)."""
STD = (0.26862954, 0.26130258, 0.27577711)

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' `hidden_act`, and ours."""

OPEN_CLIP = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
"""Fields of open_clip's `vision_cfg` that are read; others change what we do not compute."""


def config(fields: Mapping[str, Any]) -> ViTConfig:
    """transformers' `vision_config` of a CLIPModel or of IDEFICS → ours, as OpenFlamingo reads it.

    Raises:
      InputError: for an activation that there is not.
    """
    act = fields.get("hidden_act", "quick_gelu")
    if act not in ACTIVATIONS:
        raise InputError(
            f"the vision tower's config has hidden_act={act!r}; supported is "
            f"{' or '.join(repr(name) for name in ACTIVATIONS)}"
        )
    return ViTConfig(
        image_size=fields["image_size"],
        patch=fields["patch_size"],
        width=fields["embed_dim"] if "embed_dim" in fields else fields["hidden_size"],
        blocks=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        hidden=fields["intermediate_size"],
        activation=ACTIVATIONS[act],
        norm_eps=fields.get("layer_norm_eps", 1e-5),
    )


def idefics_config(fields: Mapping[str, Any]) -> ViTConfig:
    """IDEFICS's `vision_config` → ours: it reads the class token too, before the last norm."""
    return dataclasses.replace(config({"hidden_act": "gelu", **fields}), class_feature=True)


def open_clip_config(
    fields: Mapping[str, Any], quick_gelu: bool, normed: bool = False
) -> ViTConfig:
    """open_clip's `vision_cfg` → ours.

    Args:
      fields: its fields.
      quick_gelu: of the model's config: True of OpenAI's weights, whatever the library's version.
      normed: do patch tokens pass the last norm? From open_clip 2.23 on, not before.

    Raises:
      InputError: for a field that is not read.
    """
    if unknown := sorted(set(fields) - set(OPEN_CLIP)):
        raise InputError(
            f"open_clip's vision_cfg has {unknown[0]}={fields[unknown[0]]!r}, which is not "
            f"supported; a plain ViT has {', '.join(OPEN_CLIP)}"
        )
    width = fields["width"]
    return ViTConfig(
        image_size=fields["image_size"],
        patch=fields["patch_size"],
        width=width,
        blocks=fields["layers"],
        heads=width // fields.get("head_width", 64),
        hidden=int(width * fields.get("mlp_ratio", 4.0)),
        activation="quick_gelu" if quick_gelu else "gelu",
        normed=normed,
    )


def table(name: str = "vision_model.", path: str = "") -> Table:
    """Rows of transformers' format: `name` is put before its names, `path` before ours."""
    layer, ours = f"{name}encoder.layers.{{layer}}.", f"{path}blocks/"
    linears = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "out",
        "mlp.fc1": "dense/up",
        "mlp.fc2": "dense/down",
    }
    return (
        Row(f"{name}embeddings.class_embedding", f"{path}class_token"),
        Row(f"{name}embeddings.patch_embedding.weight", f"{path}patches/kernel", PATCHES),
        Row(f"{name}embeddings.position_embedding.weight", f"{path}positions"),
        Row(f"{name}embeddings.position_ids", (), DROP),
        *norm_rows(f"{name}pre_layrnorm", f"{path}norm_in"),
        *norm_rows(f"{layer}layer_norm1", f"{ours}norm_attention"),
        *norm_rows(f"{layer}layer_norm2", f"{ours}norm_dense"),
        *(row for a, b in linears.items() for row in _linear(layer + a, ours + b)),
        *norm_rows(f"{name}post_layernorm", f"{path}norm_out"),
    )


def open_clip_table(name: str = "visual.", path: str = "") -> Table:
    """Rows of open_clip's format, whose queries, keys and values are one product."""
    layer, ours = f"{name}transformer.resblocks.{{layer}}.", f"{path}blocks/"
    parts = ("query", "key", "value")
    kernels, biases = (tuple(f"{ours}{p}/{kind}" for p in parts) for kind in ("kernel", "bias"))
    linears = {"attn.out_proj": "out", "mlp.c_fc": "dense/up", "mlp.c_proj": "dense/down"}
    return (
        Row(f"{name}class_embedding", f"{path}class_token"),
        Row(f"{name}conv1.weight", f"{path}patches/kernel", PATCHES),
        Row(f"{name}positional_embedding", f"{path}positions"),
        *norm_rows(f"{name}ln_pre", f"{path}norm_in"),
        *norm_rows(f"{layer}ln_1", f"{ours}norm_attention"),
        *norm_rows(f"{layer}ln_2", f"{ours}norm_dense"),
        Row(f"{layer}attn.in_proj_weight", kernels, THIRDS),
        Row(f"{layer}attn.in_proj_bias", biases, VECTORS),
        *(row for a, b in linears.items() for row in _linear(layer + a, ours + b)),
        *norm_rows(f"{name}ln_post", f"{path}norm_out"),
        Row(f"{name}proj", (), DROP),
    )


def _linear(name: str, path: str) -> Table:
    return (Row(f"{name}.weight", f"{path}/kernel", LINEAR), Row(f"{name}.bias", f"{path}/bias"))
