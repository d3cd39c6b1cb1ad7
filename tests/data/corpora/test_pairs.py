"""Pairs, clips and plain texts: which field, which caption, how long."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.corpora import clips, pairs, texts
from flamingo_jax.data.corpora import fields as corpus_fields
from flamingo_jax.data.corpora.clips import ClipOptions
from flamingo_jax.data.corpora.pairs import PairOptions
from flamingo_jax.data.corpora.texts import TextOptions
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

PLAIN = PairOptions()


def pair(options: PairOptions = PLAIN, key: str = "s.tar/7", **fields: Any) -> Document:
    return pairs.parse(Record(key, {"jpg": b"picture"} | fields), options)


def reason(options: PairOptions = PLAIN, **fields: Any) -> str:
    with pytest.raises(BadRecord) as error:
        pair(options, **fields)
    return error.value.reason


def test_a_sample_of_webdataset() -> None:
    document = pair(txt="  ein Bär\n".encode(), json=b"{")  # nothing asks for the json
    assert document == Document((Medium(b"picture", "s.tar/7#jpg"), "ein Bär"), "s.tar/7")
    assert pair(PairOptions(strip=False), txt=b" a \n").items[1] == " a \n"


def test_the_image_is_the_first_field_that_is_there(named: Any) -> None:
    record = Record("r/0", {"image": {"bytes": b"i", "path": "x.png"}, "png": None, "text": "t"})
    medium = pairs.parse(record, PLAIN).items[0]
    assert isinstance(medium, Medium) and medium.data == b"i"
    mine = PairOptions(media=("photo.file", "image"))
    record = Record("r/0", {"image": b"i", "photo.file": "a/1.jpg", "text": "t"})
    medium = pairs.parse(record, mine, named({"a/1.jpg": b"file"})).items[0]
    assert medium == Medium(b"file", "a/1.jpg")


@pytest.mark.parametrize(
    ("captions", "fields", "expected"),
    [
        (PLAIN.captions, {"text": "from Parquet"}, "from Parquet"),
        (PLAIN.captions, {"json": b'{"caption": "from JSON"}'}, "from JSON"),
        (PLAIN.captions, {"txt": None, "caption": "next"}, "next"),
        (PLAIN.captions, {"captions": [None, " ", "third"]}, "third"),
        (PLAIN.captions, {"captions": {"en": "a key", "de": "ein Schlüssel"}}, "a key"),
        (("json.a.b", "txt"), {"json": b'{"a": {"b": "deep"}}', "txt": b"t"}, "deep"),
        (("json.a.b", "txt"), {"json": b'{"a": "flat"}', "txt": b"t"}, "t"),
        (("json.a", "txt"), {"json": {"a": "parsed"}, "txt": b"t"}, "parsed"),
        (
            ("json.a", "txt"),
            {"json.a": "a field of that name", "json": b"{}"},
            "a field of that name",
        ),
    ],
)
def test_where_the_caption_is(captions: Any, fields: dict[str, Any], expected: str) -> None:
    assert pair(PairOptions(captions=captions), **fields).items[1] == expected


def test_one_of_several_captions() -> None:
    several = ["aa", "dddd", "bbb", "", "cccc"]
    assert pair(captions=several).items[1] == "aa"
    assert pair(PairOptions(choice="longest"), captions=several).items[1] == "dddd"
    assert pair(PairOptions(min_characters=3), captions=several).items[1] == "dddd"
    bounded = PairOptions(choice="longest", max_characters=3)
    assert pair(bounded, captions=several).items[1] == "bbb"

    keys = [f"s.tar/{number}" for number in range(400)]

    def drawn(seed: int) -> list[Any]:
        options = PairOptions(choice="random", seed=seed, min_characters=3)
        return [pair(options, key, captions=several).items[1] for key in keys]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(drawn(0).count(text) > 90 for text in ("dddd", "bbb", "cccc"))


def test_length_is_counted_in_characters_after_stripping() -> None:
    options = PairOptions(min_characters=3, max_characters=4)
    assert pair(options, txt=" äöü ".encode()).items[1] == "äöü"
    assert reason(options, txt=b" ab ") == "text too short"
    assert reason(options, txt=b"abcde") == "text too long"
    assert reason(PairOptions(min_characters=0), txt=b" \n") == "no text"


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_fields, "MAX_CHARACTERS", 5)
    for text in (b"abcdef", "abcdef", b"\xff" * 6):
        assert reason(txt=text) == "text too long"
    assert pair(txt=b"abcde").items[1] == "abcde"
    monkeypatch.setattr(corpus_fields, "MAX_PLACES", 2)
    assert reason(captions=["a", "b", "c"]) == "list too long"
    monkeypatch.setattr(corpus_fields, "MAX_JSON", 14)
    assert reason(json=b'{"caption":"a"}') == "too many bytes of JSON"
    assert pair(json=b'{"caption":""}', captions="a").items[1] == "a"
    monkeypatch.setitem(corpus_fields.MAX_BYTES, "image", 6)
    assert reason(txt=b"a") == "too many bytes in an image"
    assert pair(txt=b"a", jpg=b"123456").items[0] == Medium(b"123456", "s.tar/7#jpg")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "no text"),
        ({"txt": b""}, "no text"),
        ({"captions": []}, "no text"),
        ({"captions": [None]}, "no text"),
        ({"txt": b"\xc3\x28"}, "text is not UTF-8"),
        ({"txt": "caf\xe9".encode("latin-1")}, "text is not UTF-8"),
        ({"json": b'{"caption": "\\ud83d"}'}, "text is not UTF-8"),
        ({"txt": 5}, "text is no string"),
        ({"captions": ["a", 5]}, "text is no string"),
        ({"captions": [["a"]]}, "text is no string"),
        ({"json": b"{'caption': 1}"}, "broken JSON"),
        ({"json": b"3"}, "JSON is no object"),
        ({"txt": b"a", "jpg": None}, "no image"),
        ({"txt": b"a", "jpg": b""}, "empty image"),
        ({"txt": b"a", "jpg": "0.jpg"}, "missing image"),
        ({"txt": b"a", "jpg": ""}, "missing image"),
        ({"txt": b"a", "jpg": {"bytes": None, "path": None}}, "missing image"),
        ({"txt": b"a", "jpg": [b"picture"]}, "image is neither bytes nor a name"),
    ],
)
def test_malformed_pairs(fields: dict[str, Any], expected: str) -> None:
    assert reason(**fields) == expected


def test_a_clip(named: Any) -> None:
    record = Record("v.tar/3", {"mp4": b"film", "txt": b"a dog runs", "json": b"{}"})
    assert clips.parse(record, ClipOptions()).items == (
        Medium(b"film", "v.tar/3#mp4", "clip"),
        "a dog runs",
    )
    record = Record("e.jsonl/3", {"video": "clips/1.webm", "captions": ["a", "longer"]})
    document = clips.parse(record, ClipOptions(choice="longest"), named({"clips/1.webm": b"f"}))
    assert document.items == (Medium(b"f", "clips/1.webm", "clip"), "longer")
    with pytest.raises(BadRecord, match="no clip"):
        clips.parse(Record("v/0", {"jpg": b"picture", "txt": b"t"}), ClipOptions())


def test_plain_text() -> None:
    record = Record("t/0", {"content": " as it is \n"})
    assert texts.parse(record, TextOptions()) == Document((" as it is \n",), "t/0")
    assert texts.parse(record, TextOptions(strip=True)).items == ("as it is",)
    for wrong, expected in [
        ({"text": " \n"}, "no text"),
        ({"text": "ab"}, "text too short"),
        ({"txt": b"\xff\xff\xff"}, "text is not UTF-8"),
        ({"text": ["abc"]}, "text is no string"),
        ({}, "no text"),
    ]:
        with pytest.raises(BadRecord) as error:
            texts.parse(Record("t/0", wrong), TextOptions(min_characters=3))
        assert error.value.reason == expected


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(min_size=1))
def test_a_pair_is_what_was_stored(text: str, image: bytes) -> None:
    ways: tuple[dict[str, Any], ...] = (
        {"txt": text.encode()},
        {"json": json.dumps({"caption": text}).encode()},
    )
    for stored in ways:
        if text.strip():
            document = pair(**stored, jpg=image)
            assert document.items == (Medium(image, "s.tar/7#jpg"), text.strip())
        else:
            assert reason(**stored, jpg=image) == "no text"


@given(st.binary())
def test_any_bytes_are_utf8_or_refused(data: bytes) -> None:
    try:
        items = texts.parse(Record("t/0", {"txt": data}), TextOptions()).items
    except BadRecord:
        assert not data.decode("utf-8", "ignore").strip() or "\ufffd" in data.decode(
            "utf-8", "replace"
        )
    else:
        assert isinstance(items[0], str) and items[0].encode() == data


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (PairOptions, {"choice": "best"}),
        (PairOptions, {"media": "jpg"}),
        (PairOptions, {"captions": ()}),
        (ClipOptions, {"min_characters": 9, "max_characters": 8}),
        (TextOptions, {"min_characters": -1}),
        (TextOptions, {"texts": "txt"}),
    ],
)
def test_wrong_options(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is .*it takes"):
        make(**wrong)
