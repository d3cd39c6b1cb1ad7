"""The registry of sources, and a user's own folder of pictures and texts."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.data import folder, sources
from flamingo_jax.data.document import Medium
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError


def picture(path: pathlib.Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


def write(path: pathlib.Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (path / "captions.jsonl").write_text(text, encoding="utf-8")


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no source 'nowhere'.*folder.*openmoji"):
        sources.open_source(SourceSpec("nowhere:part"))
    with pytest.raises(InputError, match="no split 'test'"):
        sources.open_source(SourceSpec("folder", "."), split="test")


def test_a_folder_of_pairs(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "text": "ein Bär", "split": "train"},
        {"image": "b.MP4", "text": "a clip", "split": "train"},
        {"text": "no picture", "split": "train"},
        {"image": "a.png", "text": "held out", "split": "validation"},
    ]
    write(tmp_path, rows)
    train = sources.open_source(SourceSpec("folder", str(tmp_path)))
    held = sources.open_source(SourceSpec("folder", str(tmp_path)), split="validation")
    assert (len(train), len(held)) == (3, 1)
    shown, text = train[0].items
    assert isinstance(shown, Medium) and text == "ein Bär"
    assert (shown.key, shown.kind) == ("a.png", "image")
    assert pathlib.Path(str(shown.data)) == tmp_path / "a.png"
    clip = train[1].items[0]
    assert isinstance(clip, Medium) and clip.kind == "clip"
    assert train[2].items == ("no picture",)
    assert held[0].items[1] == "held out"


def test_csv_and_other_names(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text(
        '\ufeffimage,text,split\na.png,"two, words",\nb.png,"a ""b""",train\n', encoding="utf-8"
    )
    both = [
        sources.open_source(SourceSpec("folder:mine", str(tmp_path)), split)
        for split in sources.SPLITS
    ]
    texts = {source[i].items[1] for source in both for i in range(len(source))}
    assert texts == {"two, words", 'a "b"'}


def test_held_out_rows_stay_held_out_when_the_file_grows(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "0.png")
    rows = [{"image": f"{i}.png", "text": f"picture {i}"} for i in range(2_000)]
    write(tmp_path, rows[:1_000])
    few = folder.open_folder(str(tmp_path), "validation")
    write(tmp_path, rows)
    many = folder.open_folder(str(tmp_path), "validation")
    train = folder.open_folder(str(tmp_path), "train")
    assert [few[i] for i in range(len(few))] == [many[i] for i in range(len(few))]
    assert len(many) + len(train) == len(rows)
    assert np.isclose(len(many) / len(rows), 1 / 20, atol=0.015)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a row needs"),
        ('{"image": "a.png"}', "line 2: a row needs"),
        ('{"image": "../a.png", "text": "a"}', "inside the folder"),
        ('{"image": "/etc/a.png", "text": "a"}', "inside the folder"),
        ('{"image": 3, "text": "a"}', "inside the folder"),
        ('{"image": "C:a.png", "text": "a"}', "inside the folder"),
        ('{"image": "in\\\\..\\\\a.png", "text": "a"}', "inside the folder"),
        ('{"text": "a\\ud800"}', "line 2: no Unicode text"),
        ('{"question": "what?"}', "line 2: a row needs"),
        ('{"text": "a", "split": "test"}', "train or validation"),
    ],
)
def test_malformed_rows_are_named(tmp_path: pathlib.Path, line: str, word: str) -> None:
    (tmp_path / "captions.jsonl").write_text('{"text": "a"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=word):
        sources.open_source(SourceSpec("folder", str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("filename,caption\na.png,a\n", "line names filename, caption; it must name"),
        ("", "names nothing"),
        ("image,text\na.png,a cat, asleep\n", "line 2: more fields"),
        ("image,text\na.png\n", "line 2: a row needs"),
        ("image,text\nb.png,b\nc.png,c\n", "none of the 2 pictures sought is there, .*'b.png'"),
    ],
)
def test_a_csv_that_is_not_what_it_should_be(tmp_path: pathlib.Path, text: str, word: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=word) as caught:
        sources.open_source(SourceSpec("folder", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_csv_in_another_encoding(tmp_path: pathlib.Path) -> None:
    (tmp_path / "captions.csv").write_bytes("text\nein Bär\n".encode("latin-1"))
    with pytest.raises(InputError, match="not CSV"):
        sources.open_source(SourceSpec("folder", str(tmp_path)))


def test_questions_and_answers(tmp_path: pathlib.Path) -> None:
    """The captions file may be named itself; its folder is that of the pictures."""
    picture(tmp_path / "a.png")
    file = tmp_path / "asked.csv"
    file.write_text('image,question,answer\na.png,"How many, here?",two\n', encoding="utf-8")
    source = sources.open_source(SourceSpec("folder", str(file)))
    shown, text = source[0].items
    assert isinstance(shown, Medium) and pathlib.Path(str(shown.data)) == tmp_path / "a.png"
    assert text == "Question: How many, here? Answer: two"


@pytest.mark.parametrize("rows", [2, 5, 400])
def test_rows_held_out(rows: int, tmp_path: pathlib.Path) -> None:
    """Each row is in one split; a folder of two has one to validate with."""
    write(tmp_path, [{"text": f"row {i}"} for i in range(rows)])
    spec = SourceSpec("folder", str(tmp_path), held_out=10)
    train, held = (sources.open_source(spec, split) for split in sources.SPLITS)
    texts = [str(source[i].items[0]) for source in (train, held) for i in range(len(source))]
    assert sorted(texts) == sorted(f"row {i}" for i in range(rows))
    assert 1 <= len(held) <= max(rows / 5, 1)
    assert len(sources.open_source(SourceSpec("folder", str(tmp_path)))) == rows
    with pytest.raises(InputError, match="held_out is 1"):
        sources.open_source(SourceSpec("folder", str(tmp_path), held_out=1))


@pytest.mark.parametrize(
    "field", [{"files": "elsewhere"}, {"options": {"strip": True}}, {"validation_path": "held"}]
)
def test_fields_that_a_folder_does_not_read(field: dict, tmp_path: pathlib.Path) -> None:
    write(tmp_path, [{"text": "a"}])
    with pytest.raises(InputError, match=f"has no use for {next(iter(field))}="):
        sources.open_source(SourceSpec("folder", str(tmp_path), **field))


def test_missing_folders_and_files(tmp_path: pathlib.Path) -> None:
    for path in ("", str(tmp_path / "none")):
        with pytest.raises(InputError, match="there is no folder"):
            sources.open_source(SourceSpec("folder", path))
    with pytest.raises(InputError, match=r"neither captions\.jsonl nor captions\.csv"):
        sources.open_source(SourceSpec("folder", str(tmp_path)))
