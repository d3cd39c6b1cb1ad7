"""lucidrains' flamingo-pytorch: OpenFlamingo's layers, with embeddings of a medium's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_jax.model.resampler import ResamplerConfig
from flamingo_jax.model.xattn import XattnConfig
from flamingo_jax.pretrained import open_flamingo
from flamingo_jax.pretrained.table import ROWS, Row, Table


def resampler_config(fields: Mapping[str, Any]) -> ResamplerConfig:
    """The arguments of the peer's PerceiverResampler → ours."""
    media = fields.get("num_media_embeds", 4)
    return open_flamingo.resampler_config({**fields, "max_num_media": media})


def xattn_config(fields: Mapping[str, Any]) -> XattnConfig:
    """The arguments of the peer's GatedCrossAttentionBlock → ours; media are as wide as text."""
    return open_flamingo.xattn_config({"dim_visual": fields["dim"], **fields})


def resampler_table(name: str = "perceiver_resampler.", path: str = "") -> Table:
    """Rows of a resampler: `name` is put before the foreign names, `path` before ours."""
    rows = open_flamingo.resampler_table(name, path)
    own = (Row(f"{name}media_pos_emb", f"{path}media", ROWS),)
    return own + tuple(row for row in rows if not row.name.endswith("_embs"))


gated_table = open_flamingo.gated_table
