"""JSON lines in any order; an index beside the file that is never trusted; one bad line is one."""

import concurrent.futures
import gzip
import json
import math
import os
import pathlib
import random
import uuid
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import jsonl, kept, paths
from flamingo_jax.errors import InputError


@pytest.fixture(autouse=True)
def beside(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAMINGO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))


def write(path: pathlib.Path, rows: list) -> str:
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    return str(path)


def everything(reader: jsonl.JsonlReader) -> list[dict]:
    return [dict(reader[index].fields) for index in range(len(reader))]


def reasons(reader: jsonl.JsonlReader) -> list[Any]:
    found: list[Any] = []
    for index in range(len(reader)):
        try:
            found.append(reader[index].fields)
        except BadRecord as error:
            found.append(error.reason)
    return found


def test_lines_of_several_files(tmp_path: pathlib.Path) -> None:
    rows = [{"i": i, "text": "é\n" * i} for i in range(30)]
    paths = [write(tmp_path / "a.jsonl", rows[:11]), write(tmp_path / "b.jsonl", rows[11:])]
    reader = jsonl.open_jsonl(paths)
    assert everything(reader) == rows
    assert (reader[10].key, reader[11].key) == ("a.jsonl/00010", "b.jsonl/00000")
    for index in (-1, 30):
        with pytest.raises(IndexError):
            reader[index]
    order = random.Random(0).choices(range(30), k=500)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = [record.fields["i"] for record in threads.map(reader.__getitem__, order)]
    assert found == order


LINES = st.sampled_from(
    [b'{"a": 1}', b"", b"  \t", b"{", b"7", b"\xff", b'{"b": "\xc3\xa9"}', b"\0"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n"])


@given(st.lists(st.tuples(LINES, ENDS)), LINES)
def test_blank_lines_are_no_records(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bytes, bytes]], last: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join(line + end for line, end in lines) + last)
    reader = jsonl.open_jsonl([str(path)])
    told = {b'{"a": 1}': {"a": 1}, b'{"b": "\xc3\xa9"}': {"b": "é"}, b"7": "not an object"}
    told |= {b"{": "not JSON", b"\0": "not JSON", b"\xff": "not UTF-8"}
    whole = [line for line, _ in lines] + [last]
    assert reasons(reader) == [told[line] for line in whole if line.strip()]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 200_000, "not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"a": 1} {"a": 2}', "not JSON"),
        (b"[1]", "not an object"),
        (b"null", "not an object"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud83d"}', "broken text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_bad_line_is_one_bad_record(tmp_path: pathlib.Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"i": 0}\n' + line.replace(b"\n", b"") + b'\n{"i": 2}\n')
    assert reasons(jsonl.open_jsonl([str(path)])) == [{"i": 0}, reason, {"i": 2}]


def test_what_is_tolerated(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": NaN, "b": [-Infinity]}\r\n{"c": "\\ud83d\\ude00"}')
    first, second = everything(jsonl.open_jsonl([str(path)]))
    assert math.isnan(first["a"]) and first["b"] == [-math.inf]
    assert second == {"c": "😀"}


def test_long_lines(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "x" * 200_000}, {"a": 1}]
    path = write(tmp_path / "a.jsonl", rows)
    pathlib.Path(path).write_bytes(pathlib.Path(path).read_bytes() + b"\n" * 5_000)
    assert everything(jsonl.open_jsonl([path])) == rows
    monkeypatch.setattr(jsonl, "MAX_LINE", 1_000)
    # Blank lines after a line are not of it.
    assert reasons(jsonl.open_jsonl([path])) == ["line too long", {"a": 1}]


def test_the_index_is_kept_and_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"i": i} for i in range(9)]
    path = write(tmp_path / "a.jsonl", rows)
    jsonl.open_jsonl([path])
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.index"]
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_scan", None)
        assert everything(jsonl.open_jsonl([path])) == rows
    # Elsewhere: of two files of one name each has its own.
    (tmp_path / "b").mkdir()
    paths = [path, write(tmp_path / "b" / "a.jsonl", rows[:2])]
    cache = tmp_path / "cache" / "index"
    jsonl.open_jsonl(paths, str(cache))
    assert len(list(cache.rglob("*.index"))) == 2 and os.listdir(tmp_path / "b") == ["a.jsonl"]
    monkeypatch.setattr(jsonl, "_scan", None)
    assert everything(jsonl.open_jsonl(paths, str(cache))) == rows + rows[:2]


