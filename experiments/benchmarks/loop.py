"""What the loop of `train` costs beside its compiled step, and whether its memory stays flat.

    python experiments/benchmarks/loop.py --check
    python experiments/benchmarks/loop.py --memory --steps=2000 --check

Both run `train` itself: the demo's Flamingo stage with its data and cached features (one version of
each picture, frozen weights random), in a folder that is removed. Fields of the config may be given
as to `train`.

The first stops the run after each block of steps for two others, of the same compiled step on a
copy of the state: `bare`, on one batch that lies on the devices; `fed`, the same while the data's
threads make batches that are dropped. So loop / bare is all that training costs beside the step,
fed / bare what the data takes of the processors, and loop / fed what is the loop's own. Times are
those between dispatches once the run-ahead is full, by a wall's clock and in seconds of the
processors; the latter change less on a machine that others use too, and have the data's. A round's
ratio is that of two medians, the bare ones of the blocks before and after, and what is bounded is
the wall's median over rounds. Means have the steps that are logged, too.

The second prints memory of such a run, with the demo's validations and saves: what is in use and
what is resident, medians over as many steps; the slopes of both are bounded. Both count how often
the step was traced and compiled. `--check` ends with the exit code 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from resident import growth, resident_mb, used_mb

from flamingo_jax import assemble, inputs, run, sharding
from flamingo_jax.__main__ import take_overrides
from flamingo_jax.shapes import Batch
from flamingo_jax.training import RUN_AHEAD, Feeds

MOST_RATIO = 1.05
SHORT = {"stages": "('flamingo',)", "data.versions": "1", "eval.tasks": "()", "alarm.step": "0"}
ALONE = {"train.eval_every": "0", "checkpoint.every": "1000000"}
REST_SECONDS = 0.2  # what is read ahead has been read by then
EVENTS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Times = dict[tuple[str, str], list[float]]
"""{(clock, "loop", "bare" or "fed"): seconds of each round}."""


def main(argv: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    rest, overrides = take_overrides(argv)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default="experiments/openmoji.py")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--steps", type=int, default=2_000, help="of the measurement of memory")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=int, default=16, help="steps that are measured in a row")
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args(rest)
    watched: Memory | Turns
    if flags.memory:
        steps, watched = flags.steps, Memory(max(flags.steps // 40, 1))
        overrides = SHORT | {"train.steps": str(steps)} | overrides
    else:
        watched = Turns(flags.rounds + 1, flags.block)
        steps = watched.rounds * (watched.length + 1) + 1
        overrides = SHORT | ALONE | {"train.steps": str(steps)} | overrides
    counted = trained(flags.config, overrides, watched)
    failures = watched.failures()
    line = f"the step was traced {counted[0]} times and compiled {counted[1]} times"
    print(line)
    if counted != [1, 1]:
        failures.append(line)
    for failure in failures if flags.check else ():
        print(f"too much: {failure}", file=sys.stderr)
    return int(bool(failures) and flags.check)


def trained(config: str, overrides: dict[str, str], watched: Memory | Turns) -> list[int]:
    """Runs `train` with its step watched; how often that was traced and compiled."""
    counts = collections.Counter[tuple[str, str]]()

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        counts[event, str(kwargs.get("fun_name"))] += 1

    make, open_feeds = assemble.stage, inputs.feeds

    def stage(*arguments: Any) -> assemble.Stage:
        made = make(*arguments)
        watched.update = made.update
        return dataclasses.replace(made, update=watched)

    def feeds(*arguments: Any) -> Feeds:
        watched.feeds = open_feeds(*arguments)
        return watched.feeds

    jax.monitoring.register_event_duration_secs_listener(count)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(assemble, "stage", stage),
        mock.patch.object(inputs, "feeds", feeds),
    ):
        code = run.train(config, overrides, f"{folder}/run")
    if code:
        sys.exit(code)
    return [counts[EVENTS[0], "update"], counts[EVENTS[1], "jit(update)"]]


class Watched:
    """A stage's update, as the loop calls it."""

    update: Any
    feeds: Feeds

    def lower(self, *arguments: Any) -> Any:
        """The update's own."""
        return self.update.lower(*arguments)

    def __call__(self, state: Any, frozen: Any, batches: dict[str, Batch]) -> Any:
        """One update."""
        self.before(state, frozen, batches)
        return self.update(state, frozen, batches)

    def before(self, state: Any, frozen: Any, batches: dict[str, Batch]) -> None:
        """What is done before each step."""
        raise NotImplementedError

    def failures(self) -> list[str]:
        """Prints what was found; returns what is amiss."""
        raise NotImplementedError


