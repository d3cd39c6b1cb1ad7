"""The stages of a run: what each starts from, and its training from wherever it stands."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from flamingo_jax import assemble, inputs, offload, pace, progress
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
from flamingo_jax.errors import InputError
from flamingo_jax.measuring import Cadence, Evaluate
from flamingo_jax.planning import analytic, chips
from flamingo_jax.shapes import Params, flatten_paths, unflatten_paths
from flamingo_jax.train.optimizer import matches
from flamingo_jax.training import Outcome, Settings, StageLoop
from flamingo_jax.use import loading


def run_stage(run: inputs.Run, name: str, evaluate: Evaluate | None = None) -> Outcome:
    """Trains one stage to its end, from wherever it stands.

    Args:
      run: what all stages share.
      name: of the stage.
      evaluate: asks the Flamingo stage's benchmarks now and then; None = there are none.

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
        keep_every=c.checkpoint.keep_every,
        report=functools.partial(run.walked_back, name),
    ) as checkpoints:
        restored = checkpoints.restore(stage.state.params, stage.state.opt)
        if restored is not None and restored.step >= stage.steps:
            return Outcome(restored.params, 0.0, 0.0, finished_before=True)
        # Only now: the rows of later stages are later too, and a finished stage has none to drop.
        step = -1 if restored is None else restored.step  # before step 0, too, is measured
        workdir.go_back(c.stages, name, step)
        params, frozen, digest = parameters(run, stage, restored)
        first_step = _first_step(stage, restored)
        meta = run.meta | {"frozen": digest, "first_step": first_step}
        settings = configs.stage_settings(c, name)
        measures = Cadence(settings.eval_every, eval_first=bool(c.init.run))
        if name == "flamingo":
            every = c.eval.every if evaluate is not None else 0
            measures = dataclasses.replace(
                measures, alarm_step=c.alarm.step, alarm_nats=c.alarm.nats, benchmarks_every=every
            )
        cadence = Settings(settings.log_every, measures, run.profile, settings.most_skipped)
        media = inputs.cached_shape(c, stage)
        work = step_work(run, stage, cached=media is not None)
        loop = StageLoop(
            *(stage, work, cadence, workdir, checkpoints, meta),
            *(run.stop, run.tracker, run.dog, evaluate),
        )
        return loop.run(
            restored,
            params,
            frozen,
            lambda: inputs.feeds(run, stage, frozen, first_step),
            media,
        )


def step_work(run: inputs.Run, stage: assemble.Stage, cached: bool) -> pace.Work:
    """What utilisation is told from; `cached`: features are given, no encoder runs."""
    specs, device = stage.datasets.values(), stage.mesh.devices.flat[0]
    flops = 0.0
    if analytic.has_work(stage):
        flops = float(analytic.work(run.config, stage, run.vocabulary, cached).total)
    return pace.Work(
        tokens=sum(spec.batch * spec.length for spec in specs),
        images=sum(spec.batch * spec.media * spec.frames for spec in specs),
        model_flops=flops,
        peak_flops=chips.peak_flops(device.device_kind, stage.mesh.size),
    )


def _is_behind(run: inputs.Run, stage: assemble.Stage) -> bool:
    """Whether a later stage has begun: what it took from this one may not change any more."""
    names = list(run.config.stages)
    for later in names[names.index(stage.name) + 1 :]:
        if not list_steps(run.workdir.checkpoints(later)):
            continue
        saved = list_steps(run.workdir.checkpoints(stage.name))
        if saved and saved[-1] < stage.steps:
            raise InputError(
                f"config.pretrain.{stage.name}.steps is {stage.steps} and in {run.workdir.place} "
                f"the stage {later} has begun from its step {saved[-1]}; set it to {saved[-1]} or "
                "give another --workdir"
            )
        return True
    return False


def _first_step(stage: assemble.Stage, restored: Restored | None) -> dict[str, int]:
    """The step at which each dataset begins: at its own index 0, whenever it is added."""
    step, known = (0, {}) if restored is None else (restored.step, restored.meta["first_step"])
    return {name: known.get(name, step) for name in stage.datasets}


