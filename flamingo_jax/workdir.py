"""A run's folder: what it is made for, who may write to it, and its history.

Everything here is written by the first process of a run only; on the others it does nothing. Each
process has a part of its own of the logs of rows alone. Small files of a run in a bucket are
written to a working folder of each process and copied (mirror.py); on a disk `push` and `fetch` do
nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from flamingo_jax import storage
from flamingo_jax.errors import InputError
from flamingo_jax.lease import Lease
from flamingo_jax.logs import MetricsLog, Scalars, list_parts, read_rows
from flamingo_jax.mirror import Mirror
from flamingo_jax.processes import agreed, is_primary

ABSENT = "(absent)"
"""Stands for the value of a field that a config does not have."""

IDENTITY = "identity.json"
CONFIG = "config.json"
LOCK = "lock"
TENSORBOARD = "tensorboard"


LOGS = ("metrics", "speed", "rejects", "rows")
"""Logs by step: a resumed run goes on with them from the step that it restored."""

PARTED = ("rejects", "rows")
"""Those with a part for each process, as each knows only of the rows that it has read."""


class Change(NamedTuple):
    """A field of the config that differs from the one that the workdir was made with."""

    field: str
    old: Any
    new: Any


class Workdir:
    """The folder of one run, on a file system that all its hosts share, or in a bucket.

    Attributes:
      place: where the run is kept, and its checkpoints are written: a folder, or an address.
      path: where its small files are written; `place` itself, or this process's working folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Names the folder; `create` makes it.

        Raises:
          InputError: for an address of no bucket, or a bucket's without a folder in it.
        """
        self.place = storage.to_path(path)
        self.path = pathlib.Path(self.place)
        self._lease: Lease | None = None
        self._mirror: Mirror | None = None
        if not storage.is_remote(self.place):
            return
        if "/" not in str(self.place).removeprefix(storage.PROTOCOL):
            raise InputError(f"--workdir={path} is a whole bucket; give gs://BUCKET/FOLDER")
        process = jax.process_index()
        self.path = storage.working_folder(self.place, f"process-{process}")
        self._lease = Lease(self.place)
        check = self._lease.check if is_primary() else lambda: None
        self._mirror = Mirror(self.path, self.place, process, check)

    def checkpoints(self, stage: str) -> epath.Path:
        """The folder of a stage's steps."""
        return self.place / "checkpoints" / stage

    def stages_begun(self) -> list[epath.Path]:
        """The folders of all stages there are, of which some may hold no step."""
        return storage.entries(self.place / "checkpoints")

    def has_steps(self) -> bool:
        """Whether any stage holds a step, a damaged one too."""
        found = (entry for stage in self.stages_begun() for entry in storage.entries(stage))
        return any(entry.name[:1].isdecimal() for entry in found)

    def fetch(self, *patterns: str) -> None:
        """Brings files that other processes have written, as the bucket has them: "tokenizer/*"."""
        if self._mirror is not None:
            with storage.told(self.place):
                self._mirror.fetch(*patterns)

    def push(self) -> None:
        """Sees to it that what this process has written is where the run is kept.

        Raises:
          InputError: if another has taken the run over.
          OutOfReach: if the bucket does not answer.
        """
        if self._mirror is not None:
            with storage.told(self.place):
                self._mirror.push()

    def remove(self, name: str) -> None:
        """Removes a file or folder; every process may call it."""
        if self._mirror is not None:
            self._mirror.remove(name, there=is_primary())
        elif is_primary():
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).unlink(missing_ok=True)

    def log(self, name: str) -> MetricsLog:
        """The rows of NAME.jsonl: metrics, speed, predictions, and this process's rejects, rows."""
        return MetricsLog(self.path / f"{name}.jsonl", parted=name in PARTED)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows that all processes have written, one process's after another's."""
        parts = list_parts(self.path / f"{name}.jsonl")
        return [row for part in parts for row in read_rows(part)]

    def go_back(self, stages: Sequence[str], stage: str, step: int) -> None:
        """Drops the rows of all logs later than a step of a stage, whoever has written them.

        To be called by every process: none goes on before it is done.

        Args:
          stages: the run's stages in their order.
          stage: the stage that is resumed.
          step: the step that was restored; its own rows stay.

        Raises:
          InputError: if a row is of no stage of the run.
        """

        def drop() -> None:
            if not is_primary():
                return
            self.fetch(*(f"{name}-*.jsonl" for name in PARTED))
            for name in LOGS:
                for part in list_parts(self.path / f"{name}.jsonl"):
                    MetricsLog(part).truncate_after(stages, stage, step)
            self.push()

        words = "the run's logs cannot be gone on with"
        agreed(self.push, InputError, words)  # so that the first process has all parts
        agreed(drop, InputError, words)
        if not is_primary():
            self.fetch(*(self.log(name).path.name for name in PARTED))

    def scalars(self, stage: str, step: int) -> Scalars:
        """TensorBoard's curves of a stage that goes on after `step`."""
        return Scalars(self.path / TENSORBOARD / stage, step)

    def create(self) -> None:
        """Makes the folder where it does not exist; of a run in a bucket, the working folder.

        Raises:
          InputError: if that is impossible.
        """
        if not is_primary() and self._mirror is None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"--workdir={self.path}"
            if self._mirror is not None:
                what = f"the working folder {self.path} (${storage.RUNS})"
            raise InputError(
                f"{what} cannot be made ({error.strerror}); give a folder that you may write to"
            ) from error

    def check_writable(self) -> None:
        """Writes a file and removes it.

        Raises:
          InputError: if that is impossible.
          OutOfReach: if a bucket does not answer.
        """
        if not is_primary():
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".writable-") as file:
                file.write(b"x")
                file.flush()
        except OSError as error:
            raise InputError(
                f"--workdir={self.path} cannot be written ({error.strerror}); give a folder that "
                "you may write to"
            ) from error
        if self._mirror is not None:
            with storage.told(self.place):
                probe = self.place / f".writable-{secrets.token_hex(4)}"
                probe.write_bytes(b"x")
                probe.unlink()

    def check_disk(self, bytes_needed: int) -> None:
        """Compares the disk's free space with what the run will write; a bucket has no end.

        Raises:
          InputError: if it is less.
        """
        if not is_primary() or self._mirror is not None:
            return
        free = shutil.disk_usage(self.path).free
        if free < bytes_needed:
            raise InputError(
                f"--workdir={self.path} has {free / 1e9:.2f} GB free and the run needs "
                f"{bytes_needed / 1e9:.2f} GB; free some space or give a folder on another disk"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps others from training in this folder until the block ends or the process dies.

        The kernel holds the lock, not the file: nothing stale is left after a SIGKILL. In a bucket
        it is a lease, which is stale minutes after a machine is gone.

        Raises:
          InputError: if another process holds it.
        """
        if not is_primary():
            yield
            return
        if self._lease is not None:
            self._lease.take()
            try:
                yield
            finally:
                self._lease.release()
            return
        with open(self.path / LOCK, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(
                    f"--workdir={self.path} is in use by {holder}; wait until it ends, stop it, or "
                    "give another folder"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    @contextlib.contextmanager
    def mirrored(self) -> Iterator[None]:
        """Brings what a bucket has of the run, and copies there what is written until the end.

        Raises:
          InputError: if another has taken the run over.
          OutOfReach: if the bucket does not answer.
        """
        if self._mirror is None:
            yield
            return
        self.fetch()
        self._mirror.start()
        try:
            yield
        finally:
            self._mirror.stop()
            self.push()

    def open_or_create(self, config_json: str, identity: Mapping[str, Any]) -> list[Change]:
        """Keeps a new run's config and identity, or compares them with those that are kept.

        Fields of the identity that only one side has are no contradiction (a dataset was added or
        left out): they are among the changes, like every other field that differs.

        Args:
          config_json: the resolved config.
          identity: {dotted name: JSON value} of what may not change in a workdir.

        Returns:
          The changes since the last time, by field, to be logged; none for a new workdir.

        Raises:
          InputError: naming the first field of the identity whose value differs, or a file of the
            workdir that is missing or unreadable.
        """
        if not is_primary():
            return []
        new = json.loads(json.dumps(dict(identity)))
        changes: list[Change] = []
        if (self.path / IDENTITY).exists():
            old = self._read_json(IDENTITY)
            self._check_identity(old, new)
            if (self.path / CONFIG).exists():
                old = {**_flat(self._read_json(CONFIG)), **old}
            changes = _changes(old, {**_flat(json.loads(config_json)), **new})
        elif self.has_steps():
            raise InputError(
                f"{self.place} holds checkpoints but no {IDENTITY}, so that it cannot be resumed; "
                "put that file back, or give another --workdir"
            )
        write_atomically(self.path / IDENTITY, json.dumps(new, indent=1, sort_keys=True) + "\n")
        write_atomically(self.path / CONFIG, config_json)
        self.push()
        return changes

    def _check_identity(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for field in sorted(old.keys() & new.keys()):
            if old[field] != new[field]:
                raise InputError(
                    f"--workdir={self.place} was made with {field}={json.dumps(old[field])} and "
                    f"the config has {json.dumps(new[field])}; set it back or give another "
                    "--workdir"
                )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path / name} cannot be read ({error}); put a sound copy back, or give "
                "another --workdir"
            ) from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path / name} is not a JSON object; put a sound copy back")
        return content

    def event(
        self, kind: str, text: str, stage: str | None = None, step: int | None = None
    ) -> None:
        """Adds a row to events.jsonl, the run's history, which is never shortened.

        Args:
          kind: start | resume | finish | alarm | walk-back | config | preempted.
          text: a sentence for people.
          stage: the stage it happened in, if in one.
          step: the step it happened at, if at one.
        """
        with self.log("events") as events:
            row = {"time": time.time(), "stage": stage, "step": step, "kind": kind, "text": text}
            events.append(row)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file's text such that a kill leaves the old one or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    fields = sorted(old.keys() | new.keys())
    pairs = [Change(field, old.get(field, ABSENT), new.get(field, ABSENT)) for field in fields]
    return [change for change in pairs if change.old != change.new]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested objects; an empty one is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
