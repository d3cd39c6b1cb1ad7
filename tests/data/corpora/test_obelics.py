"""Pages of parallel lists: nothing lost or doubled, what is dropped and why."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.corpora import fields
from flamingo_jax.data.corpora.obelics import ObelicsOptions, parse
from flamingo_jax.data.document import Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

PLAIN = ObelicsOptions()
A, B = b"image a", b"image b"


def page(*places: Any, key: str = "p.parquet/0") -> Record:
    """A page: str are texts, anything else is an image."""
    images = [None if isinstance(place, str) else place for place in places]
    texts = [place if isinstance(place, str) else None for place in places]
    return Record(key, {"images": images, "texts": texts})


def stored(medium: Medium) -> bytes:
    assert isinstance(medium.data, bytes)
    return medium.data


def summary(record: Record, options: ObelicsOptions = PLAIN, files: Any = None) -> list[Any]:
    """The document's texts and images' bytes."""
    items = parse(record, options, files).items
    return [stored(item) if isinstance(item, Medium) else item for item in items]


def reason(record: Record, options: ObelicsOptions = PLAIN, files: Any = None) -> str:
    with pytest.raises(BadRecord) as error:
        parse(record, options, files)
    return error.value.reason


def test_an_image_is_bytes_a_struct_or_a_name(named: Any) -> None:
    files = named({"img/a.jpg": A})
    record = page(
        "one",
        "img/a.jpg",
        B,
        {"bytes": B, "path": None},
        {"bytes": None, "path": "img/a.jpg"},
        {"bytes": A, "path": "0.jpg"},
        {"bytes": B, "path": "0.jpg"},
    )
    # `page` takes a str for a text; this one is an image's name.
    record.fields["images"][1], record.fields["texts"][1] = record.fields["texts"][1], None
    assert summary(record, files=files) == ["one", A, B, B, A, A, B]
    media = [item for item in parse(record, PLAIN, files).items if isinstance(item, Medium)]
    keys = [medium.key for medium in media]
    assert keys[:4] == ["img/a.jpg", "p.parquet/0#2", "p.parquet/0#3", "img/a.jpg"]
    # A name beside bytes is no more than a name: other bytes, another key; the same, the same.
    assert keys[4] != keys[5] and all(key.startswith("0.jpg#") for key in keys[4:])
    elsewhere = parse(page("x", {"bytes": A, "path": "0.jpg"}, key="q.parquet/7"), PLAIN)
    assert isinstance(elsewhere.items[1], Medium) and elsewhere.items[1].key == keys[4]


def test_a_page_within_json() -> None:
    texts = json.dumps({"images": [None], "texts": ["ein Bär"], "metadata": "null"}).encode()
    options = ObelicsOptions(min_images=0)
    assert summary(Record("s.tar/1", {"json": texts}), options) == ["ein Bär"]
    # Nobody asks for it where the record has the fields itself.
    own = {**page("own").fields, "json": b"{"}
    assert summary(Record("s.tar/1", own), options) == ["own"]


def test_texts_that_meet_get_a_blank_line(named: Any) -> None:
    record = page("one", None, "two", A, "three", "four")
    record.fields["images"][1] = "gone.jpg"
    assert summary(record) == ["one\n\ntwo", A, "three\n\nfour"]
    assert summary(record, ObelicsOptions(between=" ")) == ["one two", A, "three four"]
    assert reason(record, ObelicsOptions(missing="page")) == "missing image"
    # Likewise where there are files, but not that one.
    for gone in ("gone.jpg", ""):
        record.fields["images"][1] = gone
        assert summary(record, files=named({})) == ["one\n\ntwo", A, "three\n\nfour"]
        assert reason(record, ObelicsOptions(missing="page"), named({})) == "missing file"


@pytest.mark.parametrize("lost", [b"", {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}])
def test_images_that_cannot_be_had(lost: Any) -> None:
    assert summary(page(lost, "text", A)) == ["text", A]
    assert reason(page(lost, "text")) == "too few images"
    with pytest.raises(BadRecord, match="image 0"):
        parse(page(lost, "text", A), ObelicsOptions(missing="page"))


def test_limits_of_images() -> None:
    record = page(A, "one", B, "two", A)
    assert summary(record, ObelicsOptions(max_images=2)) == [A, "one", B, "two"]
    assert summary(record, ObelicsOptions(max_images=1)) == [A, "one\n\ntwo"]
    assert reason(record, ObelicsOptions(min_images=4)) == "too few images"
    assert summary(page("text"), ObelicsOptions(min_images=0)) == ["text"]
    assert reason(page("text")) == "too few images"


def test_pages_of_one_image_are_dropped_for_good() -> None:
    """By key and seed alone: as many as asked, the same at every visit, others by another seed."""
    keys = [f"p.parquet/{number}" for number in range(400)]

    def kept(options: ObelicsOptions) -> set[str]:
        found = set()
        for key in keys:
            try:
                found.add(parse(page(A, "text", key=key), options).key)
            except BadRecord as error:
                assert error.reason == "dropped: one image"
        return found

    half = ObelicsOptions(drop_single=0.5)
    assert 150 < len(kept(half)) < 250
    assert kept(half) == kept(half) != kept(ObelicsOptions(drop_single=0.5, seed=1))
    assert len(kept(PLAIN)) == len(keys) and not kept(ObelicsOptions(drop_single=1.0))
    assert kept(ObelicsOptions(drop_single=0.25)) > kept(half)
    for key in keys[:20]:
        assert summary(page(A, "text", B, key=key), ObelicsOptions(drop_single=1.0))


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])),
            st.binary(min_size=1, max_size=8),
        ),
        max_size=12,
    )
)
def test_nothing_is_lost_or_doubled(places: list[str | bytes]) -> None:
    record = page(*places)
    options = ObelicsOptions(min_images=0)
    texts = [place for place in places if isinstance(place, str)]
    if not any(text.strip() for text in texts):
        assert reason(record, options) == "no text"
        return
    document = parse(record, options)
    found: list[str | bytes] = []
    for item in document.items:
        found += item.split("\n\n") if isinstance(item, str) else [stored(item)]
    assert found == [place for place in places if place != ""]
    media = [item for item in document.items if isinstance(item, Medium)]
    assert len({medium.key for medium in media}) == len(media)
    kinds = [isinstance(item, str) for item in document.items]
    assert not any(a and b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "no field images"),
        ({"images": [None]}, "no field texts"),
        ({"images": None, "texts": ["a"]}, "no field images"),
        ({"images": "a.jpg", "texts": ["a"]}, "field is no list"),
        ({"images": [None], "texts": {"0": "a"}}, "field is no list"),
        ({"images": [None, A], "texts": ["a"]}, "images and texts of different lengths"),
        ({"images": [A, None], "texts": ["a", "b"]}, "a place with both an image and a text"),
        ({"images": [A, None], "texts": [None, None]}, "a place with neither image nor text"),
        ({"images": [A, None], "texts": [None, 3]}, "text is no string"),
        ({"images": [A, None], "texts": [None, b"\xff"]}, "text is not UTF-8"),
        ({"images": [A, None], "texts": [None, "\ud800"]}, "text is not UTF-8"),
        ({"images": [7, None], "texts": [None, "a"]}, "image is neither bytes nor a name"),
        ({"images": [{"bytes": "YQ==", "path": 1}], "texts": [None]}, "text is no string"),
        ({"images": [A, None], "texts": [None, " \n"]}, "no text"),
        ({"images": [], "texts": []}, "no text"),
        ({"json": b"{"}, "broken JSON"),
        ({"json": b"[" * 200_000}, "broken JSON"),
        ({"json": b'{"images": ' + b"9" * 5000 + b"}"}, "broken JSON"),
        ({"json": b"\xff\xfe\x00"}, "broken JSON"),
        ({"json": b"[]"}, "JSON is no object"),
        ({"json": None}, "JSON is no object"),
        ({"json": b"{}"}, "no field images"),
        (
            {"images": [A] * (fields.MAX_IMAGES + 1)} | {"texts": [None] * (fields.MAX_IMAGES + 1)},
            "too many images",
        ),
        ({"images": [None] * (fields.MAX_PLACES + 1), "texts": []}, "list too long"),
    ],
)
def test_malformed_pages(columns: dict[str, Any], expected: str) -> None:
    assert reason(Record("p/0", columns)) == expected


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fields.MAX_BYTES, "image", 8)
    assert summary(page(A, "text", b"123456789")) == [A, "text"]
    assert reason(page(b"123456789", "t"), ObelicsOptions(missing="page")) == (
        "too many bytes in an image"
    )
    monkeypatch.setattr(fields, "MAX_PAGE_BYTES", 13)
    assert reason(page(A, "text", B)) == "too many bytes in a page"
    monkeypatch.setattr(fields, "MAX_CHARACTERS", 5)
    assert reason(page(A, "abcdef")) == "text too long"
    monkeypatch.setattr(fields, "MAX_PAGE_BYTES", 14)
    assert summary(page(A, "abc", B, "de")) == [A, "abc", B, "de"]
    assert reason(page(A, "abc", B, "def")) == "text too long"


@pytest.mark.parametrize(
    "wrong",
    [{"missing": "row"}, {"drop_single": 1.5}, {"drop_single": float("nan")}, {"max_images": -1}],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"obelics: {next(iter(wrong))} is .*it takes"):
        ObelicsOptions(**wrong)
