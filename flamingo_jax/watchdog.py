"""A watchdog: when the loop gives no sign for long, it says where every thread stands, and ends.

A host that hangs holds up all others, without a word. Its supervisor starts the job again.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from typing import IO

from flamingo_jax import errors

TICKS = 20
"""Looks in the time after which the watchdog bites."""


class Watchdog:
    """Ends the process with exit code 1 after so many seconds without a sign of life.

    Seconds in which the whole process is stopped (Ctrl-Z, a laptop's lid) do not count.
    """

    def __init__(
        self, seconds: float, log: IO[str] | None = None, process: int = 0, backstop: bool = False
    ):
        """Names the time; `with` is the watch, and may be begun again.

        Args:
          seconds: without `alive` or `phase` that are a hang; 0 = never.
          log: a file of the operating system that gets the stacks, as standard error does.
          process: this one's number in its job; to ask for it then could hang, too.
          backstop: after twice the time, ends even a process in which no Python thread can run
            (native code hangs and holds the interpreter). It does count seconds stopped.
        """
        self._seconds, self._log, self._backstop = seconds, log, backstop
        self._name = f"process {process} on {socket.gethostname()}"
        self._phase, self._step, self._signs = "start", 0, 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self, step: int) -> None:
        """A step has been done."""
        self._phase, self._step = "train", step
        self._signs += 1

    def phase(self, name: str) -> None:
        """Something else begins that may take long: compile, restore, checkpoint, evaluate."""
        self._phase = name
        self._signs += 1

    def __enter__(self) -> Watchdog:
        if self._seconds > 0:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        tick = self._seconds / TICKS
        seen, idle, before = self._signs, 0.0, time.monotonic()
        self._arm()
        try:
            while not self._ended.wait(tick):
                now = time.monotonic()
                # A longer gap is not the loop's: this thread, too, did not run.
                idle += min(now - before, 2 * tick)
                before = now
                if self._signs != seen:
                    seen, idle = self._signs, 0.0
                    self._arm()
                elif idle >= self._seconds:
                    self._bite(idle)
        finally:
            if self._backstop:
                faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        if self._backstop:
            file = self._log or sys.__stderr__
            if file is not None:
                faulthandler.dump_traceback_later(2 * self._seconds, file=file, exit=True)

    def _bite(self, idle: float) -> None:
        """Writes what is known, to the log first: the terminal may be what hangs."""
        text = (
            f"watchdog: {self._name} gave no sign for {idle:.0f} s in the phase {self._phase!r} "
            f"at step {self._step}; its threads stand at:"
        )
        for file in (self._log, sys.__stderr__):
            if file is not None:
                file.write(f"{text}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.flush()
        os._exit(errors.EXIT_DEFECT)
