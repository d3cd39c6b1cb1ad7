"""The sentence: one function a verb, each reading as what it does."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from flamingo_jax import (
    agreement,
    distributed,
    errors,
    evaluation,
    facts,
    inputs,
    inspection,
    logs,
    mirror,
    preemption,
    processes,
    profiling,
    progress,
    samples,
    sharding,
    stages,
    storage,
    tracking,
    watchdog,
)
from flamingo_jax import config as configs
from flamingo_jax import report as reports
from flamingo_jax.data.prepare.job import Job
from flamingo_jax.measuring import Evaluate
from flamingo_jax.sealed import remove_unfinished
from flamingo_jax.workdir import IDENTITY, Workdir, write_atomically

_Result = TypeVar("_Result")
IDENTITY_OF_DATASET = ("layout", "batch", "length", "images", "frames")


def train(
    config_spec: str,
    overrides: dict[str, str] | None = None,
    workdir: str = "",
    check: bool = False,
    membership: distributed.Membership | None = None,
    profile: str = "",
) -> int:
    """Trains the config's stages in a workdir, resuming wherever it stands; returns the exit code.

    Args:
      config_spec: FILE.py[:variant].
      overrides: {"train.steps": "10"}.
      workdir: the run's folder.
      check: one batch, one step, one save, one restore of each stage, in a folder that is removed.
      membership: this process's place in a job of several, see `distributed.find`.
      profile: FIRST:END, steps of each stage to be traced; see `profiling`.
    """
    traced = profiling.parse(profile)
    c = configs.load(config_spec, overrides)
    if not (workdir or check):
        raise errors.InputError("--workdir is empty; give the folder of the run")
    command = " ".join(["python -m flamingo_jax", *sys.argv[1:]]) if sys.argv[1:] else "run.train"
    finished = configs.finish(c)
    try:
        with distributed.joined(membership):
            if check:
                return _check(c, workdir)
            return _train(finished, Workdir(workdir), command, profile=traced)
    except processes.HostsMissing as error:
        progress.speak(True)  # each that waits says so: the first may be the one that is missing
        progress.say(f"{socket.gethostname()}: {error}")
        return errors.EXIT_DEFECT


def _check(c: Any, workdir: str) -> int:
    """A rehearsal of the real config, one step a stage: nothing is left behind."""
    for stage in c.stages:
        settings = configs.stage_settings(c, stage)
        settings.steps, settings.eval_batches, settings.eval_every = 1, 1, 0
    c.checkpoint.every, c.eval.tasks, c.eval.during.queries = 1, (), 1
    c.data.cache_features, c.data.features = False, ""  # they would be of other weights
    finished = configs.finish(c)
    place = storage.to_path(workdir) if workdir else None
    several = jax.process_count() > 1
    beside = place if place is not None and (several or storage.is_remote(place)) else None
    with storage.temporary(beside) as own:
        folder = processes.gather("check", str(own))[0]
        for _ in range(2):  # the second time restores what the first has saved
            _train(finished, Workdir(folder), "check", rehearsal=True)
        processes.barrier("checked")
        if storage.is_remote(folder):
            shutil.rmtree(Workdir(folder).path, ignore_errors=True)
    if processes.is_primary():
        print("check passed: a batch, a step, a save and a restore of every stage")
    return errors.EXIT_OK


def _train(
    c: Any,
    workdir: Workdir,
    command: str,
    rehearsal: bool = False,
    profile: tuple[int, int] = (0, 0),
) -> int:
    _agreed(workdir.create)
    _agreed(workdir.check_writable)
    with contextlib.ExitStack() as stack:
        _agreed(lambda: stack.enter_context(workdir.lock()))
        _agreed(lambda: stack.enter_context(workdir.mirrored()))
        log = stack.enter_context(logs.process_log(workdir.path / "logs"))
        stop = stack.enter_context(preemption.watch())
        agreement.check(agreement.facts("train", configs.to_json(c)))
        if _agreed(lambda: _is_finished(c, workdir)):
            progress.say(f"{workdir.place} is finished; FRESH=1 or another --workdir trains again")
            if processes.is_primary():
                reports.summary(workdir.path)
            return errors.EXIT_OK
        _begin_anew(workdir)
        m = c.mesh
        mesh = sharding.make_mesh(m.replica, m.fsdp, m.tensor, slices=m.slices)
        tokenizer = processes.primary_first(lambda: inputs.tokenizer(c, workdir), errors.InputError)
        identity = _identity(c, tokenizer.digest)
        for change in _agreed(lambda: workdir.open_or_create(configs.to_json(c), identity)):
            text = f"{change.field}: {change.old} before, {change.new} now"
            workdir.event("config", text)
            progress.say(f"config changed: {text}")
        workdir.remove("finished")
        meta = facts.meta(c, command)
        tracker = tracking.Tracker(c.log.wandb, workdir.path, configs.to_json(c))
        stack.callback(tracker.close)
        run = inputs.Run(c, workdir, tokenizer, mesh, meta, stop, tracker, profile)
        several = jax.process_count() > 1
        run.dog = watchdog.Watchdog(c.hang_seconds, log, jax.process_index(), backstop=several)
        _agreed(lambda: _check_disk(run))
        _agreed(lambda: stages.check_data(run))
        evaluate = _agreed(lambda: _evaluations(run))
        known = facts.describe(run, command)
        progress.say(
            f"{known['devices']} x {known['platform']}, f32 matrix products at "
            f"{known['probe']['matmul_gflops']:.0f} GFLOP/s: times elsewhere scale with it"
        )
        for name in c.stages:
            outcome = stages.run_stage(run, name, evaluate)
            facts.record_stage(workdir, known, name, c, outcome)
            if stop.requested:
                raise errors.Preempted(f"stage {name} is finished; the same command goes on")
        stop.no_more_saves()
        if rehearsal:
            return errors.EXIT_OK
        evaluation.evaluate(run)
        facts.record_memory(workdir, known)
        if processes.is_primary():
            write_atomically(workdir.path / "finished", json.dumps(_lengths(c)) + "\n")
            reports.write(workdir.path)
            reports.summary(workdir.path)
    return errors.EXIT_OK


def _evaluations(run: inputs.Run) -> Evaluate | None:
    """What asks the benchmarks of `config.eval.during`; None where it never would."""
    if not run.config.eval.every or "flamingo" not in run.config.stages:
        return None
    from flamingo_jax import periodic

    return periodic.Evaluations(run)


def _agreed(attempt: Callable[[], _Result]) -> _Result:
    """`attempt()`; what is wrong with one process's input is told by all, and ends all."""
    return processes.agreed(attempt, errors.InputError, "another process cannot go on")


