"""Where a run's time goes: steps, waiting for data, saving; rates, MFU, goodput, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

KINDS: tuple[str, ...] = ("data", "checkpoint")
"""What a loop waits for beside its steps."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step is made of, over all hosts.

    Attributes:
      tokens: text tokens, padding included.
      images: frames that the encoder sees, absent ones included.
      model_flops: FLOPs that the step needs at least (`planning.analytic`); 0 = not known.
      peak_flops: FLOPs a second of all devices together, as published; 0 = not known.
    """

    tokens: int
    images: int
    model_flops: float = 0.0
    peak_flops: float = 0.0


@dataclasses.dataclass
class Past:
    """What earlier lives of a run have left: the base of its goodput.

    Attributes:
      begun: Unix time of its first start.
      productive: seconds of the steps that still count.
      restarts: how often it was begun again.
    """

    begun: float
    productive: float = 0.0
    restarts: int = 0


def past(events: Sequence[Mapping[str, Any]], speed: Sequence[Mapping[str, Any]]) -> Past:
    """Reads it from the rows of events.jsonl and speed.jsonl.

    Steps that a kill has undone have no rows any more: their seconds count as lost, like those in
    which nothing ran.
    """
    begun = min((row["time"] for row in events if "time" in row), default=time.time())
    restarts = sum(row.get("kind") == "resume" for row in events)
    return Past(begun, sum(row.get("compute_seconds", 0.0) for row in speed), restarts)


class Pace:
    """Measures the steps between two rows of speed.jsonl."""

    def __init__(self, work: Work, before: Past):
        """Starts no clock yet: `restart` does."""
        self._work, self._before = work, before
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins an interval after `step`: what came before it is no step's time."""
        self._clock, self._step = time.monotonic(), step
        self._waited = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside belongs to no interval: validation."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._clock += time.monotonic() - begin

    @contextlib.contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """The time inside is spent on one of `KINDS`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._waited[kind] += time.monotonic() - begin

    def row(self, step: int) -> dict[str, Any] | None:
        """The interval up to `step`, which is finished; None, and it goes on, if it has no step.

        Returns:
          seconds, of these data_wait_seconds, checkpoint_seconds and compute_seconds (the rest);
          steps, tokens and images a second of all of it; model_tflops, 10¹² model FLOPs a second of
          compute_seconds, and mfu, their share of the peak (Chowdhery et al., 2022, §B), as far as
          they are known; goodput, the share of the time since the
          run's first start in which steps were computed that still count; restarts; rss_gb and,
          where the platform tells, device_gb, the most that was used so far (10⁹ bytes).
        """
        steps, seconds, waited = step - self._step, time.monotonic() - self._clock, self._waited
        if steps <= 0 or seconds <= 0:
            return None
        self.restart(step)
        computing = max(seconds - sum(waited.values()), 1e-9)
        self._before.productive += computing
        rate, work = steps / seconds, self._work
        found = {
            "seconds": seconds,
            "data_wait_seconds": waited["data"],
            "checkpoint_seconds": waited["checkpoint"],
            "compute_seconds": computing,
            "steps_per_second": rate,
            "tokens_per_second": rate * work.tokens,
            "images_per_second": rate * work.images,
            "goodput": self._before.productive / max(time.time() - self._before.begun, computing),
            "restarts": self._before.restarts,
            "rss_gb": peak_rss_gb(),
        }
        if work.model_flops:
            achieved = work.model_flops * steps / computing
            found["model_tflops"] = achieved / 1e12
            found |= {"mfu": achieved / work.peak_flops} if work.peak_flops else {}
        device = peak_device_gb()
        return found if device is None else found | {"device_gb": device}


def peak_rss_gb() -> float:
    """The largest resident memory of this process so far, in GB (10⁹ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_device_gb() -> float | None:
    """The most memory in use so far on one of this process's devices, in GB; None on a CPU."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
    return max(peaks) / 1e9 if peaks else None
