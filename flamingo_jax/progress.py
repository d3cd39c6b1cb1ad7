"""Progress: a bar with rate and time left on a terminal, plain lines where there is none.

Of several processes one speaks; what each would say goes to its own log (`logs.process_log`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

PLAIN_SECONDS = 15.0
"""Least time between two plain lines."""

LOGGER = logging.getLogger("flamingo_jax")
"""Gets every line that is said; it goes nowhere until a log is opened."""

_speaking = threading.Event()
_speaking.set()


class Progress:
    """One job of `total` units; use `bar` to make one."""

    def __init__(self, title: str, total: int, done: int, unit: str):
        """Starts the clock: rates count from here, whatever was `done` before."""
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._begin, self._first, self._spoke = time.monotonic(), done, 0.0

    def advance(self, done: int, note: str = "") -> None:
        """Says that `done` units are finished in all."""
        self.done = done
        now = time.monotonic()
        if done >= self.total or now - self._spoke >= PLAIN_SECONDS:
            self._spoke = now
            self._tell(self._line(now, note))

    def _tell(self, line: str) -> None:
        say(line)

    def _line(self, now: float, note: str) -> str:
        seconds = max(now - self._begin, 1e-9)
        rate = (self.done - self._first) / seconds
        left = f", {clock((self.total - self.done) / rate)} left" if rate > 0 else ""
        took = f"{clock(seconds)} gone" + (left if self.done < self.total else "")
        tail = f"  {note}" if note else ""
        return f"{self.title} {self.done}/{self.total}  {rate:.1f} {self.unit}/s  {took}{tail}"


class _Bar(Progress):
    """The same on a terminal, drawn by rich."""

    def __init__(self, title: str, total: int, done: int, unit: str):
        super().__init__(title, total, done, unit)
        from rich import progress as rich

        self._rich = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[note]}"),
        )
        self._task = self._rich.add_task(title, total=total, completed=done, note="", rate="")
        self._rich.start()

    def advance(self, done: int, note: str = "") -> None:
        super().advance(done, note)
        seconds = max(time.monotonic() - self._begin, 1e-9)
        rate = f"{(done - self._first) / seconds:.1f} {self.unit}/s"
        self._rich.update(self._task, completed=done, note=note, rate=rate)

    def _tell(self, line: str) -> None:
        LOGGER.info(line)

    def stop(self) -> None:
        """Leaves the bar as it stands."""
        self._rich.stop()


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0, unit: str = "steps") -> Iterator[Progress]:
    """A progress bar on a terminal, a line every 15 seconds elsewhere."""
    if not (_speaking.is_set() and sys.stderr.isatty()):
        yield Progress(title, total, done, unit)
        return
    drawn = _Bar(title, total, done, unit)
    try:
        yield drawn
    finally:
        drawn.stop()


def say(line: str) -> None:
    """One line for whoever watches, at once, and for the log."""
    LOGGER.info(line)
    if _speaking.is_set():
        print(line, file=sys.stderr, flush=True)


def speak(aloud: bool) -> None:
    """Whether this process is the one that speaks; each does until told otherwise."""
    (_speaking.set if aloud else _speaking.clear)()


def speaks() -> bool:
    """Whether this process is the one that speaks."""
    return _speaking.is_set()


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m10s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
