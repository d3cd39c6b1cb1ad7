"""What each stage starts from and is fed with: earlier stages' weights, frozen weights, batches."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flamingo_jax import assemble, features, progress, sharding
from flamingo_jax import config as configs
from flamingo_jax.checkpoint import (
    Restored,
    StageCheckpoints,
    list_steps,
    load_frozen,
    load_params,
    save_frozen,
)
from flamingo_jax.data import sources as data_sources
from flamingo_jax.data import tokenizer as tokenizers
from flamingo_jax.data.document import Medium, Source
from flamingo_jax.data.pipeline import Pipeline
from flamingo_jax.data.rows import CLEAN, DatasetSpec, enumerate_media
from flamingo_jax.errors import InputError
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import Params, flatten_paths, unflatten_paths
from flamingo_jax.training import Feeds, Outcome, Settings, StageLoop
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
        source = data_sources.open_source(t.source, t.path, "train", c.seed, size)
        count = min(len(source), TOKENIZER_TEXTS)
        texts = ("".join(_texts(source[i].items)) for i in range(count))
        made = tokenizers.train_tokenizer(texts, t.vocab, image=t.image)
    else:
        made = tokenizers.open_tokenizer(
            t.kind, t.path, image=t.image, vocab=c.model.language.vocab
        )
    draft = workdir.path / ".tokenizer"
    shutil.rmtree(draft, ignore_errors=True)
    made.save(draft)
    draft.rename(folder)
    return made


def _texts(items: tuple[str | Medium, ...]) -> Iterator[str]:
    return (item for item in items if isinstance(item, str))


def run_stage(run: Run, name: str) -> Outcome:
    """Trains one stage to its end, from wherever it stands.

    Raises:
      InputError: if more steps are asked of a stage that a later one has already begun from.
    """
    stage = run.assemble(name)
    c, workdir = run.config, run.workdir
    if _is_behind(run, stage):
        return Outcome({}, 0.0, 0.0, finished_before=True)

    with StageCheckpoints(
        workdir.checkpoints(name),
        keep=c.checkpoint.keep,
        every=c.checkpoint.every,
        report=functools.partial(run.walked_back, name),
    ) as checkpoints:
        restored = checkpoints.restore(stage.state.params, stage.state.opt)
        if restored is not None and restored.step >= stage.steps:
            return Outcome(restored.params, 0.0, 0.0, finished_before=True)
        # Only now: the rows of later stages are later too, and a finished stage has none to drop.
        for log in ("metrics", "speed", "rejects", "rows"):
            step = 0 if restored is None else restored.step
            workdir.log(log).truncate_after(c.stages, name, step)
        frozen, digest = _frozen(run, stage, restored)
        first_step = _first_step(stage, restored)
        meta = run.meta | {"frozen": digest, "first_step": first_step}
        settings = configs.stage_settings(c, name)
        cadence = Settings(settings.log_every, settings.eval_every)
        if name == "flamingo":
            cadence = dataclasses.replace(cadence, alarm_step=c.alarm.step, alarm_nats=c.alarm.nats)
        loop = StageLoop(stage, cadence, workdir, checkpoints, meta, run.stop)
        return loop.run(
            restored,
            lambda: _initial(run, stage),
            frozen,
            lambda: feeds(run, stage, frozen, first_step),
            cached_shape(run.config, stage),
        )


def _is_behind(run: Run, stage: assemble.Stage) -> bool:
    """Whether a later stage has begun: what it took from this one may not change any more."""
    names = list(run.config.stages)
    for later in names[names.index(stage.name) + 1 :]:
        if not list_steps(run.workdir.checkpoints(later)):
            continue
        saved = list_steps(run.workdir.checkpoints(stage.name))
        if saved and saved[-1] < stage.steps:
            raise InputError(
                f"config.pretrain.{stage.name}.steps is {stage.steps} and in {run.workdir.path} "
                f"the stage {later} has begun from its step {saved[-1]}; set it to {saved[-1]} or "
                "give another --workdir"
            )
        return True
    return False


def _first_step(stage: assemble.Stage, restored: Restored | None) -> dict[str, int]:
    """The step at which each dataset begins: at its own index 0, whenever it is added."""
    step, known = (0, {}) if restored is None else (restored.step, restored.meta["first_step"])
    return {name: known.get(name, step) for name in stage.datasets}


def _earlier(run: Run, stage: assemble.Stage) -> dict[str, jax.Array]:
    """Parameters of the stages before this one, by path, sharded for this stage's mesh."""
    found: dict[str, jax.Array] = {}
    for name in run.config.stages:
        if name == stage.name:
            break
        if list_steps(run.workdir.checkpoints(name)):
            folder, abstract = run.workdir.checkpoints(name), run.assemble(name).trainable
            report = functools.partial(run.walked_back, name)
            found |= flatten_paths(load_params(folder, abstract, report=report).params)
    return found


