"""Which reader reads a path, the layouts that tools write, and what is on no disk."""

import io
import json
import pathlib
import tarfile
import uuid
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import files, formats, jsonl, parquet, tars
from flamingo_jax.data.sources import SourceSpec, open_source
from flamingo_jax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "indexes"))


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def table(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    return file.getvalue()


def fetched(stem: str, count: int) -> dict[str, bytes]:
    """A shard as img2dataset writes it: samples, a table of all URLs, and what it counted."""
    facts = [
        {
            "url": f"http://x/{i}",
            "caption": f"caption {i}",
            "key": f"{stem}{i:04d}",
            "TEXT": f"T {i}",
        }
        for i in range(count)
    ]
    members = {}
    for i, about in enumerate(facts):
        members[f"{about['key']}.jpg"] = b"picture %d" % i
        members[f"{about['key']}.json"] = json.dumps(about).encode()
        members[f"{about['key']}.txt"] = about["caption"].encode()
    stats = json.dumps({"count": count, "successes": count}).encode()
    return {
        f"{stem}.tar": pack(members),
        f"{stem}.parquet": table(facts),
        f"{stem}_stats.json": stats,
    }


def test_a_folder_of_img2dataset(tmp_path: pathlib.Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    for stem in ("00000", "00001"):
        for name, data in fetched(stem, 3).items():
            (tmp_path / name).write_bytes(data)
            store.pipe_file(f"{root}/{name}", data)
    for path in (str(tmp_path), f"{tmp_path}/*", root):
        source = open_source(SourceSpec("pairs", path))
        assert len(source) == 6
        assert source[4].items == (
            Medium(b"picture 1", "00001.tar/000010001#jpg"),
            "caption 1",
        )
    # Captions of the tables that such sets are fetched by, under whatever name.
    spec = SourceSpec("pairs", str(tmp_path), options={"captions": ["json.TEXT", "txt"]})
    assert open_source(spec)[0].items[1] == "T 0"
    # Its tables with pictures inside have counts beside them too; another table is another set.
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "0.parquet").write_bytes(table([{"jpg": b"a", "caption": "in a table"}]))
    (tmp_path / "tables" / "0_stats.json").write_bytes(b"{}")
    assert open_source(SourceSpec("pairs", str(tmp_path / "tables")))[0].items[1] == "in a table"
    (tmp_path / "other.parquet").write_bytes(table([{"caption": "a"}]))
    with pytest.raises(InputError, match=r"mixes \.parquet and \.tar"):
        formats.open_reader(str(tmp_path))


def test_fields_that_a_table_has_not(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.parquet").write_bytes(table([{"photo": b"a", "alt": "b", "json": b"{}"}]))
    (tmp_path / "b.parquet").write_bytes(table([{"photo": b"a", "more": 1, "alt": "c"}]))
    path = str(tmp_path)
    with pytest.raises(InputError, match=r"none of the fields jpg, .* but photo, alt; name yours"):
        open_source(SourceSpec("pairs", path))
    with pytest.raises(InputError, match=r"none of the fields json\.more that the source 'pairs'"):
        open_source(
            SourceSpec("pairs", path, options={"media": ["photo"], "captions": ["json.more"]})
        )
    for corpus in ("texts", "obelics", "mmc4", "clips"):
        with pytest.raises(InputError, match="has none of the fields"):
            open_source(SourceSpec(corpus, path))
    options = {"media": ["photo"], "captions": ["alt"]}
    assert open_source(SourceSpec("pairs", path, options=options))[1].items[1] == "c"
    inside = {"media": ["photo"], "captions": ["json.more", "alt"]}
    assert len(open_source(SourceSpec("pairs", str(tmp_path / "a.parquet"), options=inside))) == 1
    # A field of another corpus's record may be JSON that holds them all.
    assert len(open_source(SourceSpec("obelics", str(tmp_path / "a.parquet")))) == 1


def test_formats_by_their_names(tmp_path: pathlib.Path) -> None:
    for name, data in {
        "a.tar": pack({"1.txt": b"x"}),
        "b.parquet": table([{"x": 1}]),
        "c.ndjson": b'{"x": 1}\n',
        "d.json": b'[{"x": 1}, {"x": 2}]',
        "e.csv": b"x",
        "f.tar.gz": b"",
        "g.array_record": b"",
    }.items():
        (tmp_path / name).write_bytes(data)

    def opened(name: str) -> Any:
        return formats.open_reader(str(tmp_path / name))

    assert isinstance(opened("a.tar"), tars.TarReader)
    assert isinstance(opened("b.parquet"), parquet.ParquetReader)
    assert isinstance(opened("[cd].*json"), jsonl.JsonlReader) and len(opened("[cd].*json")) == 3
    for name, word in (
        ("e.csv", "no known format"),
        ("f.tar.gz", "compressed .*gunzip"),
        ("f.*", "compressed .*gunzip"),
        (f"a.tar,{tmp_path}/e.csv", r"mixes others and \.tar"),
        (f"a.tar,{tmp_path}/b.parquet", r"mixes \.parquet and \.tar"),
        ("g.array_record", "read it with the source 'prepared'"),
    ):
        with pytest.raises(InputError, match=word):
            opened(name)


def test_files_in_folders_and_tars(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tar").write_bytes(pack({"1.jpg": b"one"}))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.tar").write_bytes(pack({"2.jpg": b"two"}))
    for path in (f"{tmp_path}/a.tar,{tmp_path}/more", f"{tmp_path}/a.tar::{tmp_path}/more"):
        found = formats.open_files(path)
        assert (found.read("1.jpg"), found.read("2.jpg")) == (b"one", b"two")
    assert isinstance(formats.open_files(str(tmp_path)), files.FolderFiles)
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{root}/a.tar", pack({"1.jpg": b"far"}))
    assert formats.open_files(f"{root}/*.tar").read("1.jpg") == b"far"
    with pytest.raises(InputError, match=r"unless they are in tars, are read from disks alone"):
        formats.open_files(root)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("prepared", "gs://bucket/prepared"),
        ("prepared", "s3://bucket/a.array_record"),
        ("prepared", "memory://x/*.array_record"),
        ("pairs", "tfds:tiny@gs://bucket/sets"),
    ],
)
def test_what_is_read_from_disks_alone(source: str, path: str) -> None:
    """Told at once, whether or not the cloud's package is there."""
    with pytest.raises(InputError, match=r"read from disks alone; copy '(gs|s3|memory)://"):
        open_source(SourceSpec(source, path))


