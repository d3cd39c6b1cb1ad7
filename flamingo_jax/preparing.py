"""What `prepare` does: documents of a source to shards, or a config's media to features."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from flamingo_jax import (
    checkpoint,
    errors,
    feature_job,
    inputs,
    preemption,
    progress,
    sharding,
    stages,
)
from flamingo_jax import config as configs
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.workdir import Workdir

Advance = Callable[[int, int, str], None]
"""(done, in all, a note)."""


def documents(job: Job, out: str, workers: int = 1) -> None:
    """Makes ArrayRecord shards with a manifest of a source's documents; see `prepare.job`."""
    with _told("prepare", "records", out) as advance:
        prepare(job, out, workers, advance)


def features(
    out: str,
    config_spec: str,
    overrides: dict[str, str] | None = None,
    workdir: str = "",
    stage: str = "flamingo",
    shard_size: int = 1000,
) -> None:
    """Encodes every medium of a stage once, with the encoder that the stage begins with.

    Args:
      out: the folder of the features; config.data.features of the run that reads them.
      config_spec: FILE.py[:variant] of that run.
      overrides: {"data.versions": "2"}.
      workdir: the run's folder, with its earlier stages if it has any.
      stage: whose media; only Flamingo's encoder is frozen.
      shard_size: media a shard.

    Raises:
      InputError: if the config has no such stage, or an earlier stage is not finished.
    """
    c = configs.load(config_spec, overrides)
    c.data.features = ""  # they are what is made
    c = configs.finish(c)
    if stage != "flamingo" or stage not in c.stages:
        raise errors.InputError(
            f"--stage={stage}: only the stage flamingo has features to prepare, and the config's "
            f"stages are {', '.join(c.stages)}"
        )
    if not workdir:
        raise errors.InputError("--workdir is empty; give the folder of the run")
    with _told("prepare features", "documents", out) as advance:
        run, assembled, vision = _encoder(c, Workdir(workdir), stage)
        feature_job.prepare(run, assembled, vision, out, shard_size, advance)


def _encoder(c: Any, workdir: Workdir, name: str) -> tuple[inputs.Run, Any, Any]:
    """The run, its stage, and the encoder's weights as that stage gets them."""
    workdir.create()
    workdir.check_writable()
    with workdir.lock(), workdir.mirrored():
        _check_finished(c, workdir, name)
        m = c.mesh
        mesh = sharding.make_mesh(m.replica, m.fsdp, m.tensor, slices=m.slices)
        tokenizer = inputs.tokenizer(c, workdir)
        run = inputs.Run(c, workdir, tokenizer, mesh, {}, preemption.StopRequest())
        stage = run.assemble(name)
        restored, steps = None, workdir.checkpoints(name)
        if checkpoint.list_steps(steps):
            report = functools.partial(run.walked_back, name)
            restored = checkpoint.load_params(steps, stage.trainable, report=report)
        _, frozen, _ = stages.parameters(run, stage, restored, trained=False)
    return run, stage, frozen.get("vision", {})


def _check_finished(c: Any, workdir: Workdir, name: str) -> None:
    """Raises InputError if a stage before this one has steps to go: its weights would change."""
    for earlier in c.stages[: c.stages.index(name)]:
        steps = checkpoint.list_steps(workdir.checkpoints(earlier))
        done, wanted = steps[-1] if steps else 0, configs.stage_settings(c, earlier).steps
        if done < wanted:
            raise errors.InputError(
                f"the stage {earlier} of {str(workdir.place)!r} has done {done} of {wanted} steps; "
                f"train it first (with config.data.features set, train stops before {name} if the "
                "features are not there), or give the --workdir of its run"
            )


@contextlib.contextmanager
def _told(title: str, unit: str, out: str) -> Iterator[Advance]:
    """Gives the function that draws a bar; a signal that stops the block says how to go on."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def bar(total: int) -> progress.Progress:
            return stack.enter_context(progress.bar(title, total, unit=unit))

        stack.enter_context(preemption.watch())
        try:
            yield lambda done, total, note: bar(total).advance(done, note)
        except errors.Preempted as error:
            raise errors.Preempted(f"stopped; the same command goes on with {out!r}") from error
