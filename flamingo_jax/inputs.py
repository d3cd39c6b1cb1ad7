"""What a run reads: its tokenizer, the sources of its datasets, the batches of a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
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
from flamingo_jax.data.featurefiles.reader import open_features
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import CLEAN, DatasetSpec, Features, enumerate_media
from flamingo_jax.errors import InputError
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import Params, flatten_paths
from flamingo_jax.tracking import Tracker
from flamingo_jax.training import Feeds
from flamingo_jax.watchdog import Watchdog
from flamingo_jax.workdir import Workdir

TOKENIZER_TEXTS = 3_000
"""Documents that a tokenizer is learnt on: enough for a few thousand tokens."""

STATISTICS_MEDIA = 1_024
"""Pictures that the features' mean and deviation are measured on."""

STATISTICS_DOCUMENTS = 16 * STATISTICS_MEDIA
"""Documents that they are looked for in."""

CHECKED_DOCUMENTS = 8
"""Documents of a dataset whose media are compared with those that features on disk were made of."""


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
      tracker: is sent the rows of metrics and speed.
      profile: steps [first, end) of each stage to be traced.
      dog: watches the loops.
      assembled: the stages made so far.
      opened: {(stage, split): its sources}, as far as they have been opened.
    """

    config: Any
    workdir: Workdir
    tokenizer: tokenizers.Tokenizer
    mesh: jax.sharding.Mesh
    meta: dict[str, Any]
    stop: StopRequest
    tracker: Tracker = dataclasses.field(default_factory=Tracker)
    profile: tuple[int, int] = (0, 0)
    dog: Watchdog = dataclasses.field(default_factory=lambda: Watchdog(0))
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
    workdir.fetch("tokenizer/*")
    if folder.is_dir():
        return tokenizers.load_tokenizer(folder)
    t = c.tokenizer
    if t.kind == "train":
        size = c.data.image_size or c.model.vision.image_size
        spec = data_sources.SourceSpec(t.source, t.path)
        try:
            source = data_sources.open_source(spec, "train", c.seed, size)
        except InputError as error:
            raise InputError(f"config.tokenizer, learnt on {t.source!r}: {error}") from error
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
    workdir.push()
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
        try:
            opened[name] = data_sources.open_source(spec, split, c.seed, size)
        except InputError as error:
            where = "train" if stage.name == "flamingo" else f"pretrain.{stage.name}"
            raise InputError(f"config.{where}.datasets.{name}: {error}") from error
    run.opened[stage.name, split] = opened
    return opened


def cached_shape(c: Any, stage: assemble.Stage) -> tuple[int, int] | None:
    """(P, E) of a frame's cached features, or None where the stage's batches hold pixels."""
    media = any(spec.media for spec in stage.datasets.values())
    cached = c.data.cache_features or c.data.features
    return features.feature_shape(c) if stage.name == "flamingo" and cached and media else None


def versions(spec: DatasetSpec, split: str) -> tuple[int, ...]:
    """The versions of a dataset's media that rows of a split may show."""
    return tuple(range(spec.versions)) if split == "train" and spec.versions else (CLEAN,)


def feature_groups(c: Any, stage: assemble.Stage) -> dict[str, int]:
    """{dataset: number}: datasets of one number show the same media alike, and share features.

    A medium's key is unique within its origin only: two folders may both have a "1.png".
    """
    numbers: dict[str, int] = {}
    groups = {}
    for name, source in assemble.source_specs(c, stage.name).items():
        spec = stage.datasets[name]
        if spec.media:
            origin = dataclasses.replace(source, name=source.name.partition(":")[0])
            alike = repr((dataclasses.astuple(origin), spec.frames, spec.versions))
            groups[name] = numbers.setdefault(alike, len(numbers))
    return groups


def check_frozen_encoder(stage: assemble.Stage, field: str) -> None:
    """Raises InputError if the stage trains its encoder: features would change at each step."""
    if any(path.startswith("vision/") for path in flatten_paths(stage.trainable)):
        raise InputError(f"{field} needs a frozen encoder; see config.trainable")