def test_a_corpus_in_a_cloud(tmp_path: pathlib.Path) -> None:
    """The same documents as from a disk, whatever the format."""
    store, root = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"
    rows = [{"image": f"{i}.png", "text": f"é {i}"} for i in range(7)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pictures = pack({f"{i}.png": b"picture %d" % i for i in range(7)})
    every = {"a.jsonl": lines, "b.parquet": table(rows), "images.tar": pictures}
    every["c.tar"] = pack(
        {f"{i}.{field}": data for i in range(7) for field, data in
         (("png", b"picture %d" % i), ("txt", f"é {i}".encode()))}
    )  # fmt: skip
    for name, data in every.items():
        (tmp_path / name).write_bytes(data)
        store.pipe_file(f"{root}/{name}", data)
    for name in ("a.jsonl", "b.parquet", "c.tar"):
        near, far = (
            open_source(SourceSpec("pairs", f"{place}/{name}", f"{place}/images.tar"))
            for place in (tmp_path, root)
        )
        assert len(near) == len(far) == 7
        assert [near[i] for i in range(7)] == [far[i] for i in range(7)]
        assert [far[i].items[1] for i in range(7)] == [f"é {i}" for i in range(7)]


def test_tars_within_tars_and_records_without_a_picture(tmp_path: pathlib.Path) -> None:
    inner = pack({"secret.jpg": b"x", "secret.txt": b"y"})
    (tmp_path / "a.tar").write_bytes(pack({"1.tar": inner, "2.jpg": b"p", "2.txt": b"t"}))
    (tmp_path / "empty.tar").write_bytes(pack({}))
    source = open_source(SourceSpec("pairs", str(tmp_path)))
    assert len(source) == 2 and source[1].items[1] == "t"
    with pytest.raises(BadRecord, match="no text"):
        source[0]
