"""The small files of a run in a bucket: written here, where files can be appended to, kept there.

An object is replaced as a whole, so nobody sees half of a file. The bucket is the truth: what a
start finds in the working folder counts only where it goes on from what the bucket has. Checkpoints
and frozen weights are no part of this: Orbax writes them to the bucket itself.
"""

from __future__ import annotations

import fnmatch
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable

from etils import epath

from flamingo_jax import progress, storage
from flamingo_jax.errors import InputError

SECONDS = 60.0
"""How often what has changed is copied, beside every save."""

SHARE = 20
"""Copying takes at most one part in so many of the time."""

WRITTEN_ONLY = ("tensorboard", "profile", "wandb")
"""Folders that no start reads: the working folder has only what this start has written to them."""

NOT_HERE = ("checkpoints", "frozen", "logs", *WRITTEN_ONLY)
"""Folders of which a start fetches nothing; of `logs` the process's own file."""

FOR_ALL = ("config.json", "identity.json", "finished", "tokenizer/*")
"""What every process reads; the rest is the first one's."""

REPORTED = (
    *("config.json", "run.json", "results.json"),
    *("metrics.jsonl", "speed.jsonl", "events.jsonl", "samples/*"),
)
"""What a report is made of."""

_PART = re.compile(r"(?:.*-|logs/process-)(\d+)\.(?:jsonl|log)")


class Mirror:
    """Keeps a process's working folder and its run's place in a bucket alike."""

    def __init__(
        self,
        folder: pathlib.Path,
        address: epath.Path,
        process: int,
        check: Callable[[], None] = lambda: None,
    ):
        """Names both; `check` raises if this process may not write any more."""
        self._folder, self._address, self._process = folder, address, process
        self._check = check
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def fetch(self, *patterns: str) -> None:
        """Makes the working folder what the bucket has of it.

        Args:
          patterns: of the files to fetch, "rows-*.jsonl". None = all that this process has to do
            with; then this process's own log, which tells how it died, keeps what was appended to
            it since it was last copied.
        """
        with self._lock:
            for name in () if patterns else WRITTEN_ONLY:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            there = self._list(patterns)
            for name in self._files():
                if name not in there and self._wanted(name, patterns) and not _is_in(name, "logs"):
                    self._drop(self._folder / name)
                    self._copied.pop(name, None)
            contents = _read(self._address, there)
            for name, content in contents.items():
                file = self._folder / name
                if _is_in(name, "logs") and file.is_file():
                    here = file.read_bytes()
                    if len(here) > len(content) and here.startswith(content):
                        continue
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                self._copied[name] = _stamp(file)

    def push(self) -> None:
        """Copies what has changed here since it was copied or fetched."""
        with self._lock:
            self._check()
            changed = {}
            for name in self._files():
                try:
                    # The stamp first: what is appended from now on will be seen as a change.
                    stamp = _stamp(self._folder / name)
                    if self._copied.get(name) != stamp and self._is_mine(name):
                        changed[name] = (stamp, (self._folder / name).read_bytes())
                except FileNotFoundError:
                    continue  # replaced, or removed, in this moment
            _write(self._address, {name: content for name, (_, content) in changed.items()})
            self._copied |= {name: stamp for name, (stamp, _) in changed.items()}

    def remove(self, name: str, there: bool) -> None:
        """Removes a file or folder here, and in the bucket if `there`."""
        with self._lock:
            if there:
                gone = self._address / name
                if storage.exists(gone):
                    gone.rmtree()
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).unlink(missing_ok=True)
            for known in [k for k in self._copied if _is_in(k, name)]:
                del self._copied[known]

    def start(self) -> None:
        """Begins to copy in the background."""
        self._thread = threading.Thread(target=self._copy_on, name="mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the background's copying; what is left is pushed by who calls."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _drop(self, file: pathlib.Path) -> None:
        """Removes a file, and its folder if it was the last one in it, as a bucket would."""
        file.unlink(missing_ok=True)
        if file.parent != self._folder and not any(file.parent.iterdir()):
            file.parent.rmdir()

    def _copy_on(self) -> None:
        took = 0.0
        while not self._ended.wait(max(SECONDS, SHARE * took)):
            begin = time.monotonic()
            try:
                self.push()
            except Exception as error:  # the next one may succeed; that before a save must
                progress.say(f"{self._address}: logs were not copied: {error}")
            took = time.monotonic() - begin

    def _is_mine(self, name: str) -> bool:
        """Whether this process copies a file: its own part, and the first one all that it has.

        Parts of others change in the first one's folder only where it shortens them.
        """
        return not self._process or self._is_own_part(name) or _is_in(name, "profile")

    def _is_own_part(self, name: str) -> bool:
        part = _PART.fullmatch(name)
        return part is not None and int(part[1]) == self._process

    def _wanted(self, name: str, patterns: tuple[str, ...]) -> bool:
        """Whether a file is one to fetch."""
        if patterns:
            return _matches(name, patterns)
        if self._is_own_part(name):
            return True
        if name.split("/")[0] in NOT_HERE:
            return False
        return not self._process or _matches(name, FOR_ALL)

    def _files(self) -> list[str]:
        """Names in the working folder, without drafts that are about to be renamed."""
        found = []
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and not name.endswith(".new"):
                    path = pathlib.Path(folder, name)
                    found.append(path.relative_to(self._folder).as_posix())
        return sorted(found)

    def _list(self, patterns: tuple[str, ...]) -> list[str]:
        """Names in the bucket that are to be fetched."""
        root = os.fspath(self._address).removeprefix(storage.PROTOCOL)
        found = []
        for entry in storage.entries(self._address):
            if entry.name not in NOT_HERE or entry.name == "logs":
                found += storage.filesystem().find(f"{root}/{entry.name}")
        names = (path.removeprefix(f"{root}/") for path in found)
        return sorted({name for name in names if self._wanted(name, patterns)})


def reading_copy(place: str) -> tuple[pathlib.Path, Callable[[], None]]:
    """A run's folder to read its small files from, and what copies back what is written there.

    Args:
      place: a folder, which is returned as it is, or an address.

    Raises:
      InputError: if there is nothing at the address, or it may not be read.
      OutOfReach: if the bucket does not answer.
    """
    if "://" not in place:
        return pathlib.Path(place), lambda: None
    address = storage.to_path(place)
    folder = storage.working_folder(address, "reader")
    shutil.rmtree(folder, ignore_errors=True)  # what is written to it is copied back
    mirror = Mirror(folder, address, process=0)
    with storage.told(address):
        mirror.fetch(*REPORTED)
    if not folder.is_dir():
        raise InputError(f"there is no run at {place!r}; give the --workdir of a run")

    def copy_back() -> None:
        with storage.told(address):
            mirror.push()

    return folder, copy_back


def _read(address: epath.Path, names: list[str]) -> dict[str, bytes]:
    """Contents of objects by name, read at the same time."""
    if not names:
        return {}
    paths = {f"{os.fspath(address).removeprefix(storage.PROTOCOL)}/{name}": name for name in names}
    return {paths[path]: data for path, data in storage.filesystem().cat(list(paths)).items()}


def _write(address: epath.Path, contents: dict[str, bytes]) -> None:
    if contents:
        storage.filesystem().pipe(
            {f"{os.fspath(address)}/{name}": data for name, data in contents.items()}
        )


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    known = file.stat()
    return known.st_mtime_ns, known.st_size


def _is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