def _cached_features(
    run: Run, stage: assemble.Stage, frozen: Params, split: str
) -> Mapping[str, Features] | None:
    """Features of every version of every medium of a split, or None where that is not asked for."""
    c = run.config
    shape = cached_shape(c, stage)
    if shape is None:
        return None
    if c.data.features:
        return _features_on_disk(run, stage, frozen, split)
    check_frozen_encoder(stage, "config.data.cache_features")
    opened = open_sources(run, stage, split)
    groups = feature_groups(c, stage)
    encode = features.encoder(c, frozen["vision"], run.mesh)
    tables: dict[str, Features] = {}
    for group in sorted(set(groups.values())):
        wanted: dict[features.Key, tuple[Medium, DatasetSpec]] = {}
        names = [name for name in opened if groups.get(name) == group]
        for name in names:
            spec = stage.datasets[name]
            for medium in enumerate_media(opened[name]):
                for version in versions(spec, split):
                    wanted.setdefault((medium.key, version), (medium, spec))
        bad: dict[features.Key, str] = {}
        pixels = features.rendered(wanted, c.seed, bad)
        title, size = f"features, {split}", features.batch_size(run.mesh)
        found = features.encode_all(encode, pixels, len(wanted), title, size)
        tables |= {name: features.FeatureTable(found, bad, shape) for name in names}
    return tables


def _features_on_disk(
    run: Run, stage: assemble.Stage, frozen: Params, split: str
) -> dict[str, Features]:
    """The features of `config.data.features`, which must be those that this run would compute.

    Raises:
      InputError: if they are not, or some media looked at are others than those encoded.
    """
    folder = run.config.data.features
    check_frozen_encoder(stage, "config.data.features")
    found = open_features(folder)
    wanted = features.dependencies(run.config, stage, frozen["vision"])
    features.check_dependencies(folder, found.plan, wanted)
    tables: dict[str, Features] = {}
    for name, source in open_sources(run, stage, split).items():
        spec = stage.datasets[name]
        if spec.media:
            table = found.table(name, split)
            table.check(_some_media(source), versions(spec, split)[0])
            tables[name] = table
    return tables


def _some_media(source: Source) -> Iterator[Medium]:
    """The media of a few documents, from all over the source."""
    count = min(len(source), CHECKED_DOCUMENTS)
    for number in range(count):
        with contextlib.suppress(BadRecord):
            items = source[number * len(source) // count].items
            yield from (item for item in items if isinstance(item, Medium))


def pipeline(
    run: Run,
    stage: assemble.Stage,
    split: str,
    steps: int,
    first_step: dict[str, int] | None = None,
    cached: Mapping[str, Features] | None = None,
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
    """Each channel's mean and deviation over clean training pictures.

    Features on disk bring theirs: measured on other devices they may differ in their last bits.
    """
    if run.config.data.features:
        return features.statistics(run.config)
    neutral = dict(frozen["vision"])
    for name, value in (("mean", 0.0), ("deviation", 1.0)):
        neutral[name] = jnp.full_like(neutral[name], value)
    for name, source in open_sources(run, stage, "train").items():
        looked_at = enumerate_media(source, STATISTICS_DOCUMENTS)
        media = [medium for medium in looked_at if medium.kind == "image"]
        if not media:
            continue
        spec = stage.datasets[name]
        chosen = media[:: max(len(media) // STATISTICS_MEDIA, 1)][:STATISTICS_MEDIA]
        wanted = {(m.key, CLEAN): (m, spec) for m in chosen}
        pixels = features.rendered(wanted, run.config.seed, {})
        encode = features.encoder(run.config, neutral, run.mesh)
        size = features.batch_size(run.mesh)
        found = features.encode_all(encode, pixels, len(chosen), "feature statistics", size)
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

    sizes = {name: spec.batch for name, spec in stage.datasets.items()}
    ours = {name: sharding.accounted_rows(size, run.mesh) for name, size in sizes.items()}

    def used(step: int) -> list[tuple[str, int]]:
        return [
            (name, train.row_index(name, step - 1, row))
            for name in stage.datasets
            for row in ours[name]
        ]

    def rejects(step: int) -> list[dict[str, Any]]:
        return [
            {"dataset": name, "step": at + 1, **dataclasses.asdict(reject)}
            for name in stage.datasets
            for at, reject in train.rejects(name, step - 1)
            if reject.row % sizes[name] in ours[name]
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
