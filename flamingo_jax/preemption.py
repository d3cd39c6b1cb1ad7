"""SIGTERM: finish the step, save everything, and say how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from flamingo_jax.errors import Preempted


class StopRequest:
    """Whether the run has been asked to stop.

    Inside `deferred()` a request waits until the loop looks at `requested`; elsewhere there is
    nothing to be saved, and it stops the run at once.
    """

    def __init__(self):
        """No request yet."""
        self.requested = False
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """The time during which stopping needs a save first."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

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
    """Listens for SIGTERM; only the main thread can, elsewhere the request never comes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
