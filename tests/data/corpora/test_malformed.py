"""Whatever a record holds, a corpus gives a sound document or says BadRecord."""

import copy
import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.corpora import clips, mmc4, obelics, pairs, texts
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Record

SOUND: dict[str, dict[str, Any]] = {
    "obelics": {"images": [None, b"a", {"bytes": b"b", "path": "b"}], "texts": ["t", None, None]},
    "mmc4": {
        "text_list": ["s0", "s1"],
        "image_info": [
            {"image_name": "a", "image_base64": "aWk=", "matched_text_index": 1},
            {"image_base64": "aWk=", "matched_text_index": 0, "matched_sim": 0.3},
        ],
        "similarity_matrix": [[0.1, 0.5], [0.3, 0.2]],
    },
    "pairs": {"jpg": {"bytes": b"a", "path": "a"}, "captions": {"en": "a", "de": "b"}},
    "clips": {"mp4": b"a", "json": {"caption": ["a", "b"]}},
    "texts": {"json": {"text": "a"}},
}
PARSE: dict[str, list[Any]] = {
    "obelics": [lambda record: obelics.parse(record, obelics.ObelicsOptions(min_images=0))],
    "mmc4": [
        lambda record, kind=kind: mmc4.parse(
            record, mmc4.Mmc4Options(assignment=kind, min_similarity=0.1, min_images=0)
        )
        for kind in mmc4.ASSIGNMENTS
    ],
    "pairs": [
        lambda record, choice=choice: pairs.parse(record, pairs.PairOptions(choice=choice))
        for choice in pairs.CHOICES
    ],
    "clips": [lambda record: clips.parse(record, clips.ClipOptions())],
    "texts": [lambda record: texts.parse(record, texts.TextOptions())],
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**4000),
    st.floats(),
    st.text(st.characters()),  # halves of surrogate pairs too
    st.binary(),
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["bytes", "path", "caption", "text", "x"]), inner),
    ),
    max_leaves=6,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value's parts are, itself left out."""
    parts = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    return [found for key, part in parts for found in ((*path, key), *paths(part, (*path, key)))]


def check(corpus: str, record: Record) -> None:
    for parse in PARSE[corpus]:
        try:
            document = parse(record)
        except BadRecord as error:
            assert error.reason
            continue
        assert isinstance(document, Document) and document.key == record.key
        for item in document.items:
            if isinstance(item, Medium):
                assert isinstance(item.data, bytes) and item.data and item.key
            else:
                assert item.encode("utf-8")
        kinds = [type(item) for item in document.items]
        assert (str, str) not in itertools.pairwise(kinds)
        assert str in kinds


@given(st.sampled_from(sorted(SOUND)), st.data())
def test_junk_anywhere(corpus: str, data: st.DataObject) -> None:
    fields = copy.deepcopy(SOUND[corpus])
    for _ in range(data.draw(st.integers(0, 3))):
        path = data.draw(st.sampled_from(paths(fields)))
        parent: Any = fields
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = data.draw(junk)
    check(corpus, Record("r/0", fields))


@given(
    st.sampled_from(sorted(SOUND)),
    st.dictionaries(
        st.sampled_from(
            sorted({name for fields in SOUND.values() for name in fields} | {"txt", "text", "png"})
        ),
        junk,
    ),
)
def test_junk_alone(corpus: str, fields: dict[str, Any]) -> None:
    check(corpus, Record("r/0", fields))


@given(st.integers(0), st.integers(0, 255), st.booleans())
def test_json_with_a_broken_byte(place: int, byte: int, cut: bool) -> None:
    whole = json.dumps(SOUND["mmc4"]).encode()
    place %= len(whole)
    broken = whole[:place] if cut else whole[:place] + bytes([byte]) + whole[place + 1 :]
    check("mmc4", Record("r/0", {"json": broken}))