class Memory(Watched):
    """Looks at memory before each step, and prints medians of what it saw every so many."""

    def __init__(self, every: int) -> None:
        self._every, self._step = every, 0
        self._now: list[tuple[float, float]] = []  # (used, resident), since it was printed last
        self._used: list[tuple[int, float]] = []
        self._resident: list[tuple[int, float]] = []

    def before(self, state: Any, frozen: Any, batches: dict[str, Batch]) -> None:
        """Looks."""
        self._now.append((used_mb(), resident_mb()))
        self._step += 1
        if self._step % self._every:
            return
        used, resident = (list(seen) for seen in zip(*self._now, strict=True))
        self._now = []
        self._used.append((self._step, statistics.median(used)))
        self._resident.append((self._step, statistics.median(resident)))
        print(
            f"step {self._step:7}: {self._used[-1][1]:7.1f} MB in use, "
            f"{self._resident[-1][1]:7.1f} MB resident (medians)",
            flush=True,
        )

    def failures(self) -> list[str]:
        """What grows."""
        return growth(self._used, "in use") + growth(self._resident)


class Turns(Watched):
    """Has the loop's steps, bare ones and fed ones take turns; the first round is not counted."""

    def __init__(self, rounds: int, block: int) -> None:
        self.rounds, self.length = rounds, RUN_AHEAD + 1 + block
        self._marks: list[tuple[float, ...]] = []
        self._state: Any = None
        self._batches: dict[str, Batch] = {}
        self._data: Iterator[dict[str, Batch]] = iter(())
        self._blocks: Times = collections.defaultdict(list)
        self._means: Times = collections.defaultdict(list)

    def before(self, state: Any, frozen: Any, batches: dict[str, Batch]) -> None:
        """Notes when the loop dispatches; between two blocks it waits for the others' turn."""
        if self._state is None:
            self._state, self._batches = jax.tree.map(jnp.copy, state), batches
            self._data = self.feeds.train(0)
        self._marks.append(_now())
        if len(self._marks) > self.length and len(self._blocks["wall", "loop"]) < self.rounds:
            jax.block_until_ready(state)
            self._note("loop", self._marks)
            self._others(frozen)
            self._marks = [_now()]

    def _others(self, frozen: Any) -> None:
        mesh = self._batches[next(iter(self._batches))].tokens.sharding.mesh
        kinds: dict[str, Callable[[], object]] = {
            "bare": lambda: None,
            "fed": lambda: sharding.to_devices(next(self._data), mesh),
        }
        for kind, make in kinds.items():
            time.sleep(REST_SECONDS)
            marks: list[tuple[float, ...]] = []
            ahead: collections.deque[Any] = collections.deque()
            for _ in range(self.length + 1):
                make()
                marks.append(_now())
                self._state, metrics = self.update(self._state, frozen, self._batches)
                ahead.append(metrics["loss"])
                if len(ahead) > RUN_AHEAD:
                    jax.block_until_ready(ahead.popleft())
            jax.block_until_ready(self._state)
            self._note(kind, marks)
        time.sleep(REST_SECONDS)

    def _note(self, kind: str, marks: list[tuple[float, ...]]) -> None:
        for place, clock in enumerate(CLOCKS):
            seen = [mark[place] for mark in marks[RUN_AHEAD + 1 :]]
            between = [b - a for a, b in itertools.pairwise(seen)]
            self._blocks[clock, kind].append(statistics.median(between))
            self._means[clock, kind].append(statistics.mean(between))

    def failures(self) -> list[str]:
        """The tables."""
        found = {}
        for clock in CLOCKS:
            print(f"{clock:5}{'median':>9}{'best':>9}   seconds a step, of blocks' medians")
            for kind in ("loop", "bare", "fed"):
                blocks = self._blocks[clock, kind][1:]
                print(f"{kind:5}{statistics.median(blocks):9.4f}{min(blocks):9.4f}")
            for over, under in (("loop", "bare"), ("fed", "bare"), ("loop", "fed")):
                ratio, low, high = _ratio(self._blocks, clock, over, under)
                means = _ratio(self._means, clock, over, under)[0]
                found[clock, over, under] = ratio
                print(f"{over} / {under} {ratio:.3f} ({low:.3f} to {high:.3f}), means {means:.3f}")
        line = (
            f"loop / bare is {found['wall', 'loop', 'bare']:.3f}, at most {MOST_RATIO} is allowed"
        )
        print(line)
        return [line] if found["wall", "loop", "bare"] > MOST_RATIO else []


def _now() -> tuple[float, ...]:
    return tuple(clock() for clock in CLOCKS.values())


def _ratio(blocks: Times, clock: str, over: str, under: str) -> tuple[float, float, float]:
    """Median and quartiles of rounds' ratios; round r's loop stands between bare r - 1 and r."""
    above, below = blocks[clock, over], blocks[clock, under]
    if (over, under) == ("loop", "bare"):
        below = [below[0], *((a + b) / 2 for a, b in itertools.pairwise(below))]
    ratios = [a / b for a, b in zip(above[1:], below[1:], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return middle, low, high


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
