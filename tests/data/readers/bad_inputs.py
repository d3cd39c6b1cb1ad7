"""Small sound sets of every format and corpus, and where in their files each record lies."""

import base64
import dataclasses
import functools
import importlib
import io
import json
import pathlib
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image

from flamingo_jax.data.document import Document, Medium, Source
from flamingo_jax.data.readers import codec
from flamingo_jax.data.sources import SourceSpec, open_source

RECORDS = 5
Row = Any
"""What a record is made of: a dict by field, or the bytes that stand for it."""
Span = tuple[int, int, int, str]
"""(first byte, the one after the last, record, "image" or "own") of bytes that are a record's."""
Packed = tuple[dict[str, bytes], dict[str, list[Span]]]
"""Files by their names, and whose bytes they hold; the others' damage is the whole shard's."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A sound set.

    Attributes:
      corpus: its source.
      rows: what its records are made of.
      pack: rows → files.
      path: what the source is told, within the set's folder.
      files: where files that records name lie, likewise.
      image: puts other bytes in place of a row's image (or clip).
      text: puts another value in place of a row's text.
      beside: files that are not made of rows.
    """

    corpus: str
    rows: Callable[[], list[Row]]
    pack: Callable[[list[Row]], Packed]
    path: str
    files: str = ""
    image: Callable[[Row, bytes], None] | None = None
    text: Callable[[Row, Any], None] | None = None
    beside: Callable[[], Packed] = lambda: ({}, {})

    def packed(self, rows: list[Row] | None = None) -> Packed:
        """All files and whose bytes they hold."""
        files, spans = self.pack(self.rows() if rows is None else rows)
        more, owners = self.beside()
        return files | more, spans | owners

    def open(self, folder: pathlib.Path) -> Source:
        """The source of files that lie in a folder."""
        page = self.corpus in ("mmc4", "obelics")
        options: dict[str, Any] = {"missing": "page"} if page else {}
        if self.corpus == "mmc4":
            options |= {"assignment": "best"}
        path = f"tfds:tiny@{folder}" if self.path == "tfds" else str(folder / self.path)
        if self.path == "tfds":
            options = {"media": ["image"]}
        files = str(folder / self.files) if self.files else ""
        return open_source(SourceSpec(self.corpus, path, files, options=options))


