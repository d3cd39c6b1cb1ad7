"""The JSON-lines files that a resumed run continues, TensorBoard's curves, each process's own log.

The first two are written by the first process of a run only; on the others nothing happens. What
only the process that fed a row knows is the exception: such a log has a part for each process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import jax

from flamingo_jax import progress
from flamingo_jax.errors import InputError, Preempted
from flamingo_jax.processes import is_primary


class MetricsLog:
    """A file of JSON rows that survives kills: when `append` returns, the kernel has the row."""

    def __init__(self, path: str | pathlib.Path, parted: bool = False):
        """Names the file; the first `append` opens it.

        Args:
          path: the file.
          parted: every process writes, the first one to `path` and process I to STEM-I.jsonl.
        """
        self.path = pathlib.Path(path)
        self._parted = parted
        if parted and not is_primary():
            self.path = self.path.with_stem(f"{self.path.stem}-{jax.process_index()}")
        self._file: Any = None

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Adds rows, with sorted keys and floats that read back equal (NaN as Python writes it)."""
        if not rows or not (self._parted or is_primary()):
            return
        if self._file is None:
            self._file = self._open()
        lines = [
            json.dumps(row, sort_keys=True, ensure_ascii=False, default=_plain) for row in rows
        ]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()

    def truncate_after(self, stages: Sequence[str], stage: str, step: int) -> int:
        """Drops the rows later than a step of a stage, and lines that a kill has torn.

        Rows without a stage or step stay. The file is replaced by a shorter one at once: a kill
        leaves the one or the other.

        Args:
          stages: the run's stages in their order.
          stage: the stage that is resumed.
          step: the step that was restored; its own rows stay.

        Returns:
          How many lines were dropped.

        Raises:
          InputError: if a row is of no stage of the run.
        """
        self.close()
        if not is_primary() or not self.path.exists():
            return 0
        limit = (list(stages).index(stage), step)
        dropped = 0
        temporary = self.path.with_name(f"{self.path.name}.new")
        try:
            with open(self.path, "rb") as old, open(temporary, "wb") as new:
                for line in old:
                    row = _parse(line)
                    if row is None or self._later(row, stages, limit):
                        dropped += 1
                    else:
                        new.write(line)
                new.flush()
                os.fsync(new.fileno())
            if dropped:
                os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return dropped

    def _later(self, row: dict[str, Any], stages: Sequence[str], limit: tuple[int, int]) -> bool:
        if row.get("stage") is None or row.get("step") is None:
            return False
        if row["stage"] not in stages:
            raise InputError(
                f"{self.path} has a row of the stage {row['stage']!r}, and the config's stages are "
                f"{', '.join(stages)}; give another --workdir"
            )
        return (list(stages).index(row["stage"]), row["step"]) > limit

    def close(self) -> None:
        """Closes the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        """Opens for appending, after the last whole line: a torn one would swallow the next row."""
        file = open(self.path, "ab+")
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
        return file


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without torn lines; none where there is no file."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with open(path, "rb") as file:
        rows = [_parse(line) for line in file]
    return [row for row in rows if row is not None]


def list_parts(path: str | pathlib.Path) -> list[pathlib.Path]:
    """The files there are of a log: NAME.jsonl, then NAME-1.jsonl, … of the other processes.

    Also those of processes that the run has no more.
    """
    path = pathlib.Path(path)
    parts = {path: 0} if path.exists() else {}
    for other in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        number = other.stem.removeprefix(f"{path.stem}-")
        if number.isdecimal():
            parts[other] = int(number)
    return sorted(parts, key=lambda part: parts[part])


class Scalars:
    """Writes curves for TensorBoard; after a resume it hides what an earlier life wrote beyond.

    The library's own writer would hold rows back in a queue, name files by the second (a quick
    restart overwrites) and synchronise the disk; here the kernel has a row when `write` returns.
    """

    def __init__(self, folder: str | pathlib.Path, step: int):
        """Opens a new event file for the steps after `step`."""
        self._file: Any = None
        if not is_primary():
            return
        self._proto, self._check = _tensorboard()
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names.
        self._file = open(folder / f"events.out.tfevents.{time.time_ns():020d}", "xb")
        self._write(file_version="brain.Event:2")
        # The status START: readers forget the points of earlier files from this step on.
        self._write(step=step + 1, session_log={"status": 1})

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes a row of metrics or speed: each number under KIND/KEY, or KEY where no kind is."""
        if self._file is None:
            return
        prefix = f"{row['kind']}/" if "kind" in row else ""
        values = []
        for key, value in row.items():
            number = _plain(value) if hasattr(value, "dtype") else value
            if key not in ("step", "time") and isinstance(number, int | float):
                values.append({"tag": prefix + key, "simple_value": float(number)})
        self._write(step=row["step"], summary={"value": values})

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, **fields: Any) -> None:
        """Writes an event as TensorFlow's record: length, its check, data, its check."""
        data = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", self._check(part)) for part in (length, data)]
        self._file.write(length + checks[0] + data + checks[1])
        self._file.flush()


