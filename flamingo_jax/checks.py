"""What a finished config must fulfil: every complaint is one sentence naming the field."""

from __future__ import annotations

from typing import Any

from flamingo_jax.errors import InputError

Config = Any
"""A `ConfigDict`: its own annotations give a field every type that a field can have."""

STAGES = ("language", "contrastive", "flamingo")
LAYOUTS = ("page", "pair", "clip", "text", "contrastive")
SCHEDULES = ("constant", "cosine", "linear")

_CHOICES = {
    "tokenizer.kind": ("bytes", "sentencepiece", "tokenizers", "saved", "train"),
    "tokenizer.image": ("new", "text"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("plain", "fused"),
    "model.partial_sums": ("float32", "model"),
    "model.remat": ("none", "dots", "attention", "full"),
    "model.language.norm": ("rms", "layer"),
    "model.language.positions": ("xl", "rotary"),
    "model.vision.kind": ("nfnet", "vit"),
    "model.vision.dtype": ("float32", "bfloat16"),
    "model.vision.vit.activation": ("quick_gelu", "gelu", "gelu_tanh"),
    "model.contrastive.dtype": ("float32", "bfloat16"),
    "model.xattn.attend": ("one", "upto"),
    "mesh.frozen": ("sharded", "replicated"),
    "mesh.offload": ("none", "frozen"),
    "data.resize": ("pad", "crop", "squash", "pad:hamming", "crop:hamming", "squash:hamming"),
    "eval.split": ("test", "validation"),
}
_NOT_NEGATIVE = ("model.loss_chunk", "eval.every")
_POSITIVE = ("model.vision.image_size", "checkpoint.every", "checkpoint.keep", "eval.batch")
_STAGE_POSITIVE = ("steps", "log_every", "eval_batches", "micro_batches")


def stage_settings(c: Config, stage: str) -> Config:
    """The subtree of a stage: `train` for Flamingo, `pretrain.language`, `pretrain.contrastive`."""
    return c.train if stage == "flamingo" else c.pretrain[stage]


def check(c: Config, dataset_fields: set[str]) -> None:
    """Checks all fields, alone and against each other.

    Args:
      c: the config.
      dataset_fields: the fields that a dataset's row has.

    Raises:
      InputError: for the first that makes no sense.
    """
    if not c.stages:
        raise InputError(f"config.stages is empty; give one or more of {', '.join(STAGES)}")
    for stage in c.stages:
        if stage not in STAGES:
            raise InputError(
                f"config.stages names {stage!r}; a stage is one of {', '.join(STAGES)}"
            )
        settings = stage_settings(c, stage)
        where = "train" if stage == "flamingo" else f"pretrain.{stage}"
        for field in _STAGE_POSITIVE:
            if settings[field] < 1:
                raise InputError(f"config.{where}.{field} is {settings[field]}; at least 1")
        if settings.optimizer.schedule not in SCHEDULES:
            raise InputError(
                f"config.{where}.optimizer.schedule is {settings.optimizer.schedule!r}; one of "
                f"{', '.join(SCHEDULES)}"
            )
        if not settings.datasets:
            raise InputError(
                f"config.{where}.datasets is empty; a stage needs at least one dataset"
            )
        if stage == "contrastive" and settings.micro_batches > 1:
            raise InputError(
                f"config.{where}.micro_batches is {settings.micro_batches}; the contrastive loss "
                "couples all rows of a batch, so it must be 1"
            )
        for name, row in settings.datasets.items():
            _check_dataset(f"config.{where}.datasets.{name}", row, dataset_fields)
            if row.layout == "contrastive" and row.length > c.model.text.max_length:
                raise InputError(
                    f"config.{where}.datasets.{name}.length={row.length} is more than "
                    f"config.model.text.max_length={c.model.text.max_length}"
                )
    _check_fields(c)
    _check_model(c.model)
    if c.mesh.offload != "none" and c.model.unroll:
        raise InputError(
            f"config.mesh.offload={c.mesh.offload!r} brings a layer in each turn of a loop, and "
            "config.model.unroll=True leaves no loop; set one of them back"
        )
    if c.mesh.offload != "none" and c.mesh.frozen == "replicated":
        raise InputError(
            f"config.mesh.offload={c.mesh.offload!r} would bring whole layers from the hosts to "
            "every device where config.mesh.frozen is 'replicated'; set it to sharded"
        )
    if c.model.vision.kind == "vit":
        _check_vit(c.model.vision, c.data.image_size)


def _get(c: Config, field: str) -> Any:
    for key in field.split("."):
        c = c[key]
    return c


def _check_fields(c: Config) -> None:
    for field, choices in _CHOICES.items():
        if _get(c, field) not in choices:
            raise InputError(f"config.{field} is {_get(c, field)!r}; one of {', '.join(choices)}")
    for field in _POSITIVE:
        if _get(c, field) < 1:
            raise InputError(f"config.{field} is {_get(c, field)}; at least 1")
    for field in _NOT_NEGATIVE:
        if _get(c, field) < 0:
            raise InputError(f"config.{field} is {_get(c, field)}; at least 0")


def _check_model(m: Config) -> None:
    kv = m.language.kv_heads or m.language.heads
    if m.language.heads % kv:
        raise InputError(
            f"config.model.language.kv_heads={kv} does not divide heads={m.language.heads}"
        )
    if m.language.head_dim % 2:
        raise InputError(
            f"config.model.language.head_dim is {m.language.head_dim}; it must be even"
        )
    if m.text.width % m.text.heads:
        raise InputError(
            f"config.model.text.heads={m.text.heads} does not divide width={m.text.width}"
        )
    last = min(m.xattn.every, m.language.blocks) - 1
    if not 0 <= m.xattn.offset <= last:
        raise InputError(f"config.model.xattn.offset={m.xattn.offset} must lie in 0…{last}")


def _check_vit(v: Config, shown: int) -> None:
    if v.vit.width % v.vit.heads:
        raise InputError(
            f"config.model.vision.vit.heads={v.vit.heads} does not divide width={v.vit.width}"
        )
    if not 0 < v.vit.patch <= v.image_size:
        raise InputError(
            f"config.model.vision.vit.patch is {v.vit.patch}; at least 1 and at most "
            f"config.model.vision.image_size={v.image_size}"
        )
    if shown not in (0, v.image_size):
        raise InputError(
            f"config.data.image_size={shown} is not config.model.vision.image_size="
            f"{v.image_size}, for which a ViT's positions are learnt; set it to 0"
        )


def _check_dataset(where: str, row: Config, fields: set[str]) -> None:
    unknown = sorted(set(row.keys()) - fields)
    if unknown:
        raise InputError(f"{where} has no field {unknown[0]!r}; make rows with config.dataset(…)")
    if row.layout not in LAYOUTS:
        raise InputError(f"{where}.layout is {row.layout!r}; one of {', '.join(LAYOUTS)}")
    for field in ("batch", "length", "images", "frames"):
        if row[field] < 1:
            raise InputError(f"{where}.{field} is {row[field]}; at least 1")
    for field in ("p_next", "leading_space"):
        if not 0 <= row[field] <= 1:
            raise InputError(f"{where}.{field} is {row[field]}; a probability, 0…1")
    if row.next_layout not in ("kept", "text_first"):
        raise InputError(f"{where}.next_layout is {row.next_layout!r}; kept or text_first")
