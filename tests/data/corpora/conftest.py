"""Records of the shared data, read by the plainest means there are, and a folder as `Files`."""

import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterator

import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Record


class Folder:
    """The files of a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except (OSError, ValueError) as error:
            raise BadRecord("missing file", name) from error


class Named(dict):
    """Files in memory, by their names."""

    def read(self, name: str) -> bytes:
        if name not in self:
            raise BadRecord("missing file", name)
        return self[name]


def _parquet(path: pathlib.Path) -> Iterator[Record]:
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, row in enumerate(parquet.read_table(path).to_pylist()):
        yield Record(f"{path.name}/{number}", row)


def _jsonl(path: pathlib.Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            yield Record(f"{path.name}/{number}", json.loads(line))


def _tar(path: pathlib.Path) -> Iterator[Record]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        for member in archive:
            key, _, field = member.name.partition(".")
            file = archive.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[field] = file.read()
    for key, fields in samples.items():
        yield Record(f"{path.name}/{key}", fields)


_READ = {".parquet": _parquet, ".jsonl": _jsonl, ".tar": _tar}


@pytest.fixture(scope="session")
def folder() -> type[Folder]:
    """`Folder`, a `Files` of a folder."""
    return Folder


@pytest.fixture(scope="session")
def named() -> type[Named]:
    """`Named`, a `Files` of a dict."""
    return Named


@pytest.fixture(scope="session")
def shared_records(shared: pathlib.Path) -> Callable[[str], list[Record]]:
    """All records of the shared files that match a pattern."""

    def read(pattern: str) -> list[Record]:
        paths = sorted((shared / "data").glob(pattern))
        assert paths, f"no {pattern} in the shared data"
        return [record for path in paths for record in _READ[path.suffix](path)]

    return read
