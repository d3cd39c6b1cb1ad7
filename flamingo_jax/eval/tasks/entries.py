"""Entries: what a benchmark is, which files it needs, and how it is read."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.prompt import VIDEO_SUFFIXES, Video
from flamingo_jax.data.readers.files import checked_name
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import Example


@dataclasses.dataclass(frozen=True)
class Need:
    """A file or folder that a benchmark reads.

    Attributes:
      key: what users name it by to say that it lies elsewhere: "train.questions".
      paths: where it is looked for, below the benchmark's folder; the first one that is there is
        taken. A picture folder may end in a pattern of its files' names:
        "train2014/COCO_train2014_{id:012d}.jpg".
      what: what it holds, for people.
      source: where its authors give it.
      splits: the splits that are read with it; () = all.
      optional: is a benchmark read without it?
    """

    key: str
    paths: tuple[str, ...]
    what: str
    source: str
    splits: tuple[str, ...] = ()
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Pools:
    """What a reader gives.

    Attributes:
      support: the examples of the training split.
      queries: those of the split that is asked.
      classes: names of all classes, of a classification.
      left_out: how many were dropped because their clip is not there.
      kind, metric: where the files decide them, not the entry; else "".
    """

    support: Sequence[Example]
    queries: Sequence[Example]
    classes: tuple[str, ...] = ()
    left_out: int = 0
    kind: str = ""
    metric: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A benchmark that can be read.

    Attributes:
      name, title, kind, metric, development: see `Benchmark`.
      medium: "image" or "video".
      page: its authors' page.
      licence: a note, "" where none is known.
      needs: its files and folders.
      splits: those that can be asked; the first is the one that is, unless another is named.
      read: reads it.
    """

    name: str
    title: str
    kind: str
    metric: str
    medium: str
    page: str
    needs: tuple[Need, ...]
    splits: tuple[str, ...]
    read: Callable[[Files], Pools]
    development: int = 0
    licence: str = ""

    def needed(self, split: str) -> list[Need]:
        """The needs of one split."""
        return [need for need in self.needs if not need.splits or split in need.splits]


