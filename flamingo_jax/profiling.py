"""Traces of chosen steps, by a flag or a signal, for TensorBoard's profiler and Perfetto."""

from __future__ import annotations

import pathlib
import re
import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax

from flamingo_jax.errors import InputError

STEPS = 5
"""Steps of a trace that a signal asks for."""


def parse(text: str) -> tuple[int, int]:
    """`FIRST:END` as steps FIRST … END - 1; "" as none.

    Raises:
      InputError: if it is neither.
    """
    if not text:
        return 0, 0
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[1]) >= int(match[2]):
        raise InputError(
            f"--profile={text} is no range of steps; give FIRST:END, as in --profile=100:105 for "
            "the steps 100 to 104"
        )
    return int(match[1]), int(match[2])


class Profiler:
    """Traces steps [first, end), and `STEPS` more whenever SIGUSR1 comes.

    Attributes:
      folder: where each trace gets a folder of its own, named by its first step.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] = (0, 0)):
        """Names them; nothing is traced before `before`."""
        self.folder = folder
        self._first, self._end = steps
        self._asked = False
        self._previous: Callable[[int, FrameType | None], object] | int | None = None
        self._running = False

    def __enter__(self) -> Profiler:
        """Listens for SIGUSR1; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self.finish(None)
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def before(self, step: int) -> pathlib.Path | None:
        """Begins a trace if `step` is its first; to be called before each step.

        Returns:
          Its folder, where one is begun.
        """
        if self._running:
            return None
        if self._asked:
            self._first, self._end, self._asked = step, step + STEPS, False
        if not self._first <= step < self._end:
            return None
        # A run that is begun again in the middle of the range traces what is left of it.
        folder = self.folder / f"step-{step}"
        jax.profiler.start_trace(str(folder))
        self._running = True
        return folder

    def after(self, step: int, results: object) -> bool:
        """Ends the trace if `step` is its last, once `results` are there; whether it did."""
        if not self._running or step + 1 < self._end:
            return False
        self.finish(results)
        return True

    def finish(self, results: object) -> None:
        """Ends the trace, if there is one."""
        if self._running:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._running = False
