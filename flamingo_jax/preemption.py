"""SIGTERM: finish the step, save everything, and say how to go on; of several processes, all do.

JAX's coordination service passes one process's SIGTERM on to all and finds a step that none has
begun (`multihost_utils.reached_preemption_sync_point`): no collective, no waiting for devices.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax

from flamingo_jax.errors import Preempted


class StopRequest:
    """Whether the run has been asked to stop.

    Inside `deferred()` a request waits until the loop asks `reached`; elsewhere there is nothing to
    be saved, and it stops the run at once. With several processes it waits for the loop in any
    case, until `no_more_saves`: who left alone would tear down the others.
    """

    def __init__(self):
        """No request yet."""
        self.requested = False
        self._deferred = False
        self._asked = 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """The time during which stopping needs a save first."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def reached(self) -> bool:
        """Whether to save now and leave: to be asked once after every step, by every process.

        Of several processes all get the same answer at the same step, from a few up to some dozen
        steps after the signal has reached one of them: it travels for a second.
        """
        if jax.process_count() > 1 and jax.distributed.is_initialized():
            from jax.experimental import multihost_utils

            # Counted over all stages, whose steps begin anew: the agreed number may lie beyond
            # the end of one, and is then met in the next.
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.requested = True
        return self.requested

    def no_more_saves(self) -> None:
        """From here on a request ends this process at once, whatever the others do."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        if not self._deferred:
            raise Preempted(
                "stopped where there was nothing to save; the same command goes on from the last "
                "saved step"
            )


@contextlib.contextmanager
def watch() -> Iterator[StopRequest]:
    """Listens for SIGTERM; only the main thread can, elsewhere the request never comes.

    In a job of several processes the coordination service listens already, since it was joined.
    """
    request = StopRequest()
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        yield request
        return
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
