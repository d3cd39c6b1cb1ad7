"""The loop of one stage: restore, step, log, validate, save. One compiled step, no host sync."""

from __future__ import annotations

import collections
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax import assemble, progress, sharding
from flamingo_jax.checkpoint import Restored, StageCheckpoints
from flamingo_jax.errors import Preempted
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import Batch, Params
from flamingo_jax.train.step import TrainState
from flamingo_jax.workdir import Workdir

RUN_AHEAD = 2
"""Steps the host may dispatch before the oldest is finished: it bounds the batches in flight."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Cadences of a stage and the plateau's alarm; see config.py.

    `eval_first` validates before the first step: what another run's parameters begin with.
    """

    log_every: int
    eval_every: int
    eval_first: bool = False
    alarm_step: int = 0
    alarm_nats: float = 0.0


@dataclasses.dataclass
class Feeds:
    """Where a stage's batches come from.

    Attributes:
      train: first step → iterator of {dataset: Batch of this host's rows}, one a step.
      validation: {dataset: Batch} dicts, the same at every validation.
      used: update → (dataset, index in its source) of the rows it was made from, where they are to
        be recorded.
      rejects: update → rows of rejects.jsonl, records that were not used up to it, each told once.
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
        settings: Settings,
        workdir: Workdir,
        checkpoints: StageCheckpoints,
        meta: dict[str, Any],
        stop: StopRequest,
    ):
        """Takes what the stage needs; nothing runs before `run`.

        Args:
          stage: the assembled stage.
          settings: cadences.
          workdir: where logs go.
          checkpoints: where steps go.
          meta: recorded with every step (config, digests, versions, command).
          stop: tells when to save and leave.
        """
        self.stage, self.settings, self.workdir = stage, settings, workdir
        self.checkpoints, self.meta, self.stop = checkpoints, meta, stop
        self._metrics, self._speed_log = workdir.log("metrics"), workdir.log("speed")
        self._rows, self._rejects = workdir.log("rows"), workdir.log("rejects")
        self._rejected: collections.Counter[tuple[str, str]] = collections.Counter()
        self._scalars: Any = None
        self._waiting: tuple[int, dict[str, Any]] | None = None
        self._clock = time.monotonic()
        self._clock_step = 0
        self._data_seconds = 0.0

    def run(
        self,
        restored: Restored | None,
        initial: Callable[[], Params],
        frozen: Params,
        feeds: Callable[[], Feeds],
        media: tuple[int, ...] | None = None,
    ) -> Outcome:
        """Trains to the last step.

        Args:
          restored: the newest sound step, or None for a fresh start.
          initial: makes the trainable parameters of a fresh start.
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
        state = self._state(restored, initial)
        first = 0 if restored is None else restored.step
        self.workdir.event(
            "start" if restored is None else "resume",
            f"stage {stage.name} from step {first} of {stage.steps}",
            stage=stage.name,
            step=first,
        )
        self._scalars = self.workdir.scalars(stage.name, first)
        data = feeds()
        if data.validation:
            measured = {name: abstract[name] for name in data.validation[0]}
            # Not waited for: what is wrong with it, the first validation raises again.
            background.submit(_compile, stage.evaluate, stage.trainable, stage.frozen, measured)
        background.shutdown(wait=False)
        batches = data.train(first)
        update.result()
        if restored is None and self.settings.eval_first:
            self._validate(0, state.params, frozen, data.validation)
        ahead: collections.deque[Any] = collections.deque()
        compiled = 0.0
        with self.stop.deferred(), progress.bar(stage.name, stage.steps, first) as bar:
            for step in range(first + 1, stage.steps + 1):
                state, metrics = stage.update(state, frozen, self._next(batches))
                if step == first + 1:
                    jax.block_until_ready(metrics["loss"])
                    compiled = time.monotonic() - begin
                    self._clock, self._clock_step = time.monotonic(), step
                ahead.append(metrics["loss"])
                if len(ahead) > RUN_AHEAD:
                    jax.block_until_ready(ahead.popleft())
                try:
                    self._after(step, state, frozen, metrics, data, bar)
                except Preempted:
                    self._tell_rejects(first, step)
                    raise
        self._close()
        self._tell_rejects(first, stage.steps)
        self.workdir.event(
            "finish", f"stage {stage.name}, {stage.steps} steps", stage=stage.name, step=stage.steps
        )
        return Outcome(state.params, time.monotonic() - begin, compiled)

    def _close(self) -> None:
        self.checkpoints.wait()
        for log in (self._metrics, self._speed_log, self._rows, self._rejects, self._scalars):
            log.close()

    def _tell_rejects(self, first: int, step: int) -> None:
        """Says how many records were not used since step `first`, and why."""
        reasons: dict[str, list[str]] = {}
        for (dataset, reason), count in sorted(self._rejected.items()):
            reasons.setdefault(dataset, []).append(f"{count} times {reason}")
        for dataset, counts in reasons.items():
            text = f"dataset {dataset}: records replaced by others since step {first}: "
            text += ", ".join(counts)
            self.workdir.event("rejects", text, stage=self.stage.name, step=step)
            progress.say(f"stage {self.stage.name}: {text}")

    def _state(self, restored: Restored | None, initial: Callable[[], Params]) -> TrainState:
        whole = sharding.replicated(self.stage.mesh)

        def scalar(step: int) -> jax.Array:
            return jax.jit(lambda: jnp.asarray(step, jnp.int32), out_shardings=whole)()

        if restored is not None:
            return TrainState(scalar(restored.step), restored.params, restored.opt)
        params = initial()
        make_opt = jax.jit(self.stage.tx.init, out_shardings=self.stage.state_shardings.opt)
        return TrainState(scalar(0), params, make_opt(params))

    def _next(self, batches: Iterator[dict[str, Batch]]) -> dict[str, Batch]:
        begin = time.monotonic()
        batch = sharding.to_devices(next(batches), self.stage.mesh)
        self._data_seconds += time.monotonic() - begin
        return batch

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
        last = step == self.stage.steps
        if last or step % self.settings.log_every == 0:
            self._flush(bar)
            self._waiting = (step, metrics)
        every = self.settings.eval_every
        alarmed = step == self.settings.alarm_step
        if last or alarmed or (every and step % every == 0):
            self._flush(bar)
            self._validate(step, state.params, frozen, data.validation)
        stopping = self.stop.requested and not last
        if last or stopping or self.checkpoints.due(step):
            # Rows up to a saved step must be on disk before it: a kill may come right after.
            self._flush(bar)
            meta = self.meta | {"stage": self.stage.name, "step": step}
            self.checkpoints.save(step, state.params, state.opt, meta, force=last or stopping)
        if stopping:
            self._close()
            text = f"stage {self.stage.name} saved at step {step} of {self.stage.steps}"
            self.workdir.event("preempted", text, stage=self.stage.name, step=step)
            raise Preempted(f"{text}; the same command goes on from there")
        if last:
            self._flush(bar)
        bar.done = step

    def _flush(self, bar: progress.Progress) -> None:
        """Fetches and writes the metrics that were put aside one interval ago."""
        if self._waiting is None:
            return
        step, metrics = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        stage = self.stage.name
        self._log({"stage": stage, "step": step, "kind": "train", **values})
        now = time.monotonic()
        steps = step - self._clock_step
        if steps > 0:
            speed = self._speed(step, now - self._clock, steps)
            self._speed_log.append(speed)
            self._scalars.write(speed)
        self._clock, self._clock_step, self._data_seconds = now, step, 0.0
        bar.advance(step, f"loss {values['loss']:.3f}")

    def _log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl and TensorBoard: no clock in it, so that runs compare."""
        self._metrics.append(row)
        self._scalars.write(row)

    def _speed(self, step: int, seconds: float, steps: int) -> dict[str, Any]:
        rate = steps / seconds
        specs = self.stage.datasets.values()
        tokens = sum(spec.batch * spec.length for spec in specs)
        images = sum(spec.batch * spec.media * spec.frames for spec in specs)
        return {
            "stage": self.stage.name,
            "step": step,
            "time": time.time(),
            "seconds": seconds,
            "steps_per_second": rate,
            "tokens_per_second": rate * tokens,
            "images_per_second": rate * images,
            "data_wait_seconds": self._data_seconds,
            "rss_gb": peak_rss_gb(),
        }

    def _validate(
        self, step: int, params: Params, frozen: Params, batches: list[dict[str, Batch]]
    ) -> None:
        """Means over all validation batches, exact: sums and counts are added up."""
        if not batches:
            return
        sums: dict[str, float] = collections.defaultdict(float)
        for batch in batches:
            placed = sharding.to_devices(batch, self.stage.mesh)
            for name, value in jax.device_get(self.stage.evaluate(params, frozen, placed)).items():
                sums[name] += float(value)
        values = summarise(sums)
        stage = self.stage.name
        self._log({"stage": stage, "step": step, "kind": "validation", **values})
        self._alarm(step, values)
        self._clock, self._clock_step = time.monotonic(), step

    def _alarm(self, step: int, values: dict[str, float]) -> None:
        """Says so when, late enough, a shuffled picture costs nothing: the model does not look."""
        gains = [
            values[f"{name}/shuffled_minus_right"]
            for name, spec in self.stage.datasets.items()
            # In a batch of one there is no other row's picture to show.
            if f"{name}/shuffled_minus_right" in values and spec.batch > 1
        ]
        limit = self.settings.alarm_nats
        if not self.settings.alarm_step or step < self.settings.alarm_step or not gains:
            return
        if max(gains) >= limit:
            return
        text = (
            f"text-only plateau: at step {step} a shuffled picture costs at most {max(gains):.3f} "
            f"nat a token, less than {limit}; the model does not look at its pictures"
        )
        row = {"stage": self.stage.name, "step": step, "kind": "alarm", "gain": max(gains)}
        self._log(row)
        self.workdir.event("alarm", text, stage=self.stage.name, step=step)
        progress.say(f"ALARM: {text}")


def _compile(function: Any, *arguments: Any) -> None:
    function.lower(*arguments).compile()


def summarise(sums: dict[str, float]) -> dict[str, float]:
    """{"m3w/nll", "m3w/count", …} → {"m3w/loss", "m3w/shuffled_minus_right", …}."""
    values = {}
    for name in sorted({key.rsplit("/", 1)[0] for key in sums}):
        count = max(sums[f"{name}/count"], 1.0)
        values[f"{name}/loss"] = sums[f"{name}/nll"] / count
        if f"{name}/shuffled_nll" in sums:
            gain = sums[f"{name}/shuffled_nll"] - sums[f"{name}/nll"]
            values[f"{name}/shuffled_minus_right"] = gain / count
        if f"{name}/retrieval" in sums:
            values[f"{name}/retrieval"] = sums[f"{name}/retrieval"] / count
    return values


def peak_rss_gb() -> float:
    """The largest resident memory of this process so far, in GB (10⁹ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
