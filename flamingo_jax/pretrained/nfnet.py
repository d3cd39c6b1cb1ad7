"""NFNets in timm's format: the dm_nfnet_* models, which are the paper's authors' own weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.model.nfnet import NFNetConfig, quad_stem
from flamingo_jax.pretrained.table import CHANNELS, CONV, LINEAR, POINTWISE, Row, Table

ONLY = {
    "stem_type": "deep_quad",
    "attn_layer": "se",
    "attn_gain": 2.0,
    "width_factor": 1.0,
    "gamma_in_act": True,
    "same_padding": True,
    "skipinit": True,
    "reg": False,
}
"""Options of timm's NfCfg that have only one value here: that of dm_nfnet_*."""

BLOCK = {
    "conv1": "conv0",
    "conv2": "conv1",
    "conv2b": "conv1b",
    "conv3": "conv2",
    "downsample.conv": "shortcut",
}
"""timm's convolutions of a block, and ours."""


def config(cfg: Mapping[str, Any], classes: int = 0) -> NFNetConfig:
    """timm's NfCfg, as a dict, → ours.

    Args:
      cfg: its fields.
      classes: of the classifier; 0 = none.

    Raises:
      InputError: for an option that is not dm_nfnet's.
    """
    for field, value in ONLY.items():
        if cfg.get(field, value) != value:
            raise InputError(
                f"timm's option {field}={cfg[field]!r} is not supported; dm_nfnet_* have {value!r}"
            )
    if cfg["act_layer"] not in ("gelu", "relu", "silu"):
        raise InputError(f"timm's act_layer={cfg['act_layer']!r} is not one of gelu, relu, silu")
    stages = len(cfg["channels"])
    return NFNetConfig(
        widths=tuple(cfg["channels"]),
        depths=tuple(cfg["depths"]),
        strides=(1, *(2,) * (stages - 1)),
        stem=quad_stem(cfg["stem_chs"] or cfg["channels"][0]),
        group_width=cfg["group_size"] or max(cfg["channels"]),
        bottleneck=cfg["bottle_ratio"],
        se_ratio=cfg["attn_kwargs"]["rd_ratio"],
        channel_multiple=cfg["ch_div"],
        alpha=cfg["alpha"],
        activation=cfg["act_layer"],
        ws_eps=cfg["std_conv_eps"],
        ws_form="add",
        extra_conv=cfg["extra_conv"],
        final_width=cfg["num_features"],
        classes=classes,
    )


def table(cfg: NFNetConfig) -> Table:
    """timm's names → the paths of `model.nfnet.NFNet`."""
    rows = [
        row for i in range(len(cfg.stem)) for row in _conv(f"stem.conv{i + 1}", f"stem/conv{i}")
    ]
    for i in range(len(cfg.widths)):
        rows += _block(f"stages.{i}.0", f"stage{i + 1}/first")
        rows += _block(f"stages.{i}.{{layer+1}}", f"stage{i + 1}/rest")
    rows += _conv("final_conv", "final")
    rows += [Row("head.fc.weight", "head/kernel", LINEAR), Row("head.fc.bias", "head/bias")]
    return tuple(rows)


def _conv(name: str, path: str) -> list[Row]:
    return [
        Row(f"{name}.weight", f"{path}/kernel", CONV),
        Row(f"{name}.gain", f"{path}/gain", CHANNELS),
        Row(f"{name}.bias", f"{path}/bias"),
    ]


def _block(name: str, path: str) -> list[Row]:
    rows = [row for a, b in BLOCK.items() for row in _conv(f"{name}.{a}", f"{path}/{b}")]
    for a, b in (("fc1", "down"), ("fc2", "up")):
        rows += [
            Row(f"{name}.attn_last.{a}.weight", f"{path}/excite/{b}/kernel", POINTWISE),
            Row(f"{name}.attn_last.{a}.bias", f"{path}/excite/{b}/bias"),
        ]
    return [*rows, Row(f"{name}.skipinit_gain", f"{path}/skip_gain")]
