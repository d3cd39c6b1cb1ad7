"""What the processes of a run do together: one writes, all wait, all agree on a failure."""

from __future__ import annotations

import collections
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

_Result = TypeVar("_Result")

BARRIER_SECONDS = 1800.0
"""How long the others are waited for: the largest checkpoint's restore is minutes."""

NAMED = 8
"""At most so many processes are named in a sentence."""

_meetings: collections.Counter[str] = collections.Counter()


class HostsMissing(RuntimeError):
    """Processes of the job did not come in time; a sentence that names them, no traceback needed.

    Not the user's input: started again, the job may well work.
    """


def is_primary() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def name_of(process: int, host: str = "") -> str:
    """A process as messages call it: "process 3 on HOST", as far as the host is known."""
    return f"process {process} on {host}" if host else f"process {process}"


def list_names(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def announce() -> None:
    """Tells the others this process's host, for messages about it."""
    client = _client()
    if client is not None:
        client.key_value_set(f"flamingo/host/{jax.process_index()}", socket.gethostname())


def barrier(name: str, seconds: float = BARRIER_SECONDS) -> None:
    """Waits until every process is here.

    Raises:
      HostsMissing: naming those that were not within `seconds`.
    """
    if jax.process_count() == 1:
        return
    if _client() is None:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
        return
    _meet(name, "", seconds)


def gather(name: str, text: str, seconds: float = BARRIER_SECONDS) -> list[str]:
    """The text of every process, in their order, on every process.

    No device takes part: it works where hosts have different devices, or programs.

    Raises:
      HostsMissing: naming those that gave none within `seconds`.
    """
    if jax.process_count() == 1:
        return [text]
    client = _client()
    if client is None:
        return _gather_on_devices(text)
    prefix = _meet(name, text, seconds)
    limit = round(seconds * 1000)
    keys = [f"{prefix}/{process}" for process in range(jax.process_count())]
    return [client.blocking_key_value_get(key, limit)[1:] for key in keys]


def agreed(
    attempt: Callable[[], _Result],
    error: type[Exception],
    words: str = "another process could not read it",
) -> _Result:
    """`attempt()`, which every process calls; if it raises `error` on any, then all raise that.

    Without this a process that meets a broken file would leave the others waiting for it.

    Args:
      attempt: what to do.
      error: what it may raise; made from one sentence.
      words: how the others' sentence begins.

    Raises:
      error: this process's own, or one that says which other process has it, and its sentence.
      HostsMissing: if one does not come to agree.
    """
    results, problem = [], None
    try:
        results.append(attempt())
    except error as caught:
        problem = caught
    told = gather("agreed", "" if problem is None else f"{socket.gethostname()}\n{problem}")
    if problem is not None:
        raise problem
    for process, text in enumerate(told):
        if text:
            host, _, why = text.partition("\n")
            raise error(f"{words} ({name_of(process, host)}: {why})")
    return results[0]


def primary_first(
    attempt: Callable[[], _Result], error: type[Exception], words: str = "another process could not"
) -> _Result:
    """`attempt()` on the primary process, then on the others, which find what it has made.

    Raises:
      error: on all, if it was raised on any.
    """
    results: list[_Result] = []

    def turn(mine: bool) -> None:
        if mine:
            results.append(attempt())

    agreed(lambda: turn(is_primary()), error, words)
    agreed(lambda: turn(not is_primary()), error, words)
    return results[0]


def leave_together(seconds: float) -> bool:
    """Whether all processes come to their end within `seconds` of the first."""
    if jax.process_count() == 1:
        return True
    client = _client()
    if client is None:
        return False
    try:
        client.wait_at_barrier("flamingo/leave", round(seconds * 1000))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _meet(name: str, text: str, seconds: float) -> str:
    """Puts a text down for the others and waits for theirs; the prefix of all texts' keys."""
    client, here, count = _client(), jax.process_index(), jax.process_count()
    prefix = f"flamingo/{name}/{_meetings[name]}"
    _meetings[name] += 1
    client.key_value_set(f"{prefix}/{here}", f"={text}")  # a value may not be empty
    try:
        client.wait_at_barrier(prefix, round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        came = {key.rpartition("/")[2] for key, _ in client.key_value_dir_get(prefix)}
        absent = [process for process in range(count) if str(process) not in came]
        if "DEADLINE_EXCEEDED" not in str(error) or not absent:
            raise
        hosts = dict(client.key_value_dir_get("flamingo/host"))
        names = [name_of(p, hosts.get(f"flamingo/host/{p}", "")) for p in absent]
        raise HostsMissing(
            f"{list_names(names)} did not come to the barrier {name!r} within {seconds:g} s of "
            f"{name_of(here, socket.gethostname())}; "
            f"{len(absent)} of {count} processes are missing: see their logs"
        ) from error
    return prefix


def _client() -> Any:
    """The job's coordination service, or None where this JAX keeps it elsewhere.

    JAX has no public barrier with a time-out, and its public gather needs the same number of
    devices on every process (jax 0.10.2): this is the only place that reaches behind its names.
    """
    try:
        from jax._src import distributed

        client = distributed.global_state.client
    except (ImportError, AttributeError):
        return None
    needed = ("wait_at_barrier", "key_value_set", "key_value_dir_get", "blocking_key_value_get")
    return client if all(hasattr(client, name) for name in needed) else None


def _gather_on_devices(text: str) -> list[str]:
    """`gather` by collectives: UTF-8 padded to the longest."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
