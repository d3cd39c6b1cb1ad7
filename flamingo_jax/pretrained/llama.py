"""LLaMA's kind in the format of transformers' LlamaForCausalLM: LLaMA, SmolLM2, and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.model.language import DecoderConfig
from flamingo_jax.pretrained.table import DROP, LINEAR, Row, Table, convert
from flamingo_jax.shapes import Params, flatten_paths, unflatten_paths

ONLY = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
"""Fields of its config.json, and the values that our decoder computes."""

NEW = ("embed/new", "head/new")
"""Rows of tokens beyond the vocabulary: the published weights have none, they stay as they are."""


def config(fields: Mapping[str, Any], new_tokens: int = 0) -> DecoderConfig:
    """A LlamaForCausalLM's config.json → ours.

    Args:
      fields: its fields.
      new_tokens: W, rows to be added beyond the vocabulary.

    Raises:
      InputError: for a field whose value our decoder does not compute.
    """
    for field, values in ONLY.items():
        if fields.get(field, values[0]) not in values:
            raise InputError(
                f"the language model's config.json has {field}={fields[field]!r}; supported is "
                f"{' or '.join(repr(value) for value in values)}"
            )
    rope = fields.get("rope_parameters") or {}
    heads = fields["num_attention_heads"]
    return DecoderConfig(
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        blocks=fields["num_hidden_layers"],
        heads=heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        hidden=fields["intermediate_size"],
        kv_heads=fields.get("num_key_value_heads") or heads,
        norm="rms",
        norm_eps=fields["rms_norm_eps"],
        positions="rotary",
        rotary_base=fields.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        activation="silu",
        gated=True,
        tied=fields.get("tie_word_embeddings", False),
        new_tokens=new_tokens,
    )


def table(cfg: DecoderConfig) -> Table:
    """Its names → the paths of a `model.flamingo.Flamingo`.

    A tied head may be in the file although it is the embedding's own array: it is left out.
    """
    layer, ours = "model.layers.{layer}.", "language/blocks/"
    linears = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "out",
        "mlp.gate_proj": "dense/gate",
        "mlp.up_proj": "dense/up",
        "mlp.down_proj": "dense/down",
    }
    head = (
        Row("lm_head.weight", (), DROP)
        if cfg.tied
        else Row("lm_head.weight", "head/kernel", LINEAR)
    )
    return (
        Row("model.embed_tokens.weight", "embed/table"),
        Row(f"{layer}input_layernorm.weight", f"{ours}norm_attention/scale"),
        Row(f"{layer}post_attention_layernorm.weight", f"{ours}norm_dense/scale"),
        *(Row(f"{layer}{a}.weight", f"{ours}{b}/kernel", LINEAR) for a, b in linears.items()),
        Row(f"{layer}self_attn.rotary_emb.inv_freq", (), DROP),
        Row("model.norm.weight", "language/norm/scale"),
        head,
    )


def language_params(foreign: Mapping[str, Any], cfg: DecoderConfig, abstract: Params) -> Params:
    """Foreign weights → the decoder's part of `abstract`, a Flamingo's or a bare decoder's tree.

    Returns:
      language/…, embed/table and, where it is not tied, head/kernel; not the rows of new tokens.

    Raises:
      InputError: naming everything that does not fit.
    """
    parts = ("language/", "embed/", "head/")
    wanted = {
        path: leaf
        for path, leaf in flatten_paths(abstract).items()
        if path.startswith(parts) and path not in NEW
    }
    return convert(table(cfg), foreign, unflatten_paths(wanted))
