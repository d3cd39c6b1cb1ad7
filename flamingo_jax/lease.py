"""The lock of a run in a bucket: an object that its holder writes anew every few seconds.

No kernel holds it when a machine is gone, so it goes stale. Every write names the generation that
it replaces: of two who try at once one succeeds, and a holder that was given up notices.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

from etils import epath

from flamingo_jax import progress, storage
from flamingo_jax.errors import InputError, OutOfReach

NAME = "lease.json"

BEAT = 15.0
"""Seconds between two writes of the holder."""

STALE = 120.0
"""A lease that nobody has written anew for so many seconds belongs to nobody."""

ANCIENT = 3600.0
"""Clocks of machines agree so far: one written longer ago need not be watched first."""

POLL = 2.0
"""Seconds between two looks at another's lease."""


class Lease:
    """Who trains in a bucket's folder; `take` it, `check` it before each save, `release` it."""

    def __init__(self, address: epath.Path):
        """Names the folder; nothing is asked yet."""
        self._address = address
        self._me = {**_myself(), "lease": secrets.token_hex(8)}
        self._store: Any = None
        self._generation: bytes = b""
        self._renewed = 0.0
        self._taken_over = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lease, where it is free; waits until it is stale where its holder may be dead.

        Raises:
          InputError: if somebody else holds it, and writes it anew.
        """
        with storage.told(self._address):
            self._store = _open(self._address)
            begin, seen = time.monotonic(), None
            while True:
                holder, generation = self._read()
                waited = time.monotonic() - begin
                if holder is None or _is_gone(holder) or waited > STALE:
                    if self._write(generation, self._me):
                        break
                    begin, seen = time.monotonic(), None
                    continue
                who = f"process {holder.get('process')} on {holder.get('host')}"
                if seen not in (None, generation):
                    raise InputError(
                        f"--workdir={self._address} is in use by {who}; wait until it ends, stop "
                        "it, or give another folder"
                    )
                if seen is None:
                    progress.say(
                        f"{self._address} was in use by {who}: waiting {STALE:.0f} s, or until it "
                        "shows that it is alive"
                    )
                seen = generation
                time.sleep(POLL)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that the lease is still this process's own.

        Raises:
          InputError: if another process has taken it over.
          OutOfReach: if it could not be written for so long that another may take it.
        """
        if self._taken_over:
            holder, _ = self._read()
            who = f"process {(holder or {}).get('process')} on {(holder or {}).get('host')}"
            raise InputError(
                f"{self._address} was taken over by {who}, as this process was silent for more "
                f"than {STALE:.0f} s; it saves nothing more"
            )
        silent = time.monotonic() - self._renewed
        if silent > STALE:
            raise OutOfReach(
                f"{self._address}: the lease could not be written for {silent:.0f} s; check the "
                "network, and start again"
            )

    def release(self) -> None:
        """Lets others take it at once."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            # Where that fails others wait until it is stale.
            with contextlib.suppress(Exception):
                self._write(self._generation, None)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if not self._write(self._generation, self._me):
                    holder, generation = self._read()
                    # A write of ours whose answer was lost is no other's.
                    if holder is not None and holder.get("lease") == self._me["lease"]:
                        self._generation = generation
                    else:
                        self._taken_over = True
                        return
            except Exception as error:  # the network: the next one may succeed, or `check` tells
                progress.say(f"{self._address}: the lease was not written: {error}")

    def _read(self) -> tuple[dict[str, Any] | None, bytes]:
        """Who holds it, and the generation that says so."""
        found = self._store.read(NAME).result()
        if found.state != "value":
            return None, found.stamp.generation
        try:
            holder = json.loads(found.value)
        except ValueError:
            holder = {}
        return (holder if isinstance(holder, dict) else {}), found.stamp.generation

    def _write(self, replaced: bytes, holder: dict[str, Any] | None) -> bool:
        """Writes or removes (None) what has the generation `replaced`; not if another has."""
        begin = time.monotonic()
        value = None if holder is None else json.dumps({**holder, "time": time.time()})
        stamp = self._store.write(NAME, value, if_equal=replaced).result()
        if not stamp.generation:
            return False
        self._generation, self._renewed = stamp.generation, begin
        return True


def _open(address: epath.Path) -> Any:
    """The folder as TensorStore sees it: it has conditional writes, and gcsfs has not."""
    import tensorstore

    bucket, _, folder = os.fspath(address).removeprefix(storage.PROTOCOL).partition("/")
    spec = {
        "driver": "gcs",
        "bucket": bucket,
        "path": f"{folder}/",
        "context": {"gcs_request_retries": {"max_retries": 3}},
    }
    return tensorstore.KvStore.open(spec).result()


def _myself() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "boot": _boot()}


def _boot() -> str:
    """What Linux calls this start of this machine; "" elsewhere."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder surely does not live any more."""
    written = holder.get("time")
    if isinstance(written, int | float) and time.time() - written > ANCIENT:
        return True
    mine, process = _myself(), holder.get("process")
    if (holder.get("host"), holder.get("boot")) != (mine["host"], mine["boot"]):
        return False
    if not isinstance(process, int) or process == mine["process"]:
        return True  # in containers every start may have the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
