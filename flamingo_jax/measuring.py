"""What a stage is measured by while it trains: validation, the plateau's alarm, benchmarks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from flamingo_jax import assemble, progress, sharding
from flamingo_jax.shapes import Batch, Params
from flamingo_jax.watchdog import Watchdog
from flamingo_jax.workdir import Workdir

Evaluate = Callable[[int, Params, Params, Callable[[], bool]], dict[str, float] | None]
"""(step, trained, frozen, go on?) → figures; None where it was told not to go on.

It asks, between any two groups of queries, whether to go on.
"""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When a stage is measured; see config.py.

    Attributes:
      eval_every: steps between validations; 0 = only at the end.
      eval_first: validates before the first step: what another run's parameters begin with.
      alarm_step: from this step on the plateau's alarm is on; 0 = off.
      alarm_nats: it sounds below.
      benchmarks_every: steps between evaluations on benchmarks, the last step is one; 0 = none.
    """

    eval_every: int = 0
    eval_first: bool = False
    alarm_step: int = 0
    alarm_nats: float = 0.0
    benchmarks_every: int = 0

    def validates(self, step: int, last: int) -> bool:
        """Whether losses are measured after a step."""
        return step in (last, self.alarm_step) or _is_multiple(step, self.eval_every)

    def evaluates(self, step: int, last: int) -> bool:
        """Whether benchmarks are asked after a step."""
        every = self.benchmarks_every
        return bool(every) and (step == last or _is_multiple(step, every))


def _is_multiple(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


class Measures:
    """Measures a stage's parameters; each measurement is a row of metrics."""

    def __init__(
        self,
        stage: assemble.Stage,
        cadence: Cadence,
        workdir: Workdir,
        dog: Watchdog,
        log: Callable[[dict[str, Any]], None],
        evaluate: Evaluate | None = None,
    ):
        """Measures nothing yet.

        Args:
          stage: the assembled stage.
          cadence: when.
          workdir: where events go.
          dog: is told that the process is alive.
          log: is given the rows.
          evaluate: asks the benchmarks; None = there are none.
        """
        self._stage, self._cadence, self._workdir = stage, cadence, workdir
        self._dog, self._log, self._evaluate = dog, log, evaluate

    def validate(
        self, step: int, params: Params, frozen: Params, batches: Sequence[dict[str, Batch]]
    ) -> None:
        """Means over all validation batches, exact: sums and counts are added up."""
        if not batches:
            return
        sums: dict[str, float] = collections.defaultdict(float)
        for batch in batches:
            self._dog.phase("validation")
            placed = sharding.to_devices(batch, self._stage.mesh)
            for name, value in jax.device_get(self._stage.evaluate(params, frozen, placed)).items():
                sums[name] += float(value)
        values = summarise(sums)
        self._log({"stage": self._stage.name, "step": step, "kind": "validation", **values})
        self._alarm(step, values)

    def evaluate(
        self, step: int, params: Params, frozen: Params, stopping: Callable[[], bool]
    ) -> None:
        """Asks the benchmarks.

        Args:
          step: after which.
          params: trained.
          frozen: and not.
          stopping: whether there is no time any more; the step is then evaluated by the next start.
        """
        if self._evaluate is None:
            return

        def go_on() -> bool:
            self._dog.phase("evaluation")
            return not stopping()

        figures = self._evaluate(step, params, frozen, go_on)
        if figures:
            self._log({"stage": self._stage.name, "step": step, "kind": "evaluation", **figures})

    def _alarm(self, step: int, values: dict[str, float]) -> None:
        """Says so when, late enough, a shuffled picture costs nothing: the model does not look."""
        stage, limit = self._stage, self._cadence.alarm_nats
        gains = [
            values[f"{name}/shuffled_minus_right"]
            for name, spec in stage.datasets.items()
            # In a batch of one there is no other row's picture to show.
            if f"{name}/shuffled_minus_right" in values and spec.batch > 1
        ]
        begin = self._cadence.alarm_step
        if not begin or step < begin or not gains or max(gains) >= limit:
            return
        text = (
            f"text-only plateau: at step {step} a shuffled picture costs at most {max(gains):.3f} "
            f"nat a token, less than {limit}; the model does not look at its pictures"
        )
        self._log({"stage": stage.name, "step": step, "kind": "alarm", "gain": max(gains)})
        self._workdir.event("alarm", text, stage=stage.name, step=step)
        progress.say(f"ALARM: {text}")


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
