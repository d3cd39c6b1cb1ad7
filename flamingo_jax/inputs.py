"""What a run reads: its tokenizer, the sources of its datasets, the batches of a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax import assemble, features, progress, sharding
from flamingo_jax import config as configs
from flamingo_jax.data import sources as data_sources
from flamingo_jax.data import tokenizer as tokenizers
from flamingo_jax.data.document import Medium, Source
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import CLEAN, DatasetSpec, enumerate_media
from flamingo_jax.errors import InputError
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import Params, flatten_paths
from flamingo_jax.training import Feeds
from flamingo_jax.workdir import Workdir

TOKENIZER_TEXTS = 3_000
"""Documents that a tokenizer is learnt on: enough for a few thousand tokens."""

STATISTICS_MEDIA = 1_024
"""Pictures that the features' mean and deviation are measured on."""


@dataclasses.dataclass
class Run:
    """What all stages of a run share.

    Attributes:
      config: the finished config.
      workdir: the run's folder.
      tokenizer: of the language model.
      mesh: the devices.
      meta: recorded with every checkpoint.
      stop: tells when to save and leave.
      assembled: the stages made so far.
      opened: {(stage, split): its sources}, as far as they have been opened.
    """

    config: Any
    workdir: Workdir
    tokenizer: tokenizers.Tokenizer
    mesh: jax.sharding.Mesh
    meta: dict[str, Any]
    stop: StopRequest
    assembled: dict[str, assemble.Stage] = dataclasses.field(default_factory=dict)
    opened: dict[tuple[str, str], dict[str, Source]] = dataclasses.field(default_factory=dict)

    @property
    def vocabulary(self) -> assemble.Vocabulary:
        """V and W."""
        return assemble.Vocabulary(self.tokenizer.vocab, len(self.tokenizer.new_tokens))

    def assemble(self, stage: str) -> assemble.Stage:
        """The stage's model, optimizer and compiled functions, made once."""
        if stage not in self.assembled:
            made = assemble.stage(self.config, stage, self.vocabulary, self.mesh)
            self.assembled[stage] = made
        return self.assembled[stage]

    def walked_back(self, stage: str, step: int, text: str) -> None:
        """Says and records that a damaged step of a stage was passed over."""
        self.workdir.event("walk-back", text, stage=stage, step=step)
        progress.say(f"stage {stage}: {text}")


def tokenizer(c: Any, workdir: Workdir) -> tokenizers.Tokenizer:
    """The run's tokenizer: the workdir's if it has one, else made as the config says and kept."""
    folder = workdir.path / "tokenizer"
    if folder.is_dir():
        return tokenizers.load_tokenizer(folder)
    t = c.tokenizer
    if t.kind == "train":
        size = c.data.image_size or c.model.vision.image_size
        spec = data_sources.SourceSpec(t.source, t.path)
        source = data_sources.open_source(spec, "train", c.seed, size)
        count = min(len(source), TOKENIZER_TEXTS)
        texts = ("".join(_texts(source, i)) for i in range(count))
        made = tokenizers.train_tokenizer(texts, t.vocab, image=t.image)
    elif t.kind == "saved":
        made = tokenizers.load_tokenizer(t.path)
    else:
        made = tokenizers.open_tokenizer(
            t.kind, t.path, image=t.image, vocab=c.model.language.vocab
        )
    draft = workdir.path / ".tokenizer"
    shutil.rmtree(draft, ignore_errors=True)
    made.save(draft)
    draft.rename(folder)
    return made


def _texts(source: Source, index: int) -> Iterator[str]:
    """The texts of a document, none if it cannot be read."""
    with contextlib.suppress(BadRecord):
        yield from (item for item in source[index].items if isinstance(item, str))


def open_sources(run: Run, stage: assemble.Stage, split: str) -> dict[str, Source]:
    """The stage's sources, opened once; for validation only those that have such a split."""
    if (stage.name, split) in run.opened:
        return run.opened[stage.name, split]
    c = run.config
    rows = configs.stage_settings(c, stage.name).datasets
    opened = {}
    for name, spec in assemble.source_specs(c, stage.name).items():
        if split == "validation" and not rows[name].validation:
            continue
        size = stage.datasets[name].image_size
        opened[name] = data_sources.open_source(spec, split, c.seed, size)
    run.opened[stage.name, split] = opened
    return opened


def cached_shape(c: Any, stage: assemble.Stage) -> tuple[int, int] | None:
    """(P, E) of a frame's cached features, or None where the stage's batches hold pixels."""
    media = any(spec.media for spec in stage.datasets.values())
    if stage.name != "flamingo" or not (c.data.cache_features and media):
        return None
    nfnet = assemble.vision_config(c).nfnet
    size = c.data.image_size or c.model.vision.image_size
    return nfnet.grid(size) ** 2, nfnet.features_width