def _earlier(run: inputs.Run, stage: assemble.Stage) -> dict[str, jax.Array]:
    """Parameters of `config.init` and of the stages before this one, by path, sharded."""
    found = _begun_with(run, stage)
    for name in run.config.stages:
        if name == stage.name:
            break
        if list_steps(run.workdir.checkpoints(name)):
            folder, abstract = run.workdir.checkpoints(name), run.assemble(name).trainable
            report = functools.partial(run.walked_back, name)
            found |= flatten_paths(load_params(folder, abstract, report=report).params)
    return found


def _begun_with(run: inputs.Run, stage: assemble.Stage) -> dict[str, jax.Array]:
    """The stage's parameters that `config.init` takes from another run, by path."""
    init = run.config.init
    if not init.run:
        return {}
    here = flatten_paths(stage.abstract)
    found = {
        path: leaf
        for path, leaf in flatten_paths(loading.load(init.run, mesh=run.mesh).params).items()
        if path in here and matches(init.paths, path)
    }
    for path, leaf in found.items():
        if leaf.shape != here[path].shape:
            raise InputError(
                f"config.init.run={init.run!r} has {path!r} of the shape {leaf.shape}, this config "
                f"{here[path].shape}; give its model's fields, or leave it out of config.init.paths"
            )
    return found


def parameters(
    run: inputs.Run, stage: assemble.Stage, restored: Restored | None, trained: bool = True
) -> tuple[Params, Params, str]:
    """Trainable parameters, frozen ones, and the latter's digest, as the stage goes on or begins.

    Frozen ones are saved once, and read again by every later start.

    Args:
      run: what all stages share.
      stage: the assembled stage.
      restored: the newest sound step, or None for a fresh start.
      trained: whether the trainable ones of a fresh start are wanted.
    """
    fixed = flatten_paths(stage.frozen)
    if restored is not None:
        digest = restored.meta["frozen"]
        frozen = load_frozen(run.workdir.place, digest, stage.frozen) if fixed else {}
        return restored.params, frozen, digest
    made, drawn = _fresh(
        run, stage, set(fixed) | set(flatten_paths(stage.trainable) if trained else ())
    )
    frozen = {path: made.pop(path) for path in sorted(fixed)}
    params = unflatten_paths(made)
    if not fixed:
        return params, {}, ""
    measured = {path for path in drawn if path in ("vision/mean", "vision/deviation")}
    if parts := sorted({path.split("/")[0] for path in drawn & set(fixed) - measured}):
        text = f"frozen {', '.join(parts)}: from no earlier stage, so random from the seed"
        run.workdir.event("config", text, stage=stage.name, step=0)
        progress.say(f"stage {stage.name}: {text}")
    if measured:
        mean, deviation = inputs.feature_statistics(run, stage, unflatten_paths(frozen))
        frozen["vision/mean"] = _placed(mean, fixed["vision/mean"])
        frozen["vision/deviation"] = _placed(deviation, fixed["vision/deviation"])
    tree = offload.lend(unflatten_paths(frozen), stage.frozen)
    return params, tree, save_frozen(run.workdir.place, tree)


def _fresh(
    run: inputs.Run, stage: assemble.Stage, paths: set[str]
) -> tuple[dict[str, jax.Array], set[str]]:
    """Parameters of a fresh start, by path: earlier stages' where they have them.

    Returns:
      (the values, the paths of those drawn at random).
    """
    flat = flatten_paths(stage.trainable) | flatten_paths(stage.frozen)
    earlier = _earlier(run, stage)
    drawn = paths - set(earlier)
    made = flatten_paths(stage.initial(run.config.seed, drawn))
    # Trained here they may have been frozen elsewhere, in fewer bits; and the other way round.
    kept = {path: earlier[path].astype(flat[path].dtype) for path in paths - drawn}
    return {path: (made | kept)[path] for path in sorted(paths)}, drawn


def _placed(values: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(values.astype(target.dtype), target.sharding)


def check_data(run: inputs.Run) -> None:
    """Opens all data that is still to be read, so that nothing is missing hours from now.

    Raises:
      InputError: if a source cannot be opened, or cannot give what its dataset asks for.
    """
    for name in run.config.stages:
        stage = run.assemble(name)
        if not _is_behind(run, stage):
            for split in data_sources.SPLITS:
                if inputs.open_sources(run, stage, split):
                    inputs.pipeline(run, stage, split, stage.steps)
