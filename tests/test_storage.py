"""Addresses beside paths: what is taken, what is refused, and in what words a bucket fails."""

import pathlib

import pytest

from flamingo_jax import storage
from flamingo_jax.errors import InputError, OutOfReach
from tests.bucket import Refused


def test_paths_stay_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / "a", str(tmp_path / "a"), "a"):
        path = storage.to_path(given)
        assert pathlib.Path(path) == tmp_path / "a" and not storage.is_remote(path)
    assert not storage.exists(path) and storage.entries(path) == []
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert storage.exists(path) and [entry.name for entry in storage.entries(path)] == ["b"]


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://", "gs:///run", "file:///run"])
def test_other_protocols_are_refused(address):
    with pytest.raises(InputError, match="is no address of a bucket; give gs://"):
        storage.to_path(address)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"flamingo_jax\[gcs\]\""):
        storage.to_path("gs://bucket/run")


def test_a_bucket_as_folders(bucket):
    root = storage.to_path("gs://bucket/run/")
    assert str(root) == "gs://bucket/run" and storage.is_remote(root)
    assert not storage.exists(root) and storage.entries(root) == []
    (root / "a" / "b").write_text("b")
    (root / "c").write_text("c")
    assert storage.entries(root) == [root / "a", root / "c"]
    assert storage.exists(root / "a") and not storage.exists(root / "d")
    storage.copy_tree(root / "a", root / "d" / "e")
    assert bucket.names() == ["run/a/b", "run/c", "run/d/e/b"]
    assert storage.modified(root / "c") >= storage.modified(root / "a" / "b") > 1.7e9
    assert storage.modified(root / "none") == 0.0
    # What others write is seen at once.
    bucket.write("run/f", b"")
    assert root / "f" in storage.entries(root)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (403, InputError, "you may not use this bucket"),
        (401, InputError, "you may not use this bucket"),
        (400, OutOfReach, "cannot be reached"),
    ],
)
def test_refusals_become_a_sentence(status, error, said, bucket):
    place = storage.to_path("gs://bucket/run")
    bucket.refusal = Refused(status, "no")
    for ask in (lambda: storage.entries(place), lambda: (place / "a").write_bytes(b"1")):
        with pytest.raises(error, match=said) as caught, storage.told(place):
            ask()
        assert "\n" not in str(caught.value) and str(caught.value).startswith("gs://bucket/run")


def test_no_such_bucket(bucket):
    place = storage.to_path("gs://nobody/run")
    with pytest.raises(InputError, match="there is no such bucket"), storage.told(place):
        (place / "a").write_bytes(b"1")


def test_defects_stay_defects(bucket):
    with pytest.raises(ZeroDivisionError), storage.told(storage.to_path("gs://bucket/run")):
        _ = 1 / 0


def test_each_process_has_a_working_folder(monkeypatch, tmp_path, bucket):
    monkeypatch.setenv("FLAMINGO_RUNS", str(tmp_path))
    one, other = (storage.to_path(f"gs://bucket/{name}/9b") for name in ("one", "other"))
    folders = {storage.working_folder(place, user) for place in (one, other) for user in "ab"}
    assert len(folders) == 4
    assert all(f.name == "9b" and f.is_relative_to(tmp_path) for f in folders)


def test_a_folder_for_a_while(bucket, tmp_path):
    beside = storage.to_path("gs://bucket/runs/one")
    with storage.temporary(beside) as folder:
        assert folder.parent == beside.parent
        (folder / "a").write_text("a")
    assert not bucket.names()
    with storage.temporary(storage.to_path(tmp_path / "run")) as folder:
        assert pathlib.Path(folder).parent == tmp_path
    with storage.temporary(None) as folder:
        assert pathlib.Path(folder).is_dir()
    assert not pathlib.Path(folder).exists()
