"""Rows of datasets and what was measured of them, as a page: data alone, no model is made."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from flamingo_jax import assemble, inputs, report
from flamingo_jax import config as configs
from flamingo_jax.data import sources as data_sources
from flamingo_jax.data.augment import AugmentSpec
from flamingo_jax.data.document import Source
from flamingo_jax.data.rows import DatasetSpec
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.report.datasets import Dataset, Mixture
from flamingo_jax.samples.rows import first_rows
from flamingo_jax.samples.statistics import measure
from flamingo_jax.workdir import Workdir

__all__ = ["dataset", "mixture", "write"]

ROWS = 12
DOCUMENTS = 200  # that the statistics are measured on


def write(
    c: Any, stage: str = "", out: str = "", rows: int = ROWS, documents: int = DOCUMENTS
) -> pathlib.Path:
    """Writes the page of a stage's datasets and returns its path.

    Args:
      c: the finished config.
      stage: its name; by default Flamingo, or else the config's last.
      out: the folder of the page, by default runs/inspect/NAME-STAGE.
      rows: of each dataset that are shown.
      documents: of each that the statistics are measured on.

    Raises:
      InputError: if the config has no such stage, or a source or the tokenizer cannot be opened.
    """
    stage = stage or ("flamingo" if "flamingo" in c.stages else c.stages[-1])
    made = mixture(c, stage, rows, documents)
    return report.write_datasets(made, out or f"runs/inspect/{c.name}-{stage}")


def mixture(c: Any, stage: str, rows: int = ROWS, documents: int = DOCUMENTS) -> Mixture:
    """The datasets of a stage; see `write`."""
    if stage not in c.stages:
        raise InputError(
            f"--stage={stage}: the config has no such stage; it has {', '.join(c.stages)}"
        )
    specs = assemble.dataset_specs(c, stage)
    origins = assemble.source_specs(c, stage)
    opened = {
        name: data_sources.open_source(origins[name], "train", c.seed, spec.image_size)
        for name, spec in specs.items()
    }
    with tempfile.TemporaryDirectory(prefix="flamingo-inspect-") as folder:
        tokenizer = inputs.tokenizer(c, Workdir(folder))
    settings = configs.stage_settings(c, stage)
    datasets = [
        dataset(
            opened[name],
            spec,
            tokenizer,
            seed=c.seed,
            rows=rows,
            documents=documents,
            origin=origins[name],
            weight=settings.datasets[name].weight,
        )
        for name, spec in specs.items()
    ]
    first = next(iter(specs.values()))
    facts = {
        "tokenizer": f"{c.tokenizer.kind}, V = {tokenizer.vocab:,}",
        "new tokens": ", ".join(tokenizer.new_tokens),
        "image size": f"{first.image_size}×{first.image_size}, {first.resize}",
        "augmentation": _augmentation(first.augment),
        "steps": f"{settings.steps:,}",
        "seed": str(c.seed),
    }
    return Mixture(
        name=c.name,
        datasets=datasets,
        stage=stage,
        steps=settings.steps,
        facts=facts,
        attribution=inputs.attributions(c),
        upto=stage == "flamingo" and c.model.xattn.attend == "upto",
    )


def _augmentation(spec: AugmentSpec) -> str:
    told = [f"flip {spec.flip:g}"] if spec.flip else []
    for name in ("brightness", "contrast", "saturation", "hue", "shift"):
        if value := getattr(spec, name):
            told.append(f"{name} ±{value:g}")
    if tuple(spec.scale) != (1.0, 1.0):
        told.append(f"scale {spec.scale[0]:g} to {spec.scale[1]:g}")
    return ", ".join(told) or "none"


def dataset(
    source: Source,
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    rows: int = ROWS,
    documents: int = DOCUMENTS,
    origin: SourceSpec | None = None,
    weight: float = 1.0,
) -> Dataset:
    """One dataset, of any source: its first rows in training, and what was measured.

    Args:
      source: its documents.
      spec: how they become rows.
      tokenizer: the language model's.
      seed: the run's.
      rows: how many are shown.
      documents: how many are measured, from the beginning of the order.
      origin: where they come from, to be told.
      weight: λ, to be told.

    Raises:
      InputError: if the source is empty or the spec cannot be met.
    """
    origin = origin or SourceSpec("")
    shown, problem = first_rows(source, spec, tokenizer, seed, rows)
    facts = {"versions": str(spec.versions or "a fresh one at each visit")}
    if spec.layout == "page":
        facts["text tied to the next image"] = f"p = {spec.p_next:g}, {spec.next_layout}"
        facts["text before the first image"] = (
            "in the loss" if spec.rules.loss_before_media else "not in the loss"
        )
    elif spec.layout in ("pair", "clip"):
        facts["leading space"] = f"p = {spec.leading_space:g}"
    facts |= {name: str(value) for name, value in origin.options.items()}
    return Dataset(
        name=spec.name,
        source=origin.name,
        path=", ".join(filter(None, (origin.path, origin.files and f"files {origin.files}"))),
        documents=len(source),
        layout=spec.layout,
        batch=spec.batch,
        length=spec.length,
        images=spec.media,
        frames=spec.frames,
        weight=weight,
        statistics=measure(source, spec, tokenizer, seed, documents),
        rows=shown,
        facts=facts if spec.media else {},
        problem=problem,
    )