def test_a_stale_index_is_made_again(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"i": i} for i in range(9)])
    jsonl.open_jsonl([path])
    before = pathlib.Path(path).stat()
    rows = [{"i": "x"}] + [{"i": i} for i in range(9)]
    write(tmp_path / "a.jsonl", rows)
    assert everything(jsonl.open_jsonl([path])) == rows
    # The same size at another time.
    text = b" \n" * 5
    pathlib.Path(path).write_bytes(text + b"{}".ljust(before.st_size - len(text)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert everything(jsonl.open_jsonl([path])) == [{}]


def test_a_damaged_index_is_made_again(tmp_path: pathlib.Path) -> None:
    rows = [{"i": i, "text": "x" * i} for i in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    index = tmp_path / "a.jsonl.index"
    jsonl.open_jsonl([path])
    whole = index.read_bytes()
    rng = random.Random(0)
    flipped = []
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        flipped.append(bytes(broken))
    for data in (b"", b"{}\n", whole[:-8], whole[:50], whole + b"12345678", *flipped):
        index.write_bytes(data)
        assert everything(jsonl.open_jsonl([path])) == rows
    assert index.read_bytes() == whole


@pytest.mark.parametrize(
    ("records", "starts"),
    [
        (20, [*range(19), 10**9]),
        (20, [0] * 20),
        (20, range(0, -20, -1)),
        (20, range(19)),
        (10**30, range(20)),
        (-1, []),
        (True, [0]),
        ("20", range(20)),
    ],
)
def test_an_index_that_makes_no_sense(tmp_path: pathlib.Path, records: Any, starts: Any) -> None:
    """Its check sums are right: somebody made it so."""
    rows = [{"i": i, "text": "x" * i} for i in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    shelf = kept.Kept(paths.Shard(path), jsonl.FORM)
    shelf.write({"records": records}, {"starts": np.array(starts, "<i8")})
    assert everything(jsonl.open_jsonl([path])) == rows


def test_another_file_of_the_same_size_and_time(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"a": 1}, {"b": 222}])
    jsonl.open_jsonl([path])
    status = os.stat(path)
    write(tmp_path / "a.jsonl", [{"a": 111}, {"b": 2}])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert reasons(jsonl.open_jsonl([path])) == ["shard has changed"] * 2


def test_lines_across_pieces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"i": i, "text": "x" * i} for i in range(20)]
    text = b"\n\n".join(json.dumps(row).encode() for row in rows) + b"\n  \n"
    for piece in (1, 2, 3, 7, 64, len(text)):
        monkeypatch.setattr(jsonl, "_PIECE", {False: piece})
        path = tmp_path / f"{piece}.jsonl"
        path.write_bytes(text)
        assert everything(jsonl.open_jsonl([str(path)])) == rows


def test_remote_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    rows = [{"i": i, "text": "é" * i} for i in range(20)]
    for name, part in (("a.jsonl", rows[:9]), ("b.jsonl", rows[9:])):
        store.pipe_file(f"{root}/{name}", pathlib.Path(write(tmp_path / name, part)).read_bytes())
    store.pipe_file(f"{root}/c.json", b'[{"i": -1}]')
    reader = jsonl.open_jsonl([f"{root}/{name}" for name in ("a.jsonl", "b.jsonl", "c.json")])
    assert everything(reader) == [*rows, {"i": -1}]
    assert (reader[9].key, reader[20].key) == ("b.jsonl/00000", "c.json/00000")
    assert len(list((tmp_path / "users").rglob("*.jsonl.index"))) == 2
    monkeypatch.setattr(jsonl, "_scan", None)
    assert everything(jsonl.open_jsonl([f"{root}/a.jsonl"])) == rows[:9]
    with pytest.raises(InputError, match=r"there is no file .*d\.jsonl"):
        jsonl.open_jsonl([f"{root}/d.jsonl"])


def test_where_nothing_can_be_written(tmp_path: pathlib.Path) -> None:
    rows = [{"i": i} for i in range(5)]
    path = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.index").mkdir()  # no file can take its place, not even root's
    (tmp_path / "users").touch()
    assert everything(jsonl.open_jsonl([path])) == rows
    assert everything(jsonl.open_jsonl([path], cache=path)) == rows  # a file is no folder
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.index", "users"]


def test_a_file_that_changes_while_it_is_open(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"i": 1}, {"i": 2}])
    reader = jsonl.open_jsonl([path])
    assert reader[1].fields == {"i": 2}
    write(tmp_path / "a.jsonl", [{"i": 3}, {"i": 4}, {"i": 5}])
    assert reasons(reader) == ["shard has changed"] * 2
    reader = jsonl.open_jsonl([path])
    os.unlink(path)
    assert reasons(reader) == [{"i": 3}, {"i": 4}, {"i": 5}]  # the very file that was opened


def test_whole_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('[{"a": NaN}, 3,\n {"b": [0.1, "\\ud83d\\ude00"]}]')
    (tmp_path / "b.json").write_text('\ufeff{"c": 1}', encoding="utf-8")
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    reader = jsonl.open_jsonl(paths)
    nan, number, second, third = reasons(reader)
    assert math.isnan(nan["a"]) and number == "not an object"
    assert (second, third) == ({"b": [0.1, "😀"]}, {"c": 1})
    dict(reader[2].fields)["b"].clear()
    assert reader[2].fields == second  # whoever changes a record changes his own
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]
    for text in ("", "{", '{"a": 1}\n{"a": 2}', "[" * 200_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=r"not one piece of JSON.*\.jsonl"):
            jsonl.open_jsonl(paths[:1])
    monkeypatch.setattr(jsonl, "MAX_JSON", 3)
    with pytest.raises(InputError, match="in one piece"):
        jsonl.open_jsonl(paths[1:])


def test_compressed_files_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"a": 1}\n'))
        with pytest.raises(InputError, match=rf"^'[^']*/{name}' is compressed .gzip.*gunzip"):
            jsonl.open_jsonl([str(tmp_path / name)])
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    with pytest.raises(InputError, match="unzstd"):
        jsonl.open_jsonl([str(tmp_path / "a.jsonl.zst")])
    with pytest.raises(InputError, match="there is no file"):
        jsonl.open_jsonl([str(tmp_path / "none.jsonl")])


def test_an_empty_file(tmp_path: pathlib.Path) -> None:
    assert len(jsonl.open_jsonl([write(tmp_path / "a.jsonl", [])])) == 0


def test_real_pages(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    paths = sorted(map(str, (shared / "data" / "interleaved" / "mmc4").glob("*.jsonl")))
    assert paths
    reader = jsonl.open_jsonl(paths, str(tmp_path))
    lines = [line for path in paths for line in pathlib.Path(path).read_bytes().splitlines()]
    assert everything(reader) == [json.loads(line) for line in lines]
    assert all(isinstance(reader[i].fields["text_list"], list) for i in (0, len(reader) - 1))
