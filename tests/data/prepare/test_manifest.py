"""The manifest decides what is read: of a folder that is not finished or not sound, nothing."""

import json
import pathlib
import shutil
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from flamingo_jax.data import sources
from flamingo_jax.data.prepare import manifest
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture
def folder(job: Job, tmp_path: pathlib.Path) -> pathlib.Path:
    prepare(job, str(tmp_path / "out"))
    return tmp_path / "out"


def opened(path: pathlib.Path) -> Any:
    return sources.open_source(SourceSpec("prepared", str(path)))


def test_what_is_read_is_what_the_manifest_names(folder: pathlib.Path) -> None:
    found = manifest.read(folder, verify=True)
    count = found.counts["documents"]
    assert len(opened(folder)) == count
    # A stray shard beside them is none of them, nor is one that is half written.
    first = pathlib.Path(found.paths[0])
    shutil.copy(first, folder / "another.array_record")
    shutil.copy(first, folder / f"{manifest.TEMPORARY}1-{first.name}")
    assert len(opened(folder)) == count
    # Named in full, a file is read as it is.
    assert len(opened(first)) == found.shards[0].documents


def test_no_manifest(folder: pathlib.Path) -> None:
    (folder / manifest.MANIFEST).unlink()
    for path in (folder, folder / "*.array_record", folder / "shard-00000-of-00003.array_record"):
        with pytest.raises(InputError, match="half prepared"):
            opened(path)
    (folder / manifest.PLAN).unlink()
    with pytest.raises(InputError, match=r"without a manifest\.json"):
        opened(folder)
    assert len(opened(folder / "*.array_record")) > 0


@pytest.mark.parametrize("verify", [True, False])
def test_shards_that_are_not_as_they_were(folder: pathlib.Path, verify: bool) -> None:
    victim = folder / manifest.shard_name(1, 3)
    data = victim.read_bytes()
    victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if verify:
        with pytest.raises(InputError, match="not as the manifest has it"):
            manifest.read(folder, verify=True)
    victim.write_bytes(data[:-1])
    with pytest.raises(InputError, match="not as the manifest has it"):
        manifest.read(folder, verify)
    victim.unlink()
    for read in (lambda: manifest.read(folder, verify), lambda: opened(folder)):
        with pytest.raises(InputError, match=r"shard-00001-of-00003\.array_record' is missing"):
            read()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.update(plan=[]),
        lambda content: content.update(bytes=-1),
        lambda content: content.update(bytes=True),
        lambda content: content["counts"].pop("clips"),
        lambda content: content["counts"].update(documents=0),
        lambda content: content["shards"].pop(),
        lambda content: content["shards"][0].update(name="../x/shard-00000-of-00001.array_record"),
        lambda content: content["shards"][0].update(name="/etc/passwd"),
        lambda content: content["shards"][0].update(sha256="ab"),
        lambda content: content["shards"][0].update(documents="3"),
        lambda content: content.update(shards={"a": 1}),
        lambda content: content.pop("dropped"),
        lambda content: content.update(bad=[1]),
    ],
)
def test_a_damaged_manifest(change, folder: pathlib.Path) -> None:
    path = folder / manifest.MANIFEST
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(manifest.canonical(content))
    with pytest.raises(InputError, match="damaged"):
        opened(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]"])
def test_no_json(data: bytes, folder: pathlib.Path) -> None:
    (folder / manifest.MANIFEST).write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        opened(folder)


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=60
)
@hypothesis.given(st.data())
def test_any_field_of_any_type(folder: pathlib.Path, data: st.DataObject) -> None:
    """A changed manifest reads as it says, or is refused by a sentence."""
    good = manifest.read(folder)
    path = folder / manifest.MANIFEST
    before = path.read_bytes()
    content = json.loads(before)
    place = content
    if data.draw(st.booleans()):
        place = content["shards"][data.draw(st.integers(0, 2))]
    name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(JSON)
    try:
        path.write_bytes(manifest.canonical(content))
        found = manifest.read(folder)
        assert [shard.name for shard in found.shards] == [shard.name for shard in good.shards]
    except InputError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(before)


def test_names_sort_as_numbers() -> None:
    for total in (1, 12, 123_456):
        names = [manifest.shard_name(k, total) for k in range(min(total, 200))]
        assert names == sorted(names)
        assert all(manifest._NAME.fullmatch(name) for name in names)


def test_a_kill_between_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.json"
    manifest.write(path, {"b": 1, "a": "ü\udcff"})
    before = path.read_bytes()
    assert json.loads(before) == {"a": "ü\udcff", "b": 1}
    with pytest.raises(TypeError):
        manifest.write(path, {"a": object()})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