def picture(number: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@functools.cache
def clip(number: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(6):
            pixels = np.full((32, 32, 3), (number * 40 + index) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def page_rows() -> list[dict[str, Any]]:
    """Pages of MMC4."""
    return [
        {
            "text_list": [f"First of {i}.", f"Second, é {i}."],
            "image_info": [
                {"image_name": f"{i}-{j}.png", "image_base64": encoded(picture(10 * i + j))}
                for j in range(2)
            ],
            "similarity_matrix": [[0.25, 0.5], [0.75, 0.125]],
        }
        for i in range(RECORDS)
    ]


def obelics_rows(named: bool) -> list[dict[str, Any]]:
    def image(i: int, j: int) -> Any:
        name = f"images/{10 * i + j}.png"
        return name if named else {"bytes": picture(10 * i + j), "path": name}

    return [
        {
            "images": [None, image(i, 0), None, image(i, 1)],
            "texts": [f"Before {i}", None, f"Between é {i}", None],
        }
        for i in range(RECORDS)
    ]


def pair_rows() -> list[dict[str, bytes]]:
    return [
        {
            "jpg": picture(i, "JPEG"),
            "txt": f"é pair {i}".encode(),
            "json": json.dumps({"id": i}).encode(),
        }
        for i in range(RECORDS)
    ]


def tar(rows: list[Any], name: str = "a.tar") -> Packed:
    """Members NUMBER.FIELD; names with "/" are taken as they are, None is a link."""
    buffer = io.BytesIO()
    members = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, row in enumerate(rows):
            for field, data in row.items():
                info = tarfile.TarInfo(field if "/" in field else f"{number:05d}.{field}")
                if data is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                elif isinstance(data, Mapping):
                    data = json.dumps(data).encode()
                info.size = len(data or b"")
                members.append((archive.offset, info.size, number, field))
                archive.addfile(info, io.BytesIO(data or b""))
    spans = [
        (at + 512, at + 512 + size, number, "own" if field in ("txt", "json") else "image")
        for at, size, number, field in members
    ]
    return {name: buffer.getvalue()}, {name: spans}


def image_tar() -> Packed:
    """The images of `obelics_rows(True)`, two a page."""
    rows = [
        {f"images/{10 * i + j}.png": picture(10 * i + j) for j in range(2)} for i in range(RECORDS)
    ]
    return tar(rows, "images.tar")


def image_folder() -> Packed:
    """The images of `folder_rows`."""
    names = [f"in/{i}.png" for i in range(RECORDS)]
    files = {name: picture(i) for i, name in enumerate(names)}
    return files, {name: [(0, len(files[name]), i, "image")] for i, name in enumerate(names)}


def folder_rows() -> list[dict[str, Any]]:
    return [
        {"image": f"in/{i}.png", "text": f"é row {i}", "split": "train"} for i in range(RECORDS)
    ]


def text_rows() -> list[dict[str, Any]]:
    return [{"text": f"é plain text {i}", "id": i} for i in range(RECORDS)]


def lines(rows: list[Row], name: str = "a.jsonl") -> Packed:
    parts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return joined(parts, name, b"", b"\n", b"\n")


def whole(rows: list[Row]) -> Packed:
    parts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return joined(parts, "a.json", b"[", b",\n", b"]\n")


def captions(rows: list[Row]) -> Packed:
    return lines(rows, "captions.jsonl")


def comma_separated(rows: list[Row]) -> Packed:
    """A captions file with a line of names, which belongs to every row."""
    names = b"image,text,split\r\n"
    texts = [f'{row.get("image", "")},"{row.get("text", "")}",train' for row in rows]
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    files, spans = joined(parts, "captions.csv", names, b"\r\n", b"\r\n")
    # The end of a line is its neighbours' too.
    own = [(a - 2, b + 2, row, what) for a, b, row, what in spans["captions.csv"]]
    own += [(0, len(names), place, "own") for place in range(len(rows))]
    return files, {"captions.csv": own}


def joined(parts: list[bytes], name: str, start: bytes, between: bytes, end: bytes) -> Packed:
    spans, at = [], len(start)
    for number, part in enumerate(parts):
        spans.append((at, at + len(part), number, "own"))
        at += len(part) + len(between)
    return {name: start + between.join(parts) + end}, {name: spans}


_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCHEMA = {
    "images": pa.list_(_IMAGE),
    "texts": pa.list_(pa.string()),
    "image": _IMAGE,
    "text": pa.string(),
}


def table(rows: list[dict[str, Any]]) -> Packed:
    """Row groups of two rows with check sums; a value of another type changes its column's."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, SCHEMA[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([json.dumps(v, default=repr).encode() for v in values])
        if name == "text" and any(isinstance(value, bytes) for value in values):
            raw = pa.array([v if isinstance(v, bytes) else (v or "").encode() for v in values])
            columns[name] = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2, write_page_checksum=True)
    data = file.getvalue()
    about, spans = pq.ParquetFile(io.BytesIO(data)).metadata, []
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        begins = [c.dictionary_page_offset or c.data_page_offset for c in chunks]
        ends = [b + c.total_compressed_size for b, c in zip(begins, chunks, strict=True)]
        rows_of = range(2 * number, 2 * number + group.num_rows)
        spans += [(min(begins), max(ends), row, "own") for row in rows_of]
    return {"a.parquet": data}, {"a.parquet": spans}


def shard(rows: list[Row]) -> Packed:
    """Documents as they are prepared. Every byte is under a check sum: none is anybody's."""
    writer = importlib.import_module("array_record.python.array_record_module")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a.array_record")
        out = writer.ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            out.write(row if isinstance(row, bytes) else codec.encode(row["document"]))
        out.close()
        return {path.name: path.read_bytes()}, {path.name: []}


def prepared_rows() -> list[Row]:
    return [
        {"document": Document((f"é {i}", Medium(picture(i), f"{i}.png"), "after"), f"page {i}")}
        for i in range(RECORDS)
    ]


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of TensorFlow Datasets."""

    VERSION = tfds.core.Version("1.0.0")
    name = "tiny"
    __module__ = "tiny"  # of builders in folders TFDS asks a package that it does not bring
    rows: list[Row]

    def _info(self) -> Any:
        features = {"image": tfds.features.Image(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for number, row in enumerate(self.rows):
            yield number, {"image": io.BytesIO(row["image"]), "text": row["text"]}


def tensorflow_set(rows: list[Row]) -> Packed:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        builder = Tiny(data_dir=folder, file_format="array_record")
        builder.rows = rows
        builder.download_and_prepare()
        found = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}, {}


def _page_image(row: Row, data: bytes) -> None:
    row["image_info"][0]["image_base64"] = encoded(data)


def _page_text(row: Row, value: Any) -> None:
    row["text_list"][1] = value


def _put(*keys: Any) -> Callable[[Row, Any], None]:
    def put(row: Row, value: Any) -> None:
        for key in keys[:-1]:
            row = row[key]
        row[keys[-1]] = value

    return put


def _put_prepared(row: Row, data: bytes) -> None:
    document = row["document"]
    text, medium, after = document.items
    medium = dataclasses.replace(medium, data=data)
    row["document"] = dataclasses.replace(document, items=(text, medium, after))


KINDS = {
    "tar of pairs": Kind("pairs", pair_rows, tar, "a.tar", image=_put("jpg"), text=_put("txt")),
    "tar of clips": Kind(
        "clips",
        lambda: [{"mp4": clip(i), "txt": f"é clip {i}".encode()} for i in range(RECORDS)],
        tar,
        "a.tar",
        image=_put("mp4"),
        text=_put("txt"),
    ),
    "tar of pages": Kind(
        "mmc4",
        lambda: [{"json": row} for row in page_rows()],
        tar,
        "a.tar",
        image=lambda row, data: _page_image(row["json"], data),
        text=lambda row, value: _page_text(row["json"], value),
    ),
    "lines of pages": Kind("mmc4", page_rows, lines, "a.jsonl", image=_page_image, text=_page_text),
    "lines with a tar": Kind(
        "obelics",
        lambda: obelics_rows(True),
        lines,
        "a.jsonl",
        "images.tar",
        text=_put("texts", 2),
        beside=image_tar,
    ),
    "list with a folder": Kind(
        "pairs", folder_rows, whole, "a.json", ".", text=_put("text"), beside=image_folder
    ),
    "lines of texts": Kind("texts", text_rows, lines, "a.jsonl", text=_put("text")),
    "table of pages": Kind(
        "obelics",
        lambda: obelics_rows(False),
        table,
        "a.parquet",
        image=_put("images", 1, "bytes"),
        text=_put("texts", 2),
    ),
    "table of pairs": Kind(
        "pairs",
        lambda: [
            {"image": {"bytes": picture(i), "path": None}, "text": f"é {i}"} for i in range(RECORDS)
        ],
        table,
        "a.parquet",
        image=_put("image", "bytes"),
        text=_put("text"),
    ),
    "prepared": Kind("prepared", prepared_rows, shard, "a.array_record", image=_put_prepared),
    "tfds": Kind(
        "pairs",
        lambda: [{"image": picture(i), "text": f"é {i}"} for i in range(RECORDS)],
        tensorflow_set,
        "tfds",
    ),
    "folder": Kind(
        "folder",
        folder_rows,
        captions,
        ".",
        text=_put("text"),
        beside=image_folder,
    ),
    "folder with CSV": Kind("folder", folder_rows, comma_separated, ".", beside=image_folder),
}
