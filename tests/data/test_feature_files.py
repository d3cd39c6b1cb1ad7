"""Folders of features: what is written is read, by its key alone; what is not whole is not read."""

import pathlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.featurefiles import layout, writer
from flamingo_jax.data.featurefiles.reader import FeatureFolder, open_features
from flamingo_jax.errors import InputError

P, E = 3, 4
PLAN = {"shape": [P, E], "datasets": {"pairs": {"group": 0}, "others": {"group": 1}}}
DIGEST = layout.digest(PLAN)


def features_of(number: int, frames: int) -> np.ndarray:
    drawn = np.random.default_rng(number).normal(size=(frames, P, E))
    return drawn.astype(ml_dtypes.bfloat16)


def medium(number: int, data: bytes = b"") -> Medium:
    return Medium(data or b"data of %d" % number, f"pictures/{number}.png")


def write(folder: pathlib.Path, shards: list[list[int]]) -> None:
    """Writes shards of media with so many frames; one of 0 frames could not be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    number, accounts = 0, []
    for place, shard in enumerate(shards):
        with writer.new_shard(folder, place, DIGEST) as new:
            for frames in shard:
                item = medium(number)
                key = layout.key_of(0, "train", item.key, -1)
                if frames:
                    new.add(key, layout.data_digest(item), features_of(number, frames))
                else:
                    reason = ("truncated image", "not an image")[number % 2]
                    new.reject(key, layout.data_digest(item), item.key, BadRecord(reason, "why"))
                new.media += 1
                number += 1
            new.after = (0, number)
        accounts.append(new.account)
    writer.finish(folder, PLAN, accounts)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SHARDS = [[1, 2, 0, 1], [0], [3, 1, 1, 0, 1]]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write(tmp_path / "features", SHARDS)
    return tmp_path / "features"


def check(found: FeatureFolder, frames: list[int]) -> None:
    table = found.table("pairs", "train")
    assert table.shape == (P, E)
    for number, count in enumerate(frames):
        if count:
            read = table[f"pictures/{number}.png", -1]
            assert read.dtype == ml_dtypes.bfloat16 and read.shape == (count, P, E)
            assert read.tobytes() == features_of(number, count).tobytes()
        else:
            with pytest.raises(BadRecord) as error:
                table[f"pictures/{number}.png", -1]
            assert error.value.reason == ("truncated image", "not an image")[number % 2]
            assert error.value.detail == f"pictures/{number}.png"


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, shards: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("features")
    frames = [count for shard in shards for count in shard]
    if not sum(frames):
        with pytest.raises(InputError, match=f"none of {len(frames)} media has features"):
            write(folder, shards)
        return
    write(folder, shards)
    found = open_features(folder)
    check(found, frames)
    assert found.counts == {"media": len(frames), "versions": len(frames), "frames": sum(frames)}
    assert sum(found.bad.values()) == frames.count(0) and found.shards == len(shards)


def test_the_index_is_the_same_in_pieces(folder, tmp_path, monkeypatch) -> None:
    for at_once in (1, 3):
        monkeypatch.setattr(writer, "SORTED_AT_ONCE", at_once)
        write(tmp_path / str(at_once), SHARDS)
        assert contents(tmp_path / str(at_once)) == contents(folder)


def test_halves_of_hashes_that_are_alike(tmp_path, monkeypatch) -> None:
    def key_of(group: int, split: str, key: str, version: int) -> tuple[int, int]:
        return 7, int(key[9:-4])

    monkeypatch.setattr(layout, "key_of", key_of)
    write(tmp_path, SHARDS)
    check(open_features(tmp_path), [count for shard in SHARDS for count in shard])


def test_keys_differ_in_each_of_their_parts() -> None:
    keys = [
        layout.key_of(group, split, key, version)
        for group in (0, 1)
        for split in ("train", "validation")
        for key in ("a", "b", "a\0b", "\udc80", "ä")
        for version in (-1, 0, 1)
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= half < 1 << 64 for key in keys for half in key)


@pytest.mark.parametrize("key", [("pictures/0.png", 0), ("pictures/99.png", -1)])
def test_absent_media_are_told_of(folder, key) -> None:
    """No bad record, which would be replaced by another: the user must know."""
    with pytest.raises(InputError, match="prepare its features again") as error:
        open_features(folder).table("pairs", "train")[key]
    assert repr(key[0]) in str(error.value) and "'pairs'" in str(error.value)
    for dataset, split in (("pairs", "validation"), ("others", "train")):
        with pytest.raises(InputError, match="has no features of the medium"):
            open_features(folder).table(dataset, split)["pictures/0.png", -1]


def test_media_are_known_by_their_data(folder, tmp_path) -> None:
    table = open_features(folder).table("pairs", "train")
    table.check([medium(0), medium(2), medium(9)], -1)
    with pytest.raises(InputError, match=r"'pictures/1\.png' of dataset 'pairs' is not the one"):
        table.check([medium(0), medium(1, b"another")], -1)
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    first = layout.data_digest(Medium(str(path), "a"))
    path.write_bytes(b"b")
    assert layout.data_digest(Medium(str(path), "a")) not in (0, first)
    assert layout.data_digest(Medium(str(tmp_path / "absent"), "a")) == 0
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert layout.data_digest(Medium(pixels, "a")) == layout.data_digest(Medium(pixels.copy(), "b"))


def test_damaged_features_are_bad_records(folder) -> None:
    found = open_features(folder)
    path = folder / layout.shard_name(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the fourth medium
    path.write_bytes(data)
    table = found.table("pairs", "train")
    assert len(table["pictures/1.png", -1]) == 2
    with pytest.raises(BadRecord) as error:
        table["pictures/3.png", -1]
    assert error.value.reason == "damaged features"
    last = folder / layout.shard_name(2)
    last.write_bytes(last.read_bytes()[:10])
    with pytest.raises(BadRecord, match="damaged features"):
        table["pictures/9.png", -1]


NAMES = ["index.npy", "features.json", "features-000002.bin"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "empty"])
def test_damaged_folders_are_refused(name: str, damage: str, folder) -> None:
    path = folder / name
    data = path.read_bytes()
    changed = {"cut": data[:-1], "longer": data + b"x", "empty": b""}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    with pytest.raises(InputError) as error:
        open_features(folder)
    assert "damaged" in str(error.value) or "has no features.json" in str(error.value)


@settings(max_examples=30)
@given(st.data())
def test_flipped_bytes_are_noticed(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    write(folder, SHARDS)
    path = folder / data.draw(st.sampled_from(NAMES[:2]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        open_features(folder)


def test_half_prepared_folders_are_refused(folder) -> None:
    (folder / "plan.json").write_text("{}")
    (folder / layout.MANIFEST).unlink()
    with pytest.raises(InputError, match="half prepared"):
        open_features(folder)
    with pytest.raises(InputError, match="give a folder that prepare features finished"):
        open_features(folder / "absent")


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".json"])
def test_only_whole_shards_are_gone_on_with(suffix: str, folder) -> None:
    whole = writer.whole_shards(folder, DIGEST)
    assert [account["media"] for account in whole] == [len(shard) for shard in SHARDS]
    assert [account["after"] for account in whole] == [[0, 4], [0, 5], [0, 10]]
    path = folder / "features-000001.json"
    path = path.with_suffix(suffix)
    path.write_bytes(path.read_bytes() + b"x")
    assert writer.whole_shards(folder, DIGEST) == whole[:1]
    names = {name for name in contents(folder) if name.startswith("features-")}
    assert names == {f"features-000000{suffix}" for suffix in (".bin", ".npy", ".json")}
    assert writer.whole_shards(folder, "another plan") == []


def test_a_shard_that_fails_leaves_nothing(tmp_path) -> None:
    with pytest.raises(RuntimeError):
        with writer.new_shard(tmp_path, 0, DIGEST) as shard:
            shard.add((1, 2), 3, features_of(0, 1))
            raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_many_threads_read_at_once(folder, monkeypatch) -> None:
    from flamingo_jax.data.featurefiles import reader

    monkeypatch.setattr(reader, "OPEN_SHARDS", 1)  # shards are closed all the time
    found = open_features(folder)
    frames = [count for shard in SHARDS for count in shard]
    start = threading.Barrier(8)

    def many(_: int) -> None:
        start.wait()
        for _ in range(20):
            check(found, frames)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(8)))


def test_a_copy_elsewhere_is_the_same(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    check(open_features(tmp_path / "copy"), [count for shard in SHARDS for count in shard])