class Files:
    """The files of one benchmark below one folder.

    Attributes:
      split: the split that is asked.
      used: the paths that were asked for, in that order.
    """

    def __init__(
        self,
        entry: Entry,
        root: str | os.PathLike[str],
        split: str = "",
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        """Looks nothing up yet.

        Args:
          entry: the benchmark.
          root: the folder that holds all benchmarks' folders.
          split: one of the entry's; "" = the first.
          elsewhere: paths by the needs' keys, below `root` or absolute.

        Raises:
          InputError: for another split, or a key that the benchmark does not have.
        """
        self.split = split or entry.splits[0]
        if self.split not in entry.splits:
            raise InputError(
                f"{entry.name} has no split {self.split!r}; it has {', '.join(entry.splits)}"
            )
        self._entry, self._root = entry, pathlib.Path(os.path.expanduser(root))
        self._elsewhere = dict(elsewhere or {})
        keys = {need.key: need for need in entry.needs}
        unknown = sorted(set(self._elsewhere) - set(keys))
        if unknown:
            raise InputError(
                f"{entry.name} reads no file {unknown[0]!r}; it reads {', '.join(keys)}"
            )
        self._needs = keys
        self.used: list[str] = []

    def candidates(self, key: str) -> list[pathlib.Path]:
        """Where a need is looked for."""
        if key in self._elsewhere:
            return [self._root / os.path.expanduser(self._elsewhere[key])]
        folder = self._root / self._entry.name
        return [pathlib.Path(os.path.normpath(folder / path)) for path in self._needs[key].paths]

    def find(self, key: str) -> pathlib.Path | None:
        """The path of a need, or None if nothing is there."""
        for path in self.candidates(key):
            if (path.parent if "{" in path.name else path).exists():
                return path
        return None

    def file(self, key: str) -> pathlib.Path:
        """The path of a file.

        Raises:
          InputError: if it is missing.
        """
        path = self.find(key)
        if path is None or not path.is_file():
            raise self._missing(key)
        self.used.append(str(path))
        return path

    def pictures(self, key: str) -> Pictures:
        """A folder of pictures.

        Raises:
          InputError: if it is missing.
        """
        path = self.find(key)
        if path is None or not (path.parent if "{" in path.name else path).is_dir():
            raise self._missing(key)
        self.used.append(str(path))
        return Pictures(path)

    def clips(self, key: str) -> Clips:
        """A folder of clips.

        Raises:
          InputError: if it is missing.
        """
        path = self.find(key)
        if path is None or not path.is_dir():
            raise self._missing(key)
        self.used.append(str(path))
        return Clips(path)

    def _missing(self, key: str) -> InputError:
        need, first = self._needs[key], self.candidates(key)[0]
        what = "folder" if need.key.endswith(FOLDERS) else "file"
        return InputError(
            f"{self._entry.title} needs the {what} {first} ({need.what}); get it from {need.source}"
        )


FOLDERS = (".pictures", ".clips")
"""How keys of folders end."""


class Pictures:
    """Pictures of a folder by the names that annotations give them, or by their numbers.

    Attributes:
      folder: where they lie.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Takes the folder, or the folder with a pattern of names."""
        self._pattern = path.name if "{" in path.name else ""
        self.folder = path.parent if self._pattern else path
        self._known: dict[str, pathlib.Path] = {}

    def named(self, name: str, where: str) -> pathlib.Path:
        """The path of a picture; whether it is there is seen when it is read.

        Raises:
          InputError: if the name leads out of the folder.
        """
        if name not in self._known:
            try:
                self._known[name] = self.folder / checked_name(name)
            except BadRecord as error:
                raise InputError(f"{where}: {name!r} leads out of {self.folder}") from error
        return self._known[name]

    def numbered(self, number: int, where: str) -> pathlib.Path:
        """The path of the picture of an id, by the pattern of names.

        Raises:
          InputError: if there is no pattern, or a broken one.
        """
        try:
            name = self._pattern.format(id=number)
        except (LookupError, ValueError) as error:
            raise InputError(
                f"{self.folder / self._pattern}: {error}; write {{id:012d}}"
            ) from error
        if not self._pattern:
            raise InputError(
                f"{self.folder} names no pattern of pictures; end it in one: {{id:012d}}.jpg"
            )
        return self.named(name, where)


class Clips:
    """Clips of a folder and of the folders in it, by their names without what follows the dot."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Looks through the folder once."""
        self._folder, self._found = folder, dict[str, pathlib.Path]()
        for place, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    self._found.setdefault(stem, pathlib.Path(place) / name)
        self.missing = 0

    def whole(self, *names: str) -> Video | None:
        """The clip of the first of these names that is there; None (and counted) without."""
        for name in names:
            if name in self._found:
                return Video(self._found[name])
        self.missing += 1
        return None

    def part(self, name: str, start: float, end: float, *cut: str) -> Video | None:
        """A part of a recording, from a second to a second.

        Args:
          name: of the recording.
          start: the part's first second.
          end: where it ends.
          cut: names that the part has where it was cut out already: these are looked for first.

        Returns:
          None (and counted) if there is neither.
        """
        for piece in cut:
            if piece in self._found:
                return Video(self._found[piece])
        if name in self._found:
            return Video(self._found[name], start=start, end=end)
        self.missing += 1
        return None

    def check(self, kept: int) -> int:
        """How many clips were missing.

        Raises:
          InputError: if not one was there.
        """
        if self.missing and not kept:
            raise InputError(
                f"none of the {self.missing} clips that the annotations name is in {self._folder}"
            )
        return self.missing


def six_digits(start: float) -> str:
    """Seconds as names of cut clips have them: "000012"."""
    return f"{int(start):06d}"


def question(text: str) -> str:
    """A question with its mark, which some files leave out."""
    text = text.strip()
    return text if text.endswith(("?", ".", "!")) else text + "?"