def _cached_features(
    run: Run, stage: assemble.Stage, frozen: Params, split: str
) -> dict[str, features.FeatureTable] | None:
    """Features of every version of every medium of a split, or None where that is not asked for."""
    c = run.config
    shape = cached_shape(c, stage)
    if shape is None:
        return None
    if any(path.startswith("vision/") for path in flatten_paths(stage.trainable)):
        raise InputError("config.data.cache_features needs a frozen encoder; see config.trainable")
    wanted: dict[features.Key, tuple[Medium, DatasetSpec]] = {}
    for name, source in open_sources(run, stage, split).items():
        spec = stage.datasets[name]
        versions = range(spec.versions) if split == "train" and spec.versions else (CLEAN,)
        for medium in enumerate_media(source):
            for version in versions:
                wanted.setdefault((medium.key, version), (medium, spec))
    bad: dict[features.Key, str] = {}
    pixels = features.rendered(wanted, c.seed, bad)
    encode = features.encoder(c, frozen["vision"])
    found = features.encode_all(encode, pixels, len(wanted), f"features, {split}")
    return {name: features.FeatureTable(found, bad, shape) for name in stage.datasets}


def pipeline(
    run: Run,
    stage: assemble.Stage,
    split: str,
    steps: int,
    first_step: dict[str, int] | None = None,
    cached: dict[str, features.FeatureTable] | None = None,
) -> Pipeline:
    """This host's batches of a split."""
    opened = open_sources(run, stage, split)
    specs = {name: stage.datasets[name] for name in opened}
    return Pipeline(
        opened,
        specs,
        run.tokenizer,
        seed=run.config.seed,
        steps=steps,
        train=split == "train",
        rows={name: sharding.local_rows(spec.batch, run.mesh) for name, spec in specs.items()},
        first_step=first_step,
        features=cached,
        threads=run.config.data.threads,
        prefetch=run.config.data.prefetch,
        max_bad=run.config.data.max_bad,
    )


def feature_statistics(
    run: Run, stage: assemble.Stage, frozen: Params
) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and deviation over clean training pictures."""
    neutral = dict(frozen["vision"])
    for name, value in (("mean", 0.0), ("deviation", 1.0)):
        neutral[name] = jnp.full_like(neutral[name], value)
    for name, source in open_sources(run, stage, "train").items():
        media = [m for m in enumerate_media(source) if m.kind == "image"]
        if not media:
            continue
        spec = stage.datasets[name]
        chosen = media[:: max(len(media) // STATISTICS_MEDIA, 1)][:STATISTICS_MEDIA]
        wanted = {(m.key, CLEAN): (m, spec) for m in chosen}
        pixels = features.rendered(wanted, run.config.seed, {})
        encode = features.encoder(run.config, neutral)
        found = features.encode_all(encode, pixels, len(chosen), "feature statistics")
        return features.channel_statistics(found.values())
    raise InputError(
        "config.model.vision.standardise needs a dataset with images to measure the features on"
    )


def feeds(
    run: Run, stage: assemble.Stage, frozen: Params, first_step: dict[str, int] | None = None
) -> Feeds:
    """Opens the stage's training and validation data.

    Args:
      run: the run.
      stage: the assembled stage.
      frozen: its frozen parameters, for cached features.
      first_step: {dataset: the step before which it gives nothing}; 0 by default.
    """
    c = run.config
    settings = configs.stage_settings(c, stage.name)

    def opened(split: str, steps: int) -> Pipeline:
        first = first_step if split == "train" else None
        cached = _cached_features(run, stage, frozen, split)
        return pipeline(run, stage, split, steps, first, cached)

    validation = []
    if any(settings.datasets[name].validation for name in stage.datasets):
        measured = opened("validation", settings.eval_batches)
        validation = [measured[k] for k in range(settings.eval_batches)]
    train = opened("train", stage.steps)

    def used(step: int) -> list[tuple[str, int]]:
        return [
            (name, train.row_index(name, step - 1, row))
            for name in stage.datasets
            for row in range(*sharding.local_rows(stage.datasets[name].batch, run.mesh))
        ]

    def rejects(step: int) -> list[dict[str, Any]]:
        return [
            {"dataset": name, "step": at + 1, **dataclasses.asdict(reject)}
            for name in stage.datasets
            for at, reject in train.rejects(name, step - 1)
        ]

    return Feeds(train.iterate, validation, used if c.data.record_rows else None, rejects)


def attributions(c: Any) -> list[str]:
    """The lines that the licences of the config's sources ask to be shown."""
    names = {
        row.source
        for stage in c.stages
        for row in configs.stage_settings(c, stage).datasets.values()
    }
    return data_sources.attributions(names)