def _initial(run: Run, stage: assemble.Stage) -> Params:
    """The trainable parameters of a fresh start: earlier stages' where they have them."""
    flat = flatten_paths(stage.trainable)
    earlier = _earlier(run, stage)
    made = flatten_paths(stage.initial(run.config.seed, set(flat) - set(earlier)))
    kept = {path: earlier[path] for path in flat if path in earlier}
    return unflatten_paths(made | kept)


def _frozen(run: Run, stage: assemble.Stage, restored: Restored | None) -> tuple[Params, str]:
    """The frozen parameters and their digest: saved once, read again by every later start."""
    flat = flatten_paths(stage.frozen)
    if not flat:
        return {}, ""
    if restored is not None:
        digest = restored.meta["frozen"]
        return load_frozen(run.workdir.path, digest, stage.frozen), digest
    earlier = _earlier(run, stage)
    missing = {path for path in flat if path not in earlier}
    measured = {path for path in missing if path in ("vision/mean", "vision/deviation")}
    if missing - measured:
        parts = sorted({path.split("/")[0] for path in missing - measured})
        text = f"frozen {', '.join(parts)}: from no earlier stage, so random from the seed"
        run.workdir.event("config", text, stage=stage.name, step=0)
        progress.say(f"stage {stage.name}: {text}")
    dtypes = {path: a.dtype for path, a in flat.items()}
    made = flatten_paths(stage.initial(run.config.seed, missing)) | earlier
    frozen = {path: made[path].astype(dtypes[path]) for path in flat}
    if measured:
        mean, deviation = _feature_statistics(run, stage, unflatten_paths(frozen))
        frozen["vision/mean"] = _placed(mean, flat["vision/mean"])
        frozen["vision/deviation"] = _placed(deviation, flat["vision/deviation"])
    tree = unflatten_paths({path: frozen[path] for path in sorted(frozen)})
    return tree, save_frozen(run.workdir.path, tree)


def _placed(values: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(values.astype(target.dtype), target.sharding)


def _encoder(run: Run, vision: Params) -> Callable[[np.ndarray], jax.Array]:
    """The jitted frozen encoder: u8[N, Y, X, 3] → [N, P, E] in its own dtype."""
    compiled = _compiled_encoder(assemble.vision_config(run.config), run.config.model.vision.dtype)
    return lambda pixels: compiled(vision, pixels)


@functools.cache
def _compiled_encoder(cfg: VisionConfig, dtype: str) -> Any:
    graph, _ = nnx.split(nnx.eval_shape(lambda: VisionTower(cfg, rngs=nnx.Rngs(0))))
    return jax.jit(lambda params, pixels: nnx.merge(graph, params)(pixels, jnp.dtype(dtype)))


def _feature_statistics(
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
        encode = _encoder(run, neutral)
        found = features.encode_all(encode, pixels, len(chosen), "feature statistics")
        return features.channel_statistics(found.values())
    raise InputError(
        "config.model.vision.standardise needs a dataset with images to measure the features on"
    )


def open_sources(run: Run, stage: assemble.Stage, split: str) -> dict[str, Source]:
    """The stage's sources, opened once; for validation only those that have such a split."""
    if (stage.name, split) in run.opened:
        return run.opened[stage.name, split]
    c = run.config
    opened = {}
    for name, row in configs.stage_settings(c, stage.name).datasets.items():
        if split == "validation" and not row.validation:
            continue
        size = stage.datasets[name].image_size
        opened[name] = data_sources.open_source(row.source, row.path, split, c.seed, size)
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
    encode = _encoder(run, frozen["vision"])
    found = features.encode_all(encode, pixels, len(wanted), f"features, {split}")
    return {name: features.FeatureTable(found, bad, shape) for name in stage.datasets}


def _pipeline(
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
    )


def check_data(run: Run) -> None:
    """Opens all data that is still to be read, so that nothing is missing hours from now.

    Raises:
      InputError: if a source cannot be opened, or cannot give what its dataset asks for.
    """
    for name in run.config.stages:
        stage = run.assemble(name)
        if not _is_behind(run, stage):
            for split in data_sources.SPLITS:
                if open_sources(run, stage, split):
                    _pipeline(run, stage, split, stage.steps)


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

    def pipeline(split: str, steps: int) -> Pipeline:
        first = first_step if split == "train" else None
        cached = _cached_features(run, stage, frozen, split)
        return _pipeline(run, stage, split, steps, first, cached)

    validation = []
    if any(settings.datasets[name].validation for name in stage.datasets):
        measured = pipeline("validation", settings.eval_batches)
        validation = [measured[k] for k in range(settings.eval_batches)]
    train = pipeline("train", stage.steps)

    def used(step: int) -> list[tuple[str, int]]:
        return [
            (name, train.row_index(name, step - 1, row))
            for name in stage.datasets
            for row in range(*sharding.local_rows(stage.datasets[name].batch, run.mesh))
        ]

    return Feeds(
        train.iterate, validation, used if c.data.record_rows else None, train.faults.counts
    )


def attributions(c: Any) -> list[str]:
    """The lines that the licences of the config's sources ask to be shown."""
    names = {
        row.source
        for stage in c.stages
        for row in configs.stage_settings(c, stage).datasets.values()
    }
    return data_sources.attributions(names)
