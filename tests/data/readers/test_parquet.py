"""Parquet rows in any order as plain Python; broken files and row groups are told."""

import concurrent.futures
import pathlib
import random
import sys
import threading
import uuid
from typing import Any

import fsspec
import pytest

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import parquet, parquetfooter
from flamingo_jax.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "number": i,
            "text": f"é {i}" if i % 3 else None,
            "image": {"bytes": b"\xff\0" * i, "path": None},
            "images": [{"bytes": b"a", "path": "a.jpg"}, None][: i % 3],
            "kind": "ab"[i % 2],
            "facts": {"side": i, "other": None},
            "lists": [[1.5], [], [None]],
        }
        for i in range(first, first + count)
    ]


def table_of(rows: list[dict[str, Any]]) -> Any:
    kinds = {
        "kind": pa.dictionary(pa.int8(), pa.string()),
        "facts": pa.map_(pa.string(), pa.int64()),
        "lists": pa.list_(pa.large_list(pa.float32())),
    }
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "facts":
            values = [list(value.items()) for value in values]
        columns[name] = pa.array(values, kinds.get(name))
    return pa.table(columns)


def write(path: pathlib.Path, rows: list[dict[str, Any]], **options: Any) -> str:
    options = {"row_group_size": 4, "write_page_checksum": True} | options
    pq.write_table(table_of(rows), path, **options)
    return str(path)


def test_rows_are_plain_python(tmp_path: pathlib.Path) -> None:
    rows = rows_of(23)
    paths = [write(tmp_path / "a", rows[:10]), write(tmp_path / "b", rows[10:])]
    reader = parquet.open_parquet(paths)
    assert [reader[i].fields for i in reversed(range(len(reader)))] == rows[::-1]
    assert type(reader[0].fields["image"]["bytes"]) is bytes
    assert (reader[9].key, reader[10].key) == ("a/00009", "b/00000")
    for index in (-1, 23):
        with pytest.raises(IndexError):
            reader[index]


