"""Sets of documents as TFDS builds them: what is read back is what the filters leave."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest
import tensorflow_datasets as tfds

from flamingo_jax.data import sources
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.prepare import filters
from flamingo_jax.data.prepare.job import default_between
from flamingo_jax.data.readers import tfds_documents
from flamingo_jax.data.readers.record import Record
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.data.tfds_builders import __main__ as program
from flamingo_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def shards(pictures: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The pictures as pairs; one is small, one broken."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for path in sorted(pictures.glob("*.jpg")):
            tar.add(path, path.name)
            text = tmp_path / "text"
            text.write_text(f"picture {path.stem}, é")
            tar.add(text, f"{path.stem}.txt")
    return folder


def flags(config: str | Mapping[str, Any], data_dir: pathlib.Path, *more: str) -> list[str]:
    text = config if isinstance(config, str) else json.dumps(config)
    return [f"--config={text}", f"--data_dir={data_dir}", *more]


PROGRAM = """
import sys
from flamingo_jax.data.tfds_builders.__main__ import main
code = main()
assert "tensorflow" not in sys.modules
sys.exit(code)
"""


def kept(spec: SourceSpec, split: str = "train", **options: Any) -> dict[str, Document]:
    source = sources.open_source(spec, split)
    found = {}
    for place in range(len(source)):
        try:
            document = filters.apply(source[place], filters.FilterOptions(**options)).document
            found[document.key] = document
        except BadRecord:
            continue
    return found


def documents(path: str) -> dict[str, Document]:
    source = sources.open_source(SourceSpec("prepared", path))
    found = [source[place] for place in range(len(source))]
    assert len({document.key for document in found}) == len(found)
    return {document.key: document for document in found}


def test_a_corpus_in_a_folder(shards: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    out = tmp_path / "sets"
    argv = flags("pairs", out, f"--manual_dir={shards}")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    found = documents(f"tfds:flamingo_documents@{out}")
    assert found == kept(SourceSpec("pairs", str(shards))) and len(found) == 9
    [about] = out.glob("flamingo_documents/pairs/*/metadata.json")
    told = json.loads(about.read_bytes())["train"]
    assert told["counts"] == {"records": 11, "documents": 9}
    assert (told["dropped"], told["bad"]) == ({"small image": 1}, {"not an image": 1})
    # Others read it with TFDS alone.
    examples: Any = tfds.data_source("flamingo_documents/pairs", split="train", data_dir=out)
    for example in examples:
        key, items = example["key"].decode(), example["items"]
        image, text = found[key].items
        assert isinstance(image, Medium) and list(items["kind"]) == [b"image", b"text"]
        assert items["data"][0] == image.data and items["text"][1].decode() == text
    # The same again builds nothing; another source of that name is refused.
    assert program.main(argv) == 0
    assert program.main([*argv, f"--manual_dir={tmp_path}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "source.path=" in last and "another name, or --overwrite" in last


@pytest.mark.slow
def test_on_beams_workers(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "sets"
    options = {"max_characters": 40}
    config = {"name": "mine", "source": "pairs", "path": str(shards), "held_out": 4}
    config |= {"options": options, "filters": {"min_side": 0}, "beam": True, "shard_size": 2}
    assert program.main(flags(config, out, "--beam_pipeline_options=runner=DirectRunner")) == 0
    spec = SourceSpec("pairs", str(shards), held_out=4, options=options)
    for split in sources.SPLITS:
        expected = kept(spec, split, min_side=0)
        assert documents(f"tfds:flamingo_documents/mine@{out}#{split}") == expected
    assert len(expected) == 2


def test_plain_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b\\u0000"}\n{"text": ""}\n')
    config = {"name": "plain", "source": "texts", "path": str(tmp_path / "a.jsonl")}
    assert program.main(flags(config, tmp_path / "sets")) == 0
    found = documents(f"tfds:flamingo_documents/plain@{tmp_path / 'sets'}")
    assert sorted(document.items for document in found.values()) == [("a",), ("b\0",)]


@pytest.mark.parametrize(
    ("corpus", "pattern", "files"),
    [
        ("obelics", "interleaved/obelics/val*.parquet", "interleaved"),
        ("mmc4", "interleaved/mmc4-webdataset/val*.tar", ""),
        ("clips", "video/*.tar", ""),
    ],
)
def test_shared_corpora(
    corpus: str, pattern: str, files: str, shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Pages and clips as their own corpora read them."""
    data = shared / "data"
    paths = sorted(data.glob(pattern))
    if not paths:
        pytest.skip(f"there are no {corpus} in {data}")
    path, files = str(paths[0]), files and str(data / files)
    config = {"name": "real", "source": corpus, "path": path, "files": files}
    assert program.main(flags(config, tmp_path / "sets")) == 0
    expected = kept(SourceSpec(corpus, path, files), between=default_between(SourceSpec(corpus)))
    assert documents(f"tfds:flamingo_documents/real@{tmp_path / 'sets'}") == expected != {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("pairs", "no shards in --manual_dir"),
        ({"name": "a", "source": "pears", "path": "x"}, "there is no source 'pears'"),
        ({"name": "a", "source": "pairs", "path": "absent"}, "there is no file 'absent'"),
        ({"name": "../a", "source": "pairs"}, "a configuration is called '../a'"),
        ({"name": "a", "path": "x", "filters": {"size": 1}}, "there is no filter 'size'"),
        ({"name": "a", "source": "pairs", "options": {"b": 1}, "path": "x"}, "no option 'b'"),
        ({"name": "a", "path": "x", "filters": {"min_side": "1"}}, "it takes a int"),
        ({"name": "a", "options": 1}, "options=1, which is no dict"),
        ({"name": "a", "colour": 1}, "has no field 'colour'"),
        ({"source": "pairs"}, "has no name"),
        ("{", "is no JSON"),
        ({"name": "pairs"}, "Cannot name a custom BuilderConfig the same"),
        ("pages", "pages"),
    ],
)
def test_bad_input_is_one_line(
    config: Any, said: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(flags(config, tmp_path)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{program.PROGRAM}: ") and said in line


def test_nothing_kept(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    config = {"name": "plain", "source": "texts", "path": str(tmp_path / "a.jsonl")}
    assert program.main(flags(config, tmp_path / "sets")) == 2
    assert "none of 1 records can be kept" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(InputError, match=r"is not prepared|there is no (set|folder)"):
        documents(f"tfds:flamingo_documents@{tmp_path / 'sets'}")


DOCUMENT = Document(("a", Medium(b"\0x\0", "k"), Medium(b"c", "", "clip"), "", "é\0"), "page")


def test_examples_are_documents() -> None:
    example = tfds_documents.make_example(DOCUMENT)
    assert tfds_documents.read_example(record_of(example)) == DOCUMENT
    empty = Document((), "nothing")
    assert tfds_documents.read_example(record_of(tfds_documents.make_example(empty))) == empty


def record_of(example: Mapping[str, Any], **changes: Any) -> Record:
    names = ("kind", "text", "data", "key")
    items = {name: [item[name] for item in example["items"]] for name in names} | changes
    return Record("shard/00003", {"key": example["key"], "items": items})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ["text"]},
        {"kind": ["text", "image", "clip", "text", "sound"]},
        {"kind": ["image", "image", "clip", "text", "text"]},
        {"text": ["a", "b", "", "", "c"]},
        {"text": [None, "", "", "", "c"]},
        {"data": [b"", "x", b"c", b"", b""]},
        {"data": [b"", b"", b"c", b"", b""]},
        {"data": None},
        {"key": ["a", "k", "", "", ""]},
        {"key": 3},
    ],
)
def test_other_examples_are_damaged(changes: Mapping[str, Any]) -> None:
    example = tfds_documents.make_example(DOCUMENT)
    with pytest.raises(BadRecord, match="damaged record: shard/00003"):
        tfds_documents.read_example(record_of(example, **changes))


def test_fields_that_are_not_there() -> None:
    for fields in ({}, {"key": "a"}, {"key": "a", "items": []}, {"key": "a", "items": {}}):
        with pytest.raises(BadRecord, match="damaged record"):
            tfds_documents.read_example(Record("r", fields))
    example = dataclasses.asdict(record_of(tfds_documents.make_example(DOCUMENT)))
    with pytest.raises(BadRecord, match="damaged record"):
        tfds_documents.read_example(Record("r", {**example["fields"], "key": b"page"}))
