"""What a workdir, one of its steps or a folder of prepared documents holds; nothing is loaded."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re

from etils import epath

from flamingo_jax import sealed, storage
from flamingo_jax.checkpoint import list_steps
from flamingo_jax.data.featurefiles import layout
from flamingo_jax.data.featurefiles.reader import FeatureFolder, open_features
from flamingo_jax.data.prepare import manifest
from flamingo_jax.errors import InputError

BYTES = {"bool": 1, "uint8": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8}
"""Of an element; what is not named takes 4."""


def describe(folder: str | os.PathLike[str]) -> str:
    """A table of parameters with their trainable/frozen split, and of the steps there are.

    Of a folder of prepared documents: how many there are, of what, and what was left out. Of
    prepared features: what they were made of, how many there are, and which media have none.

    Args:
      folder: a workdir, one step in it (WORKDIR/checkpoints/STAGE/STEP), both also in a bucket,
        prepared documents, or prepared features.

    Raises:
      InputError: if it is none of these.
    """
    path = storage.to_path(folder)
    with storage.told(path):
        return _describe(path)


def _describe(path: epath.Path) -> str:
    if storage.exists(path / "meta"):
        return _step(path)
    if not storage.is_remote(path):
        local = pathlib.Path(path)
        if (local / layout.MANIFEST).is_file():
            return _features(open_features(local))
        if (local / manifest.MANIFEST).is_file() or (local / manifest.PLAN).is_file():
            return _prepared(manifest.read(local))
    stages = [p for p in storage.entries(path / "checkpoints") if list_steps(p)]
    if not stages:
        raise InputError(
            f"{str(path)!r} holds no checkpoints; give a run's folder, one step inside it, or a "
            "folder of prepared documents or features"
        )
    newest = max(stages, key=_saved_at)
    lines = [f"{path}"]
    for stage in stages:
        steps = ", ".join(str(step) for step in list_steps(stage))
        lines.append(f"  stage {stage.name}: steps {steps}")
    return "\n".join(lines) + "\n\n" + _step(newest / str(list_steps(newest)[-1]))


def _saved_at(stage: epath.Path) -> float:
    """When the newest step of a stage was saved."""
    return storage.modified(stage / str(list_steps(stage)[-1]) / sealed.META / "metadata")


def _prepared(found: manifest.Manifest) -> str:
    plan, counts = found.plan, found.counts
    lines = [
        f"prepared documents: {found.folder}",
        f"source: {json.dumps(plan.get('source'))}, split {plan.get('split')}",
        f"filters: {json.dumps(plan.get('filters'))}",
    ]
    if evaluation := plan.get("evaluation"):
        lines.append(f"evaluation images: {json.dumps(evaluation)}")
    lines += [
        f"{counts['documents']:,} documents of {counts['records']:,} records, "
        f"{counts['images']:,} images, {counts['clips']:,} clips, "
        f"{counts['characters']:,} characters",
        f"{len(found.shards):,} shards, {found.bytes / 1e6:.1f} MB",
    ]
    for title, reasons in (
        ("documents dropped", found.dropped),
        ("bad documents", found.bad),
        ("media left out of documents", found.left_out),
    ):
        lines.append(f"{title}: {sum(reasons.values()):,}")
        lines += [f"  {count:>9,}  {name}" for name, count in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def _features(found: FeatureFolder) -> str:
    plan, counts = found.plan, found.counts
    encoder, (P, E) = plan["encoder"], found.shape
    lines = [
        f"prepared features: {found.path}",
        f"encoder: weights {encoder['weights']}, computed in {encoder['dtype']}",
        f"pixels: {plan['image_size']}×{plan['image_size']}, {plan['resize']}",
    ]
    if plan["augment"] is not None:
        lines.append(f"augmentation: {json.dumps(plan['augment'])}, seed {plan['seed']}")
    for name, row in sorted(plan["datasets"].items()):
        documents = ", ".join(f"{count:,} {split}" for split, count in row["documents"].items())
        source = row["source"]
        where = f"{source['name']} {source['path']}".strip()
        lines.append(
            f"dataset {name}: {where}; documents: {documents}; frames {row['frames']}, versions "
            f"{row['versions']}"
        )
    lines += [
        f"{counts['media']:,} media, {counts['versions']:,} versions of them, "
        f"{counts['frames']:,} frames of bfloat16[{P}, {E}]",
        f"{found.shards:,} shards, {found.bytes / 1e6:.1f} MB",
        f"versions without features: {sum(found.bad.values()):,}",
    ]
    lines += [f"  {count:>9,}  {name}" for name, count in sorted(found.bad.items())]
    return "\n".join(lines) + "\n"


def _step(folder: epath.Path) -> str:
    try:
        meta = sealed.read_meta(folder)
    except sealed.Damaged as error:
        raise InputError(f"{folder} is damaged ({error}); give another step") from error
    lines = [f"stage {meta['stage']}, step {meta['step']}: {folder}"]
    lines += _table("trainable", meta["fingerprints"].get("params", {}))
    if digest := meta.get("frozen"):
        frozen = folder.parents[2] / "frozen" / digest
        lines += _table(
            f"frozen {digest}", sealed.read_meta(frozen)["fingerprints"].get("params", {})
        )
    moments = meta["fingerprints"].get("opt", {})
    lines.append(f"optimizer: {len(moments)} arrays, {_size(moments)}")
    if command := meta.get("command"):
        lines.append(f"command: {command}")
    return "\n".join(lines) + "\n"


def _table(title: str, arrays: dict[str, str]) -> list[str]:
    count = sum(_elements(row) for row in arrays.values())
    lines = [f"{title}: {len(arrays)} arrays, {count:,} parameters, {_size(arrays)}"]
    width = max((len(path) for path in arrays), default=0)
    for path, row in sorted(arrays.items()):
        signature, fingerprint = row.split(" ")
        lines.append(f"  {path:<{width}}  {signature:<28} {fingerprint}")
    return lines


def _elements(row: str) -> int:
    shape = re.search(r"\[(.*?)\]", row)
    return math.prod(int(x) for x in shape.group(1).split(",") if x) if shape else 1


def _size(arrays: dict[str, str]) -> str:
    total = sum(_elements(row) * BYTES.get(row.split("[")[0], 4) for row in arrays.values())
    return f"{total / 1e6:.1f} MB"
