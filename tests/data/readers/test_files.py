"""Files that records name never come from outside their folder; keys name a record for good."""

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import files
from flamingo_jax.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_bytes(b"secret")
    root = outside / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").write_bytes(b"one")
    (root / "ä b.jpg").write_bytes(b"two")
    (root / "empty").write_bytes(b"")
    (root / "large").write_bytes(bytes(101))
    (root / "inside").symlink_to(root / "a" / "1.jpg")
    (root / "out").symlink_to(outside / "secret")
    (root / "up").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


def test_files_are_read_by_their_names(root: pathlib.Path) -> None:
    folder = files.FolderFiles(str(root))
    assert folder.read("a/1.jpg") == b"one"
    assert folder.read("./a//1.jpg") == b"one"
    assert folder.read("ä b.jpg") == b"two"
    assert folder.read("inside") == b"one"
    assert folder.read("empty") == b""


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "a/../../secret",
        "a/..",
        "/etc/passwd",
        "//etc/passwd",
        "C:secret",
        "c:/secret",
        "..\\secret",
        "a\\1.jpg",
        "\\\\host\\share",
        "a/1.jpg\0.png",
        "out",
        "up/secret",
        None,
        7,
    ],
)
def test_names_that_leave_the_folder(root: pathlib.Path, name: str) -> None:
    with pytest.raises(BadRecord) as caught:
        files.FolderFiles(str(root)).read(name)
    assert caught.value.reason == "unsafe file name"


@pytest.mark.parametrize(
    "name", ["", ".", "a", "none", "a/1.jpg/b", "loop", "pipe", "x" * 5000, "\ud800"]
)
def test_what_is_no_file(root: pathlib.Path, name: str) -> None:
    with pytest.raises(BadRecord) as caught:
        files.FolderFiles(str(root)).read(name)
    assert caught.value.reason == "missing file"


def test_sizes_are_bounded(root: pathlib.Path) -> None:
    assert len(files.FolderFiles(str(root), limit=101).read("large")) == 101
    with pytest.raises(BadRecord, match="file too large"):
        files.FolderFiles(str(root), limit=100).read("large")


def test_what_lies_is_read_by_names_within_alone(root: pathlib.Path) -> None:
    with pytest.raises(BadRecord, match="unsafe file name"):  # even of a file inside
        files.FolderFiles(str(root)).read(str(root / "a" / "1.jpg"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_a_file_of_no_size_is_bounded_too() -> None:
    """What grows, or says that it has no bytes, is measured by reading."""
    assert os.stat("/proc/self/status").st_size == 0
    assert files.FolderFiles(f"/proc/{os.getpid()}").read("status")
    with pytest.raises(BadRecord, match="file too large"):
        files.FolderFiles(f"/proc/{os.getpid()}", limit=10).read("status")


@given(st.text(st.sampled_from("./\\a1:\0C~ä"), max_size=12) | st.text())
def test_no_name_reads_the_secret(root: pathlib.Path, name: str) -> None:
    try:
        assert files.FolderFiles(str(root)).read(name) in (b"one", b"two", b"")
    except BadRecord:
        pass


def test_folders_that_are_missing(root: pathlib.Path) -> None:
    for path in ("", str(root / "none"), str(root / "empty")):
        with pytest.raises(InputError, match="there is no folder"):
            files.FolderFiles(path)


def test_a_folder_by_a_link(root: pathlib.Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert files.FolderFiles(str(link)).read("a/1.jpg") == b"one"


def test_shards_that_cannot_be(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    for paths, word in [
        ([], "no Parquet files"),
        ([str(tmp_path)], "is not a file"),
        ([str(path), str(tmp_path / "b")], "there is no file .*b"),
        ([str(path), str(path)], "named twice"),
        ([str(path), f"{tmp_path}/./a"], "named twice"),
        (["gs://bucket/a"], "from disks alone"),
        (["ftp://host/a"], "from disks alone"),
    ]:
        with pytest.raises(InputError, match=word):
            files.look(paths, "Parquet", local=True)
    with pytest.raises(InputError, match="gs://, s3://"):
        files.look(["ftp://host/a"], "Parquet")
    assert [shard.path for shard in files.look([str(path)], "Parquet")] == [str(path)]


def test_keys_stay_when_the_folder_moves() -> None:
    for root in ("/data", "/elsewhere/data", "data", "gs://bucket", "s3://bucket/data"):
        shards = files.ShardIndex([f"{root}/x/0", f"{root}/y/0"], [2, 3])
        assert [shards.key(*shards.locate(i)) for i in (0, 4)] == ["x/0/00000", "y/0/00002"]
    assert files.ShardIndex(["/data/x/0"], [1]).key(0, 0) == "0/00000"
    assert files.shard_names(["/data/x/0", "/data/1"]) == ("x/0", "1")
    assert files.shard_names(["gs://a/0", "gs://b/0"]) == ("a/0", "b/0")
    assert files.shard_names([]) == ()


@given(st.lists(st.text("ab/", min_size=1, max_size=6), unique_by=os.path.normpath, min_size=1))
def test_names_tell_shards_apart(ends: list[str]) -> None:
    shards = [os.path.normpath(f"/root/{end}") for end in ends if end.strip("/")]
    names = files.shard_names(shards)
    assert len(set(names)) == len(set(shards))
    assert all(
        name and shard.endswith(f"/{name}") for name, shard in zip(names, shards, strict=True)
    )


@given(st.lists(st.integers(0, 4), max_size=6))
def test_every_index_has_its_place(counts: list[int]) -> None:
    shards = files.ShardIndex([f"/{i}" for i in range(len(counts))], counts)
    expected = [(shard, place) for shard, n in enumerate(counts) for place in range(n)]
    assert [shards.locate(index) for index in range(len(shards))] == expected
    for index in (-1, len(shards)):
        with pytest.raises(IndexError):
            shards.locate(index)