def _begin_anew(workdir: Workdir) -> None:
    """Forgets what a start that saved nothing was made with: a mended config may use its folder."""
    for folder in workdir.stages_begun():
        remove_unfinished(folder)
    if not workdir.has_steps():
        workdir.remove(IDENTITY)
        workdir.remove("tokenizer")
    processes.barrier("begun anew")


def _lengths(c: Any) -> dict[str, Any]:
    """What a finished run has done: a config that asks for more is not finished."""
    steps = {stage: configs.stage_settings(c, stage).steps for stage in c.stages}
    return {"steps": steps, "tasks": list(c.eval.tasks), "split": c.eval.split}


def _is_finished(c: Any, workdir: Workdir) -> bool:
    mark = workdir.path / "finished"
    if not mark.is_file() or json.loads(mark.read_text()) != _lengths(c):
        return False
    tokenizer = inputs.tokenizer(c, workdir)
    changes = workdir.open_or_create(configs.to_json(c), _identity(c, tokenizer.digest))
    for change in changes:
        workdir.event("config", f"{change.field}: {change.old} before, {change.new} now")
    return True


def _identity(c: Any, tokenizer_digest: str) -> dict[str, Any]:
    """What may not change in a workdir (DESIGN.md §4.3), by dotted name."""
    whole = json.loads(configs.to_json(c))
    found: dict[str, Any] = {
        "stages": whole["stages"],
        "seed": c.seed,
        "tokenizer": tokenizer_digest,
    }

    def add(prefix: str, tree: dict[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                add(f"{prefix}.{key}", value)
            else:
                found[f"{prefix}.{key}"] = value

    add("tokenizer", {k: v for k, v in whole["tokenizer"].items() if k != "path"})
    # Fields that say how the same is computed are not of the identity.
    how = ("remat", "attention", "partial_sums", "unroll", "unroll_blocks", "loss_chunk")
    add("model", {k: v for k, v in whole["model"].items() if k not in how})
    found["trainable"] = whole["trainable"]
    found["data.image_size"] = c.data.image_size
    for stage in c.stages:
        where = "train" if stage == "flamingo" else f"pretrain.{stage}"
        for name, row in configs.stage_settings(c, stage).datasets.items():
            for field in IDENTITY_OF_DATASET:
                found[f"{where}.datasets.{name}.{field}"] = row[field]
    return found


def _check_disk(run: inputs.Run) -> None:
    """Three times the largest stage's state, or what the config asks for, must be free."""
    largest = 0
    for name in run.config.stages:
        stage = run.assemble(name)
        leaves = jax.tree.leaves((stage.state, stage.frozen))
        largest = max(largest, sum(a.size * a.dtype.itemsize for a in leaves))
    run.workdir.check_disk(int(run.config.checkpoint.min_free_gb * 1e9) or 3 * largest)


def plan(config_spec: str, overrides: dict[str, str] | None = None, **options: Any) -> int:
    """Compiles a stage's step for devices that need not be there; 0 fits, 3 does not fit.

    Args:
      config_spec: FILE.py[:variant].
      overrides: {"train.steps": "10"}.
      options: the other fields of `plan.command.Ask`.
    """
    from flamingo_jax.plan import command

    return command.run(command.Ask(config_spec, overrides or {}, **options))


def report(workdirs: list[str], markdown: bool = False) -> int:
    """Writes one run's report again, or lays several over each other.

    Args:
      workdirs: the runs' folders, or addresses.
      markdown: print the table of checks as Markdown, and nothing else.
    """
    copies = [mirror.reading_copy(workdir) for workdir in workdirs]
    folders = [folder for folder, _ in copies]
    path = reports.write(folders[0]) if len(folders) == 1 else reports.compare(folders)
    if markdown:
        print(reports.table(folders, markdown=True), end="")
    elif len(folders) == 1:
        reports.summary(folders[0])
    else:
        print(reports.table(folders), end="")
        print(f"report   {path}")
    copies[0][1]()
    return errors.EXIT_OK


def prepare(job: Job, out: str, workers: int = 1) -> int:
    """Makes ArrayRecord shards with a manifest of a source's documents.

    Args:
      job: what and how.
      out: the folder of the shards.
      workers: processes.
    """
    from flamingo_jax import preparing

    preparing.documents(job, out, workers)
    print(inspection.describe(out), end="")
    return errors.EXIT_OK


def prepare_features(out: str, **options: Any) -> int:
    """Makes a folder of the features of a config's media; see `preparing.features`."""
    from flamingo_jax import preparing

    preparing.features(out, **options)
    print(inspection.describe(out), end="")
    return errors.EXIT_OK


def inspect(
    folder: str,
    config_spec: str = "",
    overrides: dict[str, str] | None = None,
    stage: str = "",
    out: str = "",
    rows: int = samples.ROWS,
) -> int:
    """Prints what a run, a checkpoint, prepared documents or features hold, without loading them.

    With a config instead of a folder: writes the page of its datasets, see `samples.write`.
    """
    if config_spec:
        c = configs.finish(configs.load(config_spec, overrides))
        print(f"page     {samples.write(c, stage, out, rows)}")
    else:
        print(inspection.describe(folder), end="")
    return errors.EXIT_OK


def generate(checkpoint: str, items: list[str], **options: Any) -> int:
    """Continues one prompt of pictures, clips and text."""
    from flamingo_jax import use

    use.generate_command(checkpoint, items, **options)
    return errors.EXIT_OK


def evaluate(
    checkpoint: str,
    workdir: str,
    config_spec: str = "",
    overrides: dict[str, str] | None = None,
    names: Sequence[str] = (),
    root: str = "",
    membership: distributed.Membership | None = None,
    listed: bool = False,
) -> int:
    """Runs few-shot benchmarks on a checkpoint; the same command goes on after a kill.

    Args:
      checkpoint: a run's folder, or one step inside it.
      workdir: the folder of results.
      config_spec: FILE.py[:variant], "" = the defaults with `names`.
      overrides: {"shots": "0,4"}.
      names: of benchmarks, the config's or others.
      root: the folder that holds the benchmarks' folders.
      membership: this process's place in a job of several, see `distributed.find`.
      listed: nothing is asked; which benchmarks there are, and their files, is printed.
    """
    from flamingo_jax import benchmarking

    c = benchmarking.config_of(config_spec, overrides or {}, names, root)
    if listed:
        print(benchmarking.table(c))
        return errors.EXIT_OK
    with distributed.joined(membership):
        benchmarking.evaluate(c, checkpoint, workdir)
    return errors.EXIT_OK