def _tensorboard() -> tuple[Any, Callable[[bytes], int]]:
    """TensorBoard's messages, and the check of its records."""
    modules: dict[str, Any] = sys.modules
    client = "google.cloud.storage"
    hidden = client not in modules
    if hidden:
        # tensorboardX imports it for a writer of its own: two seconds of every start.
        modules[client] = None
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if hidden:
            del modules[client]
    return event_pb2, masked_crc32c


@contextlib.contextmanager
def process_log(folder: str | pathlib.Path) -> Iterator[IO[str]]:
    """FOLDER/process-I.log: what process I says, its and its libraries' warnings, how it ended.

    A later start appends. The stack of a crash in native code goes there, too.

    Yields:
      The open file.

    Raises:
      InputError: if it cannot be written.
    """
    path = pathlib.Path(folder) / f"process-{jax.process_index()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        again = path.exists() and path.stat().st_size > 0
        file = open(path, "a", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give a folder that you may write to"
        ) from error
    with file, contextlib.ExitStack() as stack:
        _attach(file, stack)
        who = f"process {jax.process_index()} of {jax.process_count()}"
        where = f"on {socket.gethostname()}, process id {os.getpid()}"
        progress.LOGGER.info("%s: %s %s", "started again" if again else "started", who, where)
        if not faulthandler.is_enabled():
            faulthandler.enable(file)
            stack.callback(faulthandler.disable)
        try:
            yield file
        except (InputError, Preempted) as error:
            progress.LOGGER.error("ended: %s", error)
            raise
        except BaseException:
            progress.LOGGER.exception("ended by an error")
            raise
        progress.LOGGER.info("ended")


def _attach(file: IO[str], stack: contextlib.ExitStack) -> None:
    """Leads our lines and everybody's warnings to a file, until the stack unwinds."""
    root, own = logging.getLogger(), progress.LOGGER
    lines = logging.StreamHandler(file)
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    lines.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
    on_terminal = [h for h in root.handlers if getattr(h, "stream", None) is sys.stderr]
    if not progress.speaks():
        for handler in on_terminal:
            stack.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL + 1)
    elif not root.handlers:
        # Where there is none at all, Python shows others' warnings on the terminal.
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        root.addHandler(terminal)
        stack.callback(root.removeHandler, terminal)
    for logger in (root, own):
        logger.addHandler(lines)
        stack.callback(logger.removeHandler, lines)
    # Our lines are said by `progress`: another library's handler would say them again.
    stack.callback(setattr, own, "propagate", own.propagate)
    stack.callback(own.setLevel, own.level)
    own.propagate = False
    own.setLevel(logging.INFO)
    logging.captureWarnings(True)
    stack.callback(logging.captureWarnings, False)


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line's row; None if the line is torn or no row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _plain(value: Any) -> Any:
    """A number of NumPy or JAX as Python's."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")
