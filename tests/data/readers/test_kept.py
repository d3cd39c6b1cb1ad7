"""Indexes beside shards or in a cache: where they lie, who may write them, what they are worth."""

import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import uuid
from typing import Any

import fsspec
import numpy as np
import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import jsonl, kept, paths, tarindex, tars
from flamingo_jax.errors import InputError

ROWS = [{"i": i, "text": "x" * i} for i in range(20)]


@pytest.fixture(autouse=True)
def users(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.delenv("FLAMINGO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    return tmp_path / "users"


def write(path: pathlib.Path, rows: list[dict] = ROWS) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fields(path: str, **how: Any) -> list[Any]:
    reader = jsonl.open_jsonl([path], **how)
    return [reader[index].fields for index in range(len(reader))]


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def indexes(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.index"))


def test_where_indexes_lie(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data" / "a.jsonl")
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "named"))
    assert fields(path) == ROWS and len(indexes(tmp_path / "named")) == 1
    # What is named in a call goes before what is in the environment; it may be relative.
    monkeypatch.chdir(tmp_path)
    assert fields(path, cache="called") == ROWS
    assert len(indexes(tmp_path / "called")) == len(indexes(tmp_path / "named")) == 1
    assert os.listdir(tmp_path / "data") == ["a.jsonl"]
    # The user's own, where neither is named and nothing can be written beside the shard.
    monkeypatch.delenv("FLAMINGO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data" / "a.jsonl.index").mkdir()
    assert fields(path) == ROWS
    assert len(indexes(tmp_path / "home" / ".cache" / "flamingo_jax")) == 1
    # Nobody knows the user's home: nothing is kept, nor a folder "~" made.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert fields(path) == ROWS and not (tmp_path / "~").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_is_read_only(tmp_path: pathlib.Path, users: pathlib.Path) -> None:
    path = write(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data").chmod(0o500)
    assert fields(path) == ROWS and len(indexes(users)) == 1


def test_processes_write_the_same_index_at_once(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS * 500)
    program = (
        "import sys; from flamingo_jax.data.readers import jsonl\n"
        f"reader = jsonl.open_jsonl([{path!r}]); sys.stdin.read(1)\n"
        "for _ in range(20):\n"
        "    reader._files[0]._index._made()\n"
        "    assert jsonl.open_jsonl([sys.argv[1]])[7].fields['i'] == 7\n"
    )
    command = [sys.executable, "-c", program, path]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for process in running:
        process.communicate(b"x", timeout=120)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.index"]
    assert len(jsonl.open_jsonl([path])) == len(ROWS) * 500


@pytest.mark.parametrize(
    "change",
    [
        {"form": "another"},
        {"size": 1},
        {"stamp": "mtime 1"},
        {"facts": None},
        {"facts": {}},
        {"facts": {"records": 2.0}},
        {"arrays": None},
        {"arrays": [["starts"]]},
        {"arrays": [["starts", "<i8", "20"]]},
        {"arrays": [["starts", "<i8", -1]]},
        {"arrays": [["starts", "<i8", 10**30]]},
        {"arrays": [["starts", "O", 20]]},
        {"arrays": [["starts", "<f8", 20]]},
        {"arrays": [[{}, "<i8", 20]]},
        {"arrays": [["other", "<i8", 20]]},
        {"body": 1},
        None,
        [],
        [[]],
        "[" * 8_000,
        "{",
        b"\xff",
    ],
)
def test_whatever_a_kept_file_says(tmp_path: pathlib.Path, change: Any) -> None:
    """Its check sums are right: somebody made it so, to mislead or to break what reads it."""
    path = write(tmp_path / "a.jsonl")
    assert fields(path) == ROWS
    index = tmp_path / "a.jsonl.index"
    line, _, body = index.read_bytes().partition(b"\n")
    head = json.loads(line.partition(b" ")[2])
    if isinstance(change, dict) and "<f8" in str(change):
        body = np.full(20, np.nan).tobytes()
        head["body"] = digest(body)
    if isinstance(change, str | bytes):
        text = change.encode() if isinstance(change, str) else change
    else:
        text = json.dumps(head | change if isinstance(change, dict) else change).encode()
    index.write_bytes(digest(text).encode() + b" " + text + b"\n" + body)
    assert fields(path) == ROWS
    assert fields(path) == ROWS  # and by the index that was made again


SAMPLES = {"a.jpg": b"1" * 600, "a.txt": b"2", "README": b"3", "b.txt": b"4"}
SENSELESS = {
    "starts": [[0], [0, 2, 4, 4], [0, 9, 4], [2, 0, 4], [0, 3, 4], [0, 1, 4], [2, 3, 4], [0, 0, 4]],
    "repeats": [[0], [0, 0, 0]],
    "offsets": [[0] * 3, [-512, 1536, 2560, 3584], [1 << 62] * 4, [1536, 0, 2560, 3584]],
    "sizes": [[0] * 3, [-1] * 4, [1 << 62] * 4],
    "ends": [[5] * 3, [5, 10, 16, 99], [5, 4, 16, 21], [-1, 10, 16, 21]],
    "checks": [[0] * 3, [0] * 4],
    "hashes": [[0] * 3, [0] * 4],
    "kinds": [[0] * 3, [99] * 4, [0, 1, 0, 0]],
}


@pytest.mark.parametrize(
    ("name", "values"), [(name, v) for name, each in SENSELESS.items() for v in each]
)
def test_an_index_of_a_tar_that_makes_no_sense(
    tmp_path: pathlib.Path, name: str, values: list[int]
) -> None:
    """Its check sums are right too: what is read is of a sample as it is, or a BadRecord."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for member, data in SAMPLES.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    facts, arrays = tarindex.build(paths.Shard(str(tmp_path / "s.tar")))
    assert name in arrays and arrays["starts"].tolist() == [0, 3, 4]
    arrays[name] = np.array(values, arrays[name].dtype)
    kept.Kept(paths.Shard(str(tmp_path / "s.tar")), tarindex.FORM).write(facts, arrays)
    reader = tars.open_tars(str(tmp_path / "s.tar"))
    assert len(reader) == 2
    for index, whole in enumerate(({"jpg": b"1" * 600, "txt": b"2"}, {"txt": b"4"})):
        try:
            found = reader[index].fields
            # A stranger may hide what is there, but not change or mix it.
            assert found == whole or found.items() < whole.items()
        except BadRecord as error:
            assert error.reason
    for member, data in SAMPLES.items():
        try:
            assert reader.files().read(member) == data
        except BadRecord as error:
            assert error.reason


def test_a_digest_that_is_no_text(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.index").write_bytes(b"\xff\xff {}\n")
    assert fields(path) == ROWS


def test_an_index_that_counts_otherwise(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl")
    shelf = kept.Kept(paths.Shard(path), jsonl.FORM)
    shelf.write({"records": 21}, {"starts": np.arange(20, dtype="<i8")})
    reader = jsonl.open_jsonl([path])
    for index in (0, 20):
        with pytest.raises(BadRecord, match="shard has changed"):
            reader[index]
    assert fields(path) == ROWS  # it was made again


def test_an_index_far_larger_than_its_shard_is_not_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl")
    assert fields(path) == ROWS
    index = tmp_path / "a.jsonl.index"
    os.truncate(index, 1 << 40)  # a hole: little on the disk, more than any memory
    assert fields(path) == ROWS and index.stat().st_size < 10_000


def test_a_shard_that_cannot_be_read_through(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(shard: paths.Shard, offset: int, length: int) -> bytes:
        raise BadRecord("shard cannot be read", "an error of the disk")

    path = write(tmp_path / "a.jsonl")
    fields(path)
    reader = jsonl.open_jsonl([path])  # which has read the facts of its index alone
    (tmp_path / "a.jsonl.index").unlink()
    monkeypatch.setattr(paths.Shard, "read", broken)
    with pytest.raises(InputError, match=r"cannot be indexed: .*of the disk; mend it"):
        jsonl.open_jsonl([path])
    with pytest.raises(BadRecord) as caught:
        reader[0]
    assert caught.value.reason == "shard cannot be read"
    (tmp_path / "b.json").write_text("[{}]")
    with pytest.raises(InputError, match=r"cannot be read: .*of the disk; mend it"):
        jsonl.open_jsonl([str(tmp_path / "b.json")])


def test_a_shard_without_a_stamp_is_read_anew(
    users: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file whose time nobody tells, the size alone says too little."""
    monkeypatch.setattr(paths, "_STAMPS", ())
    path, store = f"memory://{uuid.uuid4().hex}/a.jsonl", fsspec.filesystem("memory")
    store.pipe_file(path, b'{"a": 1}\n{"bb": 2}\n')
    assert fields(path) == [{"a": 1}, {"bb": 2}]
    store.pipe_file(path, b'{"aa": 1}\n{"b": 2}\n')
    assert fields(path) == [{"aa": 1}, {"b": 2}]


def test_lines_that_were_one(tmp_path: pathlib.Path) -> None:
    """Another file of the same size and time, in which a line is two."""
    path = write(tmp_path / "a.jsonl", [{"a": 10}, {"b": 1}])
    assert len(fields(path)) == 2
    status = os.stat(path)
    (tmp_path / "a.jsonl").write_bytes(b'{   }\n{ }\n{"b": 1}\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.path.getsize(path) == status.st_size
    reader = jsonl.open_jsonl([path])
    with pytest.raises(BadRecord, match="shard has changed"):
        reader[0]
    assert reader[1].fields == {"b": 1}
    # A line that begins before the place where one began.
    (tmp_path / "a.jsonl").write_bytes(b'          {"b": 1}\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.path.getsize(path) == status.st_size
    for index in (0, 1):
        with pytest.raises(BadRecord, match="shard has changed"):
            jsonl.open_jsonl([path])[index]
