"""The loop of one stage: restore, step, log, validate, save. One compiled step, no host sync."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax import assemble, logs, memory, pace, processes, progress, sharding
from flamingo_jax.checkpoint import Restored, StageCheckpoints
from flamingo_jax.errors import InputError, Preempted
from flamingo_jax.measuring import Cadence, Evaluate, Measures
from flamingo_jax.preemption import StopRequest
from flamingo_jax.profiling import Profiler
from flamingo_jax.shapes import Batch, Params
from flamingo_jax.tracking import Tracker
from flamingo_jax.train.step import TrainState
from flamingo_jax.watchdog import Watchdog
from flamingo_jax.workdir import Workdir

RUN_AHEAD = 2
"""Steps the host may dispatch before the oldest is finished: it bounds the batches in flight."""

POLL_SECONDS = 0.001
"""How often it is asked whether the devices still have work while a batch is late."""

GIVE_BACK_SECONDS = 30.0
"""How long freed memory is kept for what is freed and taken again."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Cadences of a stage; see config.py.

    `profile` = steps [first, end) to be traced; after `most_skipped` steps in a row that were
    skipped the run ends, 0 = never.
    """

    log_every: int
    measures: Cadence
    profile: tuple[int, int] = (0, 0)
    most_skipped: int = 0


@dataclasses.dataclass
class Feeds:
    """Where a stage's batches come from.

    Attributes:
      train: first step → iterator of {dataset: Batch of this host's rows}, one a step.
      validation: {dataset: Batch} dicts, the same at every validation.
      used: update → (dataset, index in its source) of the rows it was made from, where they are to
        be recorded; over all processes each row once.
      rejects: update → rows of rejects.jsonl, records that were not used up to it, each told once
        and by one process.
    """

    train: Callable[[int], Iterator[dict[str, Batch]]]
    validation: list[dict[str, Batch]]
    used: Callable[[int], list[tuple[str, int]]] | None = None
    rejects: Callable[[int], list[dict[str, Any]]] = lambda _: []


@dataclasses.dataclass
class Outcome:
    """What a stage leaves behind.

    Attributes:
      params: the trained parameters.
      seconds: of the loop, in this process.
      compile_seconds: until the first step had been done.
      finished_before: whether there was nothing left to do.
    """

    params: Params
    seconds: float
    compile_seconds: float
    finished_before: bool = False


class StageLoop:
    """Runs a stage from wherever its checkpoints stand to its last step."""

    def __init__(
        self,
        stage: assemble.Stage,
        work: pace.Work,
        settings: Settings,
        workdir: Workdir,
        checkpoints: StageCheckpoints,
        meta: dict[str, Any],
        stop: StopRequest,
        tracker: Tracker,
        dog: Watchdog,
        evaluate: Evaluate | None = None,
    ):
        """Takes what the stage needs; nothing runs before `run`.

        Args:
          stage: the assembled stage.
          work: what a step is made of.
          settings: cadences.
          workdir: where logs go.
          checkpoints: where steps go.
          meta: recorded with every step (config, digests, versions, command).
          stop: tells when to save and leave.
          tracker: is sent the rows of metrics and speed, too.
          dog: watches the loop, which hangs on all hosts once it does on one.
          evaluate: asks the benchmarks that are asked now and then.
        """
        self.stage, self.settings, self.workdir = stage, settings, workdir
        self.checkpoints, self.meta, self.stop, self.tracker = checkpoints, meta, stop, tracker
        self.dog, self._work = dog, work
        self._metrics, self._speed_log = workdir.log("metrics"), workdir.log("speed")
        self._rows, self._rejects = workdir.log("rows"), workdir.log("rejects")
        self._measures = Measures(stage, settings.measures, workdir, dog, self._log, evaluate)
        self._rejected: collections.Counter[tuple[str, str]] = collections.Counter()
        self._scalars: Any = None
        self._waiting: tuple[int, dict[str, Any], dict[str, Any] | None] | None = None
        self._ahead: collections.deque[Any] = collections.deque()
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pace = pace.Pace(work, pace.past([], []))
        self._skipped = 0
        self._given_back = time.monotonic()

    def run(
        self,
        restored: Restored | None,
        params: Params,
        frozen: Params,
        feeds: Callable[[], Feeds],
        media: tuple[int, ...] | None = None,
    ) -> Outcome:
        """Trains to the last step.

        Args:
          restored: the newest sound step, or None for a fresh start.
          params: the trainable parameters, on the devices; they are given away.
          frozen: the frozen parameters, on the devices.
          feeds: opens the data; not called where nothing is left to do.
          media: dims of a frame's cached features, (P, E), if the batches hold them.

        Raises:
          Preempted: after a request to stop, with everything saved.
        """
        stage = self.stage
        if restored is not None and restored.step >= stage.steps:
            return Outcome(restored.params, 0.0, 0.0, finished_before=True)
        begin = time.monotonic()
        # The step is compiled while the data is opened: features may have to be computed first.
        # jit finds the finished program when it is called with arrays of these shapes.
        abstract = stage.abstract_batches(media)
        background = ThreadPoolExecutor(1, thread_name_prefix="compile")
        update = background.submit(_compile, stage.update, stage.state, stage.frozen, abstract)
        state = self._state(restored, params)
        first = 0 if restored is None else restored.step
        kind = "start" if restored is None else "resume"
        self._event(kind, f"stage {stage.name} from step {first} of {stage.steps}", first)
        told = (logs.read_rows(self.workdir.path / f"{name}.jsonl") for name in ("events", "speed"))
        self._pace = pace.Pace(self._work, pace.past(*told))
        self._scalars = self.workdir.scalars(stage.name, first)
        data = feeds()
        if data.validation:
            measured = {name: abstract[name] for name in data.validation[0]}
            # Not waited for: what is wrong with it, the first validation raises again.
            background.submit(_compile, stage.evaluate, stage.trainable, stage.frozen, measured)
        background.shutdown(wait=False)
        batches = data.train(first)
        update.result()
        # Gloo gives a process 30 s to come to the first collective of its group (jax 0.10.2), and
        # one may compile for longer than another.
        processes.barrier("compiled")
        if restored is None and self.settings.measures.eval_first:
            self._measures.validate(0, state.params, frozen, data.validation)
        compiled, pending = 0.0, self._fetch(batches)
        profiler = Profiler(self.workdir.path / "profile" / stage.name, self.settings.profile)
        drawn = progress.bar(stage.name, stage.steps, first)
        with self.stop.deferred(), profiler, self.dog, drawn as bar:
            if restored is not None and self._was_left_out(first):
                self._evaluate(first, state.params, frozen)
            for step in range(first + 1, stage.steps + 1):
                if folder := profiler.before(step):
                    self._event("profile", f"steps from {step} on are traced in {folder}", step)
                state, metrics = stage.update(state, frozen, self._next(pending))
                if step < stage.steps:
                    pending = self._fetch(batches)
                profiler.after(step, metrics["loss"])
                if step == first + 1:
                    jax.block_until_ready(metrics["loss"])
                    compiled = time.monotonic() - begin
                    self._pace.restart(step)
                self._ahead.append(metrics["loss"])
                if len(self._ahead) > RUN_AHEAD:
                    jax.block_until_ready(self._ahead.popleft())
                try:
                    self._after(step, state, frozen, metrics, data, bar)
                except Preempted:
                    self._tell_rejects(first, step)
                    raise
                self.dog.alive(step)
        self._close()
        self._tell_rejects(first, stage.steps)
        self._event("finish", f"stage {stage.name}, {stage.steps} steps", stage.steps)
        return Outcome(state.params, time.monotonic() - begin, compiled)

    def _close(self) -> None:
        self._fetcher.shutdown(wait=False)
        self.checkpoints.wait()
        for log in (self._metrics, self._speed_log, self._rows, self._rejects, self._scalars):
            log.close()

    def _event(self, kind: str, text: str, step: int) -> None:
        self.workdir.event(kind, text, stage=self.stage.name, step=step)

    def _tell_rejects(self, first: int, step: int) -> None:
        """Says how many records no process used since step `first`, and why; all call it."""
        counted = json.dumps([[*what, count] for what, count in self._rejected.items()])
        rejected: collections.Counter[tuple[str, str]] = collections.Counter()
        for told in processes.gather("rejects", counted):
            for dataset, reason, count in json.loads(told):
                rejected[dataset, reason] += count
        reasons: dict[str, list[str]] = {}
        for (dataset, reason), count in sorted(rejected.items()):
            reasons.setdefault(dataset, []).append(f"{count} times {reason}")
        for dataset, counts in reasons.items():
            text = f"dataset {dataset}: records replaced by others since step {first}: "
            text += ", ".join(counts)
            self._event("rejects", text, step)
            progress.say(f"stage {self.stage.name}: {text}")

    def _state(self, restored: Restored | None, params: Params) -> TrainState:
        whole = sharding.replicated(self.stage.mesh)

        def scalar(step: int) -> jax.Array:
            return jax.jit(lambda: jnp.asarray(step, jnp.int32), out_shardings=whole)()

        if restored is not None:
            return TrainState(scalar(restored.step), params, restored.opt)
        make_opt = jax.jit(self.stage.tx.init, out_shardings=self.stage.state_shardings.opt)
        return TrainState(scalar(0), params, make_opt(params))

    def _fetch(self, batches: Iterator[dict[str, Batch]]) -> Future[dict[str, Batch]]:
        """Begins to bring the next batches onto the devices."""
        return self._fetcher.submit(lambda: sharding.to_devices(next(batches), self.stage.mesh))

    def _next(self, pending: Future[dict[str, Batch]]) -> dict[str, Batch]:
        """The batches, once they are there: waited for is only what leaves the devices idle."""
        while self._unfinished() and not wait([pending], POLL_SECONDS).done:
            pass
        with self._pace.waiting("data"):
            return pending.result()

    def _unfinished(self) -> int:
        """How many of the steps dispatched are not finished yet."""
        return sum(not loss.is_ready() for loss in self._ahead)

    def _after(
        self,
        step: int,
        state: TrainState,
        frozen: Params,
        metrics: dict[str, Any],
        data: Feeds,
        bar: progress.Progress,
    ) -> None:
        """What follows a step, in this order: log, validate, save, leave."""
        if data.used is not None:
            where = {"stage": self.stage.name, "step": step}
            self._rows.append(*[where | {"dataset": d, "index": i} for d, i in data.used(step)])
        for row in data.rejects(step):
            self._rejects.append({"stage": self.stage.name, **row})
            self._rejected[row["dataset"], row["reason"]] += 1
        last, cadence = step == self.stage.steps, self.settings.measures
        validates = cadence.validates(step, self.stage.steps)
        evaluates = cadence.evaluates(step, self.stage.steps)
        if validates or evaluates:
            jax.block_until_ready(metrics["loss"])  # the steps' time is not theirs
        if last or step % self.settings.log_every == 0:
            self._flush(bar)
            # The clock is read now, the metrics once they are there.
            self._waiting = (step, metrics, self._pace.row(step - self._unfinished()))
        if validates or evaluates:
            self._flush(bar)
        if validates:
            with self._pace.paused():
                self._measures.validate(step, state.params, frozen, data.validation)
        if evaluates:
            self._evaluate(step, state.params, frozen)
        stopping = self.stop.reached() and not last  # asked after every step, the last too
        if last or stopping or self.checkpoints.due(step):
            # Rows up to a saved step must be kept before it: a kill may come right after.
            self._flush(bar)
            meta = self.meta | {"stage": self.stage.name, "step": step}
            self.dog.phase("checkpoint")
            jax.block_until_ready(metrics["loss"])  # nor saving's
            with self._pace.waiting("checkpoint"):
                self.workdir.push()
                self.checkpoints.save(step, state.params, state.opt, meta, force=last or stopping)
        if stopping:
            self._close()
            text = f"stage {self.stage.name} saved at step {step} of {self.stage.steps}"
            self._event("preempted", text, step)
            raise Preempted(f"{text}; the same command goes on from there")
        if last:
            self._flush(bar)
        bar.done = step

    def _flush(self, bar: progress.Progress) -> None:
        """Fetches and writes the metrics that were put aside one interval ago."""
        if self._waiting is None:
            return
        step, metrics, speed = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        stage = self.stage.name
        self._log({"stage": stage, "step": step, "kind": "train", **values})
        if speed is not None:
            speed |= {"stage": stage, "step": step, "time": time.time()}
            self._speed_log.append(speed)
            self._scalars.write(speed)
            self.tracker.write(speed)
        bar.advance(step, f"loss {values['loss']:.3f}")
        self._look_at_skipped(step, values)
        if time.monotonic() - self._given_back > GIVE_BACK_SECONDS:
            memory.give_back()
            self._given_back = time.monotonic()

    def _look_at_skipped(self, step: int, values: dict[str, float]) -> None:
        """Says how many steps were skipped so far; ends a run that takes none any more."""
        skipped, in_a_row = (int(values.get(f"skipped{end}", 0)) for end in ("", "_in_a_row"))
        if skipped != self._skipped:
            text = f"{skipped} steps were skipped so far: gradients not finite, or too large"
            self._event("skipped", text, step)
            progress.say(f"stage {self.stage.name}, step {step}: {text}")
            self._skipped = skipped
        if 0 < self.settings.most_skipped <= in_a_row:
            raise InputError(
                f"stage {self.stage.name}: the last {in_a_row} steps up to {step} were skipped, as "
                "their gradients were not finite or too large; lower the learning rate or raise "
                "the optimizer's skip_above, and go on from the last saved step"
            )

    def _log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl and TensorBoard: no clock in it, so that runs compare."""
        self._metrics.append(row)
        self._scalars.write(row)
        self.tracker.write(row)

    def _evaluate(self, step: int, params: Params, frozen: Params) -> None:
        with self._pace.paused():
            self._measures.evaluate(step, params, frozen, lambda: self.stop.requested)

    def _was_left_out(self, step: int) -> bool:
        """Whether an evaluation was due after a step, and a request to stop came before its end."""
        if not self.settings.measures.evaluates(step, self.stage.steps):
            return False
        rows = logs.read_rows(self.workdir.path / "metrics.jsonl")  # the first process has them
        wanted = {"stage": self.stage.name, "step": step, "kind": "evaluation"}
        known = any(wanted.items() <= row.items() for row in rows)
        return processes.gather("left out", "" if known else "yes")[0] == "yes"


def _compile(function: Any, *arguments: Any) -> None:
    function.lower(*arguments).compile()
