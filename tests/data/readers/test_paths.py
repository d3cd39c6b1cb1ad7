"""Paths of shards, and reads of any part of a file from many threads."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import uuid
from typing import Any

import fsspec
import hypothesis
import hypothesis.strategies as st
import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import paths
from flamingo_jax.errors import InputError


def make(folder: pathlib.Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in names]


def test_files_folders_and_globs(tmp_path: pathlib.Path) -> None:
    b, a, other, deep = make(tmp_path, "b.tar", "a.tar", "a.tar.index", "sub/c.tar")
    make(tmp_path, ".hidden.tar")
    tar = (".tar",)
    assert paths.expand(other, tar) == [other]  # named in full
    assert paths.expand(str(tmp_path), tar) == [a, b]
    assert paths.expand(f"{tmp_path}/*", tar) == [a, b]
    assert paths.expand(f"{tmp_path}/**", tar) == [a, b, deep]
    assert paths.expand(f"{tmp_path}/[bc].tar") == [b]
    assert paths.expand(str(tmp_path)) == [a, other, b]


def test_braces_and_lists(tmp_path: pathlib.Path) -> None:
    names = [f"{split}/s-{i:03d}.tar" for split in ("train", "more") for i in range(8, 12)]
    shards = make(tmp_path, *names)
    every = sorted(shards)
    assert paths.expand(f"{tmp_path}/{{train,more}}/s-{{008..011}}.tar") == every
    assert paths.expand(f"{tmp_path}/train/s-0{{08..11}}.tar,{tmp_path}/more") == every
    assert paths.expand(f"{tmp_path}/train::{tmp_path}/more/*.tar::{shards[0]}") == every
    assert paths.expand(f"{tmp_path}/{{train/s-{{011..010}},more/s-008}}.tar") == sorted(
        [shards[2], shards[3], shards[4]]
    )
    assert paths.expand(f"{tmp_path}/train/s-{{008..011..2}}.tar") == [shards[0], shards[2]]
    assert paths.expand(f"{tmp_path}/train/s-{{008..009..0}}.tar") == shards[:2]


@hypothesis.given(st.integers(0, 300), st.integers(0, 40), st.integers(1, 6))
def test_ranges_are_what_format_makes(first: int, count: int, width: int) -> None:
    numbers = range(first, first + count + 1)
    padded = f"memory://x/{{{numbers[0]:0{width}d}..{numbers[-1]:0{width}d}}}.tar"
    longest = max(width, len(str(numbers[-1])))
    is_padded = any(len(text) > 1 and text[0] == "0" for text in padded[12:-5].split(".."))
    pad = longest if is_padded else 0
    assert paths.expand(padded, (".tar",)) == sorted(f"memory://x/{n:0{pad}d}.tar" for n in numbers)


def test_a_name_with_signs_of_patterns_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    for name in ("a,b.tar", "{0..3}.tar", "x[1]*.tar", "{.tar"):
        shard = make(tmp_path, name)
        assert paths.expand(shard[0]) == shard


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("", "is no path"),
        ("a\0b", "is no path"),
        (" , ", "names no shard"),
        ("none.tar", "no file 'none.tar'"),
        ("s-{0..9}.tar", r"no file 's-0.tar' \(and 9 more\)"),
        ("*.parquet", "holds no file that ends in .tar"),
        ("packed", r"x\.tar\.gz' is compressed .*decompress it with gunzip"),
        ("other", r"holds no file that ends in \.tar, but y\.zip"),
        ("s-{0..9.tar", "do not pair"),
        ("s-0..9}.tar", "do not pair"),
        ("s-{09}.tar", "neither a range nor a list"),
        ("s-{a..b}.tar", "neither a range nor a list"),
        ("{0..9999999}.tar", "more than"),
        ("{0..999999999999999999}.tar", "more than"),
        ("{0..9999}/{0..9999}/{0..9999}.tar", "more than"),
        ("ftp://host/a.tar", "local path or a URL of gs://"),
        ("fifo", "neither a file nor a folder"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, pattern: str, word: str
) -> None:
    make(tmp_path, "packed/x.tar.gz", "other/y.zip")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=word):
        paths.expand(pattern, (".tar",))


@hypothesis.given(st.text(alphabet="ab{},.:0129[]*/\0", max_size=20))
def test_any_pattern_gives_paths_or_an_input_error(pattern: str) -> None:
    try:
        assert all(os.path.isfile(path) for path in paths.expand("none/" + pattern))
    except InputError:
        pass


def test_urls_through_fsspec() -> None:
    files = fsspec.filesystem("memory")
    root = f"memory://{uuid.uuid4().hex}"
    for name in ("a/1.tar", "a/2.tar", "a/note.txt", "b/3.tar"):
        files.pipe_file(f"{root}/{name}", name.encode())
    one, two, three = (f"{root}/{name}" for name in ("a/1.tar", "a/2.tar", "b/3.tar"))
    tar = (".tar",)
    assert paths.expand(f"{root}/a", tar) == [one, two]
    assert paths.expand(f"{root}/*/*.tar", tar) == [one, two, three]
    assert paths.expand(f"{root}/{{a/{{1..2}},b/3}}.tar", tar) == [one, two, three]
    with pytest.raises(InputError, match="holds no file"):
        paths.expand(f"{root}/*.tar", tar)

    shard = paths.Shard(one)
    assert (shard.size(), shard.read(2, 3)) == (7, b"1.t")
    stamp = shard.stamp()
    assert stamp and paths.Shard(one).stamp() == stamp != paths.Shard(two).stamp()
    with pytest.raises(BadRecord, match="beyond the end"):
        shard.read(5, 3)
    with pytest.raises(InputError, match="there is no file"):
        paths.Shard(f"{root}/none.tar").size()


@pytest.mark.parametrize(("url", "package"), [("gs://b/a.tar", "gcs"), ("s3://b/a.tar", "s3")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    def filesystem(protocol: str) -> None:
        raise ImportError(f"no {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    for call in (lambda: paths.expand(url), lambda: paths.Shard(url).size()):
        with pytest.raises(InputError, match=rf"install flamingo_jax\[{package}\]"):
            call()


class Cloud:
    """A filesystem that fails in some ways."""

    def __init__(self, **answers: Any) -> None:
        self._answers = {"info": {"type": "file", "size": 9, "etag": "a"}} | answers

    def _answer(self, name: str) -> Any:
        answer = self._answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def info(self, path: str) -> Any:
        return self._answer("info")

    def isdir(self, path: str) -> Any:
        return self._answer("isdir")

    def cat_file(self, path: str, start: int, end: int) -> Any:
        return self._answer("cat_file")


def test_whatever_a_cloud_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def shard(**answers: Any) -> paths.Shard:
        monkeypatch.setattr(fsspec, "filesystem", lambda protocol: Cloud(**answers))
        return paths.Shard("gs://b/a.tar")

    for answer, word in (
        (RuntimeError("over the quota"), r"'gs://b/a\.tar' cannot be read: over the quota; check"),
        (OSError(), "cannot be read: OSError; check"),
        (FileNotFoundError("x"), "there is no file 'gs://b/a.tar'; check"),
        ({"type": "directory", "size": 0}, r"^'gs://b/a\.tar' is not a file; give"),
        ({"type": "file", "size": None}, r"^'gs://b/a\.tar' is not a file; give"),
        ({"type": "file"}, r"^'gs://b/a\.tar' is not a file; give"),
    ):
        with pytest.raises(InputError, match=word):
            shard(info=answer).size()
    with pytest.raises(InputError, match=r"cannot be read: over the quota; check"):
        shard(isdir=RuntimeError("over the quota"))
        paths.expand("gs://b/a")
    shard(isdir=False)
    assert paths.expand("gs://b/a") == ["gs://b/a"]  # whether it exists is seen later
    assert shard(cat_file=b"12345").read(2, 5) == b"12345"
    for answer, reason in (
        (RuntimeError("over the quota"), "shard cannot be read"),
        (b"1234", "shard has changed"),
        (b"123456", "shard has changed"),
    ):
        with pytest.raises(BadRecord) as caught:
            shard(cat_file=answer).read(2, 5)
        assert caught.value.reason == reason
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol: 1 / 0)
    with pytest.raises(InputError, match="cannot be read: division by zero; check your access"):
        paths.expand("s3://b/a.tar", (".tar",))


def test_a_url_is_none_of_this_disk(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "memory:/x/a.tar")
    assert os.path.exists("memory://x/a.tar")
    assert paths.expand("memory://x/a.tar", (".tar",)) == ["memory://x/a.tar"]


def test_shards_are_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.tar", "b.tar", "c.tar")
    monkeypatch.setattr(paths, "MAX_SHARDS", 2)
    for pattern in (f"{tmp_path}/*.tar,{tmp_path}", f"{tmp_path}/{{a,b}}.tar,{tmp_path}/c.tar"):
        with pytest.raises(InputError, match="more than 2 shards; split it"):
            paths.expand(pattern, (".tar",))


def test_local_paths_do_not_import_fsspec(tmp_path: pathlib.Path) -> None:
    (shard,) = make(tmp_path, "a.tar")
    program = (
        "import sys; from flamingo_jax.data.readers import paths; "
        f"paths.Shard(paths.expand({shard!r})[0]).read(0, 1); assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_many_threads_read_more_files_than_may_be_open(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MAX_OPEN", 3)
    monkeypatch.setattr(paths, "_OPENED", type(paths._OPENED)())
    data = [os.urandom(5000) for _ in range(12)]
    shards = []
    for number, content in enumerate(data):
        (tmp_path / str(number)).write_bytes(content)
        shards.append(paths.Shard(str(tmp_path / str(number))))

    def read(turn: int) -> bool:
        number, offset = turn % 12, turn * 37 % 4000
        return shards[number].read(offset, 999) == data[number][offset : offset + 999]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(600)))
    assert sum(shard._file is not None for shard in shards) <= 3


def test_files_are_closed_when_nobody_needs_them(tmp_path: pathlib.Path) -> None:
    (name,) = make(tmp_path, "a.tar")
    shard = paths.Shard(name)
    shard.read(0, 1)
    assert shard._file is not None
    number = shard._file.number
    os.fstat(number)
    del shard
    with pytest.raises(OSError):
        os.fstat(number)


def test_a_file_that_changed_is_refused(tmp_path: pathlib.Path) -> None:
    name = tmp_path / "a.tar"
    name.write_bytes(b"x" * 100)
    shard = paths.Shard(str(name))
    assert shard.read(90, 10) == b"x" * 10
    name.write_bytes(b"y" * 50)
    with pytest.raises(BadRecord, match="shard has changed"):
        shard.read(0, 10)
    for offset, length in ((-1, 2), (0, -1), (99, 2), (200, 0)):
        with pytest.raises(BadRecord, match="beyond the end"):
            shard.read(offset, length)
    with pytest.raises(BadRecord, match="cannot be read"):
        paths.Shard(str(tmp_path / "none")).read(0, 1)
    with pytest.raises(InputError, match="not a file"):
        paths.Shard(str(tmp_path)).size()