def test_only_wanted_columns(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a", rows_of(5))
    reader = parquet.open_parquet([path], ["text", "number", "text"])
    assert [reader[i].fields for i in (1, 3)] == [
        {"text": "é 1", "number": 1},
        {"text": None, "number": 3},
    ]
    with pytest.raises(InputError, match=r"no column 'texts'; it has number, text, image"):
        parquet.open_parquet([path], ["texts"])
    # Another file without the column is told as well, and by its name.
    pq.write_table(pa.table({"number": [1]}), tmp_path / "b")
    with pytest.raises(InputError, match=r"b' has no column 'text'"):
        parquet.open_parquet([path, str(tmp_path / "b")], ["text"])


def test_threads_share_what_is_decoded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(40)
    path = write(tmp_path / "a", rows)
    decoded: list[int] = []
    decode = parquet.ParquetReader._decode
    lock = threading.Lock()

    def counted(self: parquet.ParquetReader, number: int) -> Any:
        with lock:
            decoded.append(number)
        return decode(self, number)

    monkeypatch.setattr(parquet.ParquetReader, "_decode", counted)
    order = random.Random(0).choices(range(40), k=400)
    for limit in (1 << 20, 1_000, 0):
        decoded.clear()
        reader = parquet.ParquetReader([path], cache_bytes=limit)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            found = [record.fields for record in threads.map(reader.__getitem__, order)]
        assert found == [rows[i] for i in order]
        if limit == 1 << 20:
            assert sorted(decoded) == list(range(10))  # each once
        else:
            assert len(decoded) > 10
            assert reader._cache._size <= max(limit, 10_000)
    # The very last one is kept, however large.
    decoded.clear()
    reader = parquet.ParquetReader([path], cache_bytes=0)
    for index in (0, 1, 2, 3, 4, 5):
        assert reader[index].fields == rows[index]
    assert decoded == [0, 1]


def test_a_damaged_row_group_leaves_its_neighbours(tmp_path: pathlib.Path) -> None:
    rows = rows_of(12)
    path = write(tmp_path / "a", rows)
    group = pq.ParquetFile(path).metadata.row_group(1)
    middle = group.column(0).data_page_offset + group.column(0).total_compressed_size // 2
    data = bytearray(pathlib.Path(path).read_bytes())
    data[middle : middle + 8] = b"\xff" * 8
    pathlib.Path(path).write_bytes(data)
    reader = parquet.open_parquet([path])
    assert [reader[i].fields for i in (0, 3, 8, 11)] == [rows[i] for i in (0, 3, 8, 11)]
    for _ in range(2):
        with pytest.raises(BadRecord) as caught:
            reader[4]
        assert caught.value.reason == "damaged row group"


def test_flipped_bits_are_found_where_pages_have_check_sums(tmp_path: pathlib.Path) -> None:
    rows = rows_of(12)
    path = pathlib.Path(write(tmp_path / "a", rows))
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    rng, met = random.Random(0), 0
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.randrange(footer)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            reader = parquet.open_parquet([str(path)])
        except InputError:
            met += 1
            continue
        for index, row in enumerate(rows):
            try:
                assert reader[index].fields == row
            except BadRecord:
                met += 1
    assert met


def test_a_broken_footer_never_ends_otherwise(tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(write(tmp_path / "a", rows_of(8)))
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[-8:-4], "little")
    rng, refused = random.Random(0), 0
    for _ in range(80):
        broken = bytearray(whole)
        broken[len(whole) - 1 - rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            reader = parquet.open_parquet([str(path)])
            for index in range(min(len(reader), 8)):
                try:
                    assert isinstance(reader[index].fields, dict)
                except BadRecord:
                    pass
        except InputError:
            refused += 1
    assert refused


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_footer_that_counts_otherwise(every: int, tmp_path: pathlib.Path) -> None:
    """A footer's bytes changed one by one: of its counts of rows none is believed alone."""
    path = tmp_path / "a"
    pq.write_table(pa.table({"n": list(range(8))}), path, row_group_size=4)
    whole, told, wrong = path.read_bytes(), 0, 0
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(footer, len(whole) - 8, every):
        for byte in (1, 2, 16, 18):  # as small integers are written: -1, 1, 8, 9
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                about = pq.ParquetFile(path).metadata
                groups = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
                lies = sum(groups) != about.num_rows or min(groups, default=0) < 0
            except Exception:
                continue
            wrong += lies
            try:
                reader = parquet.open_parquet([str(path)])
            except InputError:
                told += lies
                continue
            assert not lies
            for index in range(min(len(reader), 9)):
                try:
                    assert isinstance(reader[index].fields, dict)
                except BadRecord:
                    pass
    assert told == wrong > 0


def test_values_are_counted_as_pyarrow_counts(tmp_path: pathlib.Path) -> None:
    for version, columns, groups in (("2.6", 1, 3), ("1.0", 20, 1), ("2.4", 3, 40)):
        lists = pa.array([[None] * (i % 7) for i in range(200)], pa.list_(pa.int64()))
        table = pa.table({f"column {i}": lists for i in range(columns)})
        size = -(-200 // groups)
        pq.write_table(table, tmp_path / "a", row_group_size=size, version=version)
        about = pq.ParquetFile(tmp_path / "a").metadata
        expected = [
            max(about.row_group(i).column(j).num_values for j in range(columns))
            for i in range(about.num_row_groups)
        ]
        assert parquetfooter.most_values(parquet.Shard(str(tmp_path / "a"))) == expected
        assert len(expected) == groups


def test_a_group_that_holds_other_rows_than_it_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", rows_of(8))
    reader = parquet.open_parquet([path])
    monkeypatch.setattr(reader, "_groups", [(0, 0, 4, 9), (0, 1, 5, 9)])
    assert reader[0].fields["number"] == 0
    with pytest.raises(BadRecord, match="damaged row group: a group 1: 4 rows of 5"):
        reader[4]


def test_two_columns_of_a_name(tmp_path: pathlib.Path) -> None:
    arrays = [pa.array([1]), pa.array([2]), pa.array([3])]
    pq.write_table(pa.Table.from_arrays(arrays, ["a", "a", "b"]), tmp_path / "a")
    path = str(tmp_path / "a")
    for columns in ((), ("a",), ("b", "a")):
        with pytest.raises(InputError, match="two columns 'a'; rename"):
            parquet.open_parquet([path], columns)
    assert parquet.open_parquet([path], ["b"])[0].fields == {"b": 3}


def test_a_handle_seeks_as_files_do() -> None:
    store, path = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}/a"
    store.pipe_file(path, b"0123456789")
    handle = parquet._Handle(parquet.Shard(path))
    assert (handle.seek(-3, 2), handle.read(), handle.read(), handle.tell()) == (7, b"789", b"", 10)
    assert (handle.seek(2), handle.read(3), handle.seek(2, 1), handle.read(None)) == (
        2, b"234", 7, b"789"
    )  # fmt: skip
    assert (handle.seek(99), handle.read(5)) == (99, b"")
    for offset, whence in ((-1, 0), (-11, 2), (-100, 1)):
        with pytest.raises(OSError, match="has no place"):
            handle.seek(offset, whence)


def test_files_that_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    whole = pathlib.Path(write(tmp_path / "a", rows_of(8))).read_bytes()
    for data in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"hello" * 99):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            parquet.open_parquet([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(InputError, match="there is no file"):
        parquet.open_parquet([str(tmp_path / "none")])
    with pytest.raises(InputError, match="there are no Parquet files"):
        parquet.open_parquet([])


def test_without_pyarrow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"flamingo_jax\[data\]"):
        parquet.open_parquet([str(tmp_path / "a")])


def test_one_broken_text_is_one_bad_record(tmp_path: pathlib.Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"also"])
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    twice = pa.array(
        [[("a", 1)], [("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8())
    )
    pq.write_table(pa.table({"text": texts, "map": twice}), tmp_path / "a")
    reader = parquet.open_parquet([str(tmp_path / "a")])
    assert reader[0].fields == {"text": "good", "map": {"a": 1}}
    for index in (1, 2):
        with pytest.raises(BadRecord) as caught:
            reader[index]
        assert caught.value.reason == "damaged record"


def test_a_row_group_that_unfolds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of one long text: little on disk, as much as one likes in memory."""
    path = tmp_path / "a"
    table = pa.table({"text": ["x" * 100_000] * 2_000, "number": range(2_000)})
    pq.write_table(table, path)
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 20_000_000)
    with pytest.raises(BadRecord, match="row group too large"):
        parquet.open_parquet([str(path)])[0]
    assert parquet.open_parquet([str(path)], ["number"])[7].fields == {"number": 7}
    monkeypatch.setattr(parquet, "MAX_GROUP_VALUES", 1_999)
    with pytest.raises(BadRecord, match="row group too large"):
        parquet.open_parquet([str(path)], ["number"])[0]


def test_a_file_that_changes_while_it_is_open(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a", rows_of(8))
    reader = parquet.open_parquet([path])
    assert reader[0].fields["number"] == 0
    write(tmp_path / "a", rows_of(9, first=50))
    with pytest.raises(BadRecord, match="shard has changed"):
        reader[7]
    pathlib.Path(path).unlink()
    with pytest.raises(BadRecord, match="damaged row group"):
        reader[7]


def test_remote_files(tmp_path: pathlib.Path) -> None:
    rows, root = rows_of(23), f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    for name, part in (("a/0", rows[:10]), ("b/0", rows[10:])):
        store.pipe_file(f"{root}/{name}", pathlib.Path(write(tmp_path / "0", part)).read_bytes())
    reader = parquet.ParquetReader([f"{root}/a/0", f"{root}/b/0"], cache_bytes=0)
    order = random.Random(0).choices(range(23), k=200)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(reader.__getitem__, order))
    assert [record.fields for record in found] == [rows[i] for i in order]
    assert reader[22].key == "b/0/00012"
    store.pipe_file(f"{root}/b/0", b"PAR1")
    assert reader[0].fields == rows[0]
    with pytest.raises(BadRecord, match="shard has changed"):
        reader[22]
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        parquet.open_parquet([f"{root}/b/0"])
    with pytest.raises(InputError, match="there is no file"):
        parquet.open_parquet([f"{root}/none"])


def test_empty_files_among_others(tmp_path: pathlib.Path) -> None:
    rows = rows_of(3)
    pq.write_table(table_of(rows).slice(0, 0), tmp_path / "a")
    reader = parquet.open_parquet([str(tmp_path / "a"), write(tmp_path / "b", rows)])
    assert [reader[i].fields for i in range(len(reader))] == rows


def test_real_pages(shared: pathlib.Path) -> None:
    folder = shared / "data" / "interleaved" / "obelics"
    paths = sorted(map(str, folder.glob("*.parquet")))
    assert paths
    reader = parquet.open_parquet(paths, ["images", "texts", "general_metadata"])
    expected = [
        row
        for path in paths
        for row in pq.read_table(path, columns=["images", "texts", "general_metadata"]).to_pylist()
    ]
    assert [reader[i].fields for i in range(len(reader))] == expected
    for row in expected:
        pairs = zip(row["images"], row["texts"], strict=True)
        assert all((image is None) != (text is None) for image, text in pairs)
