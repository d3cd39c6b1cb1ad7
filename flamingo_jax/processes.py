"""What the processes of a run do together: one writes, all wait, all agree on a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

_Result = TypeVar("_Result")


def is_primary() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agreed(attempt: Callable[[], _Result], error: type[Exception]) -> _Result:
    """`attempt()`, which every process calls; if it raises `error` on any, then all raise that.

    Without this a process that meets a broken file would leave the others waiting for it.

    Raises:
      error: this process's own, or one that says that another process has it.
    """
    results, problem = [], None
    try:
        results.append(attempt())
    except error as caught:
        problem = caught
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = multihost_utils.process_allgather(np.asarray(problem is not None))
        if problem is None and np.any(failed):
            problem = error("another process could not read it")
    if problem is not None:
        raise problem
    return results[0]
