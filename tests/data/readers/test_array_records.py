"""Prepared shards: any document by its index, damage seen, nothing wrong read."""

import concurrent.futures
import importlib
import pathlib
import random

import pytest

from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import array_records, codec
from flamingo_jax.errors import InputError

WRITER = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter


def documents(count: int, seed: int = 0) -> list[Document]:
    rng = random.Random(seed)
    return [
        Document(
            (Medium(rng.randbytes(rng.randrange(900)), f"{seed}/{i}.jpg"), f"page {i}"), f"{i}"
        )
        for i in range(count)
    ]


def write(path: pathlib.Path, records: list[bytes], options: str = "group_size:1") -> str:
    writer = WRITER(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def write_documents(path: pathlib.Path, items: list[Document]) -> str:
    return write(path, [codec.encode(document) for document in items])


def test_documents_of_several_shards(tmp_path: pathlib.Path) -> None:
    parts = [documents(7, 1), [], documents(5, 2)]
    # A name that the package's own data source takes for a part of a file.
    names = ["a", "b", "c[0:2]"]
    paths = [
        write_documents(tmp_path / name, part) for name, part in zip(names, parts, strict=True)
    ]
    reader = array_records.open_array_records(paths)
    everything = [document for part in parts for document in part]
    assert len(reader) == len(everything)
    assert [reader[i] for i in reversed(range(len(reader)))] == everything[::-1]
    for index in (-1, len(reader)):
        with pytest.raises(IndexError):
            reader[index]


def test_many_threads_and_more_shards_than_are_kept_open(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_records, "OPEN_SHARDS", 2)
    parts = [documents(20, seed) for seed in range(5)]
    paths = [write_documents(tmp_path / f"{i}", part) for i, part in enumerate(parts)]
    reader = array_records.open_array_records(paths)
    everything = [document for part in parts for document in part]
    order = random.Random(0).choices(range(len(everything)), k=600)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(reader.__getitem__, order)) == [everything[i] for i in order]


def test_a_damaged_record_leaves_its_neighbours(tmp_path: pathlib.Path) -> None:
    items = documents(60)
    path = tmp_path / "a"
    whole = pathlib.Path(write_documents(path, items)).read_bytes()
    place = whole.index(b"page 30")
    broken = bytearray(whole)
    broken[place] ^= 1
    path.write_bytes(broken)
    reader = array_records.open_array_records([str(path)])
    with pytest.raises(BadRecord, match=r"damaged record.*a/00030"):
        reader[30]
    assert [reader[i] for i in (0, 29, 31, 59)] == [items[i] for i in (0, 29, 31, 59)]


def test_no_flipped_bit_is_read(tmp_path: pathlib.Path) -> None:
    items = documents(40)
    path = tmp_path / "a"
    whole = pathlib.Path(write_documents(path, items)).read_bytes()
    rng, met = random.Random(0), 0
    for _ in range(40):
        broken = bytearray(whole)
        # Files end on a block of 64 KB; what fills it up is not looked at.
        broken[rng.choice([rng.randrange(len(whole)), rng.randrange(20_000)])] ^= (
            1 << rng.randrange(8)
        )
        path.write_bytes(broken)
        try:
            reader = array_records.open_array_records([str(path)])
        except InputError:
            met += 1
            continue
        for index, document in enumerate(items):
            try:
                assert reader[index] == document
            except BadRecord:
                met += 1
    assert met


def test_records_that_are_no_documents(tmp_path: pathlib.Path) -> None:
    good = Document(("a",), "1")
    path = write(tmp_path / "a", [b"", b"anything", codec.encode(good)])
    reader = array_records.open_array_records([path])
    for index in (0, 1):
        with pytest.raises(BadRecord) as caught:
            reader[index]
        assert caught.value.reason == "damaged record"
        assert caught.value.detail.startswith(f"a/0000{index}: ")  # which one
    assert reader[2] == good


def test_errors_of_the_system(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise OSError("too many open files")

    path = write(tmp_path / "a", [codec.encode(Document(("a",), "1"))])
    with monkeypatch.context() as patch:
        patch.setattr(array_records, "_open", broken)
        with pytest.raises(OSError):
            array_records.open_array_records([path])
    reader = array_records.open_array_records([path])
    monkeypatch.setattr(reader._records, "_open", broken)
    with pytest.raises(BadRecord, match=r"damaged record: a/00000: too many open files"):
        reader[0]


def test_files_that_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    whole = pathlib.Path(write_documents(tmp_path / "a", documents(9))).read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:kept])
        with pytest.raises(InputError, match="no ArrayRecord file or a truncated one"):
            array_records.open_array_records([str(tmp_path / "cut")])
    (tmp_path / "text").write_text("hello\n" * 99)
    with pytest.raises(InputError, match="no ArrayRecord file"):
        array_records.open_array_records([str(tmp_path / "a"), str(tmp_path / "text")])
    with pytest.raises(InputError, match="there is no file"):
        array_records.open_array_records([str(tmp_path / "none")])
    with pytest.raises(InputError, match="from disks alone"):
        array_records.open_array_records(["gs://bucket/a.array_record"])
    with pytest.raises(InputError, match="there are no ArrayRecord files"):
        array_records.open_array_records([])


def test_groups_are_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a", [codec.encode(d) for d in documents(20)], "group_size:8")
    with pytest.raises(InputError, match=r"groups of 8.*group_size:1"):
        array_records.open_array_records([path])


def test_a_file_that_vanishes_or_shrinks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    write_documents(path, documents(9))
    for change in (path.unlink, lambda: write_documents(path, documents(3))):
        reader = array_records.open_array_records([write_documents(path, documents(9))])
        change()
        with pytest.raises(BadRecord, match="damaged shard"):
            reader[8]


def test_parts_of_a_shard(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a", [b"0", b"1", b"2", b"3"])
    records = array_records.RawRecords([array_records.Part(path, 1, 2)])
    assert [records.read(i) for i in range(len(records))] == [("a/00001", b"1"), ("a/00002", b"2")]
    with pytest.raises(IndexError):
        records.read(2)
    with pytest.raises(InputError, match="has 4 records, 5 are needed"):
        array_records.RawRecords([array_records.Part(path, 1, 4)])
