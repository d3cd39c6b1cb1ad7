"""A user's own set: whatever its lines hold, examples or one clear line come of them."""

import json
import pathlib
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_jax.data.prompt import Video
from flamingo_jax.errors import InputError
from flamingo_jax.eval.protocol import presets, splits
from flamingo_jax.eval.protocol.prompts import Asker
from flamingo_jax.eval.tasks import benchmarks
from flamingo_jax.eval.tasks.custom import parse
from flamingo_jax.eval.tasks.entries import Pictures
from flamingo_jax.eval.tasks.reading import Fields, read_jsonl
from tests.eval.tasks.writing import lines

MEDIA = Pictures(pathlib.Path("/media"))
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
NAME = st.text("abcé 日-_.", min_size=1, max_size=8).map(lambda name: f"{name}x.png")


def read(record: dict[str, Any]) -> Any:
    [example] = parse([Fields(record, "queries.jsonl, line 1")], MEDIA)
    return example


@given(
    st.fixed_dictionaries(
        {"answers": st.lists(TEXT, min_size=1, max_size=4)},
        optional={
            "id": st.one_of(TEXT, st.integers(0, 10**9)),
            "image": NAME,
            "question": TEXT,
            "context": TEXT,
            "ocr": TEXT,
            "something else": st.integers(),
        },
    )
)
def test_what_is_written_is_read(record: dict[str, Any]) -> None:
    example = read(record)
    assert example.answers == tuple(record["answers"])
    assert example.key == str(record.get("id", "0"))
    assert example.question == record.get("question", "").strip()
    assert example.context == record.get("context", "").strip()
    assert example.ocr == record.get("ocr", "")
    name = record.get("image")
    assert example.medium == (pathlib.Path("/media") / name if name else None)


@given(st.lists(TEXT, min_size=1, max_size=6, unique=True), st.data())
def test_the_right_choice(choices: list[str], data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(choices) - 1))
    for record in ({"right": right}, {"answer": choices[right]}, {"answers": [choices[right]]}):
        example = read({"choices": choices, **record})
        assert (example.right, example.answers) == (right, (choices[right],))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FIELDS = (
    *("id", "image", "video", "start", "end", "question", "context", "ocr", "answers", "answer"),
    *("captions", "caption", "choices", "right", "label", "label_name"),
)


@settings(max_examples=100)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON, max_size=3))
def test_no_line_is_a_defect_of_ours(records: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "q.jsonl"
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        try:
            examples = parse(read_jsonl(path), MEDIA)
        except InputError as error:
            assert str(error).startswith(f"{path}, line ")
            assert "\n" not in str(error).replace(folder, "")
            return
    assert len(examples) == len(records)
    for example in examples:
        if isinstance(example.medium, pathlib.Path):
            assert ".." not in example.medium.parts and example.medium.is_relative_to("/media")


@settings(max_examples=60)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_no_bytes_are_a_defect_of_ours(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "q.jsonl"
        path.write_bytes(data)
        try:
            parse(read_jsonl(path), MEDIA)
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "none of answers, captions, answer, caption, 'choices' and 'label' is there"),
        ({"answer": "a", "image": "a", "video": "b"}, "both 'image' and 'video' are there"),
        ({"answer": "a", "image": "../b.png"}, "'../b.png' leads out of /media"),
        ({"answer": "a", "image": "/b.png"}, "'/b.png' leads out of /media"),
        ({"answer": "a", "image": "C:\\b.png"}, "leads out of /media"),
        ({"answer": "a", "image": 3}, "field 'image' is the number 3, not a text"),
        ({"answer": "a", "image": ""}, "field 'image' is empty"),
        ({"answer": " "}, "field 'answer' is empty"),
        ({"answers": []}, "'answers' has 0 texts, not 1 or more"),
        ({"answers": "a"}, "field 'answers' is a text ('a'), not a list"),
        ({"answer": "c", "choices": ["a", "b"]}, "the answer 'c' is not one of 'choices'"),
        ({"right": 2, "choices": ["a", "b"]}, "field 'right' is 2, not from 0 to 1"),
        ({"label": "x", "choices": ["a"]}, "'choices' and a label do not go together"),
        ({"answer": "a", "video": "b.mp4", "start": 2, "end": 1}, "are no part of a clip"),
        ({"answer": "a", "video": "b.mp4", "start": "x"}, "field 'start' is a text ('x')"),
        ({"answer": "a", "id": True}, "field 'id' is true or false, not an id"),
    ],
)
def test_refused(record: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        read(record)
    said = str(error.value)
    assert said.startswith("queries.jsonl, line 1: ") and expected in said


def load(folder: pathlib.Path, queries: list[Any], support: list[Any] | None = None) -> Any:
    lines(folder / "custom/queries.jsonl", queries)
    if support is not None:
        lines(folder / "custom/support.jsonl", support)
    return benchmarks.load("custom", folder)


def test_the_kind_is_what_the_lines_are(tmp_path: pathlib.Path) -> None:
    kinds = {
        "captions": [{"image": "a.png", "captions": ["x"]}],
        "short": [{"image": "a.png", "question": "q", "answer": "x"}],
        "vqa": [{"image": "a.png", "question": "q", "answers": ["x", "y", "z", "x"]}],
        "three": [{"image": "a.png", "question": "q", "answers": ["x", "y", "z"]}],
        "choice": [{"image": "a.png", "question": "q", "choices": ["x", "y"], "right": 1}],
        "labels": [{"image": "a.png", "label": "x"}, {"image": "b.png", "label_name": "a"}],
    }
    found = {}
    for name, records in kinds.items():
        read = load(tmp_path / name, records)
        found[name] = (read.kind, read.metric)
    assert found == {
        "captions": ("caption", "cider"),
        "short": ("answer", "top1"),
        "vqa": ("answer", "vqa_accuracy"),
        "three": ("answer", "top1"),
        "choice": ("choice", "top1"),
        "labels": ("choice", "top1"),
    }


def test_classes_are_those_of_both_files(tmp_path: pathlib.Path) -> None:
    support = [
        {"id": place, "image": f"{label}.png", "label": label} for place, label in enumerate("cb")
    ]
    read = load(tmp_path, [{"image": "x.png", "label_name": "a", "label": 3}], support)
    assert read.classes == ("a", "b", "c")
    assert [example.right for example in (*read.queries, *read.support)] == [0, 2, 1]


def test_kinds_do_not_mix(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        InputError, match="all lines are of one kind; '0' has a label, '1' captions"
    ):
        load(tmp_path, [{"image": "a.png", "caption": "x"}, {"image": "b.png", "label": "x"}][::-1])


def test_one_file_shows_no_query_to_itself(tmp_path: pathlib.Path) -> None:
    records = [{"image": f"{place // 2}.png", "caption": f"c{place}"} for place in range(8)]
    read = load(tmp_path, records)
    chosen = splits.choose(read, presets.FLAMINGO)
    asker = Asker(presets.FLAMINGO, read, chosen, seed=0)
    for query in read.queries:
        [made] = asker.prompts(query, 6)  # all but the two of its picture
        others = {e.key for e in read.queries if e.medium != query.medium}
        assert set(made.shots) == others
        with pytest.raises(InputError, match="7 shots are asked for, and the support has 6"):
            asker.prompts(query, 7)


def test_clips_and_parts_of_them(tmp_path: pathlib.Path) -> None:
    read = load(tmp_path, [{"video": "v/a.mp4", "caption": "x", "start": 1, "end": 2.5}])
    assert read.queries[0].medium == Video(tmp_path / "custom/v/a.mp4", start=1.0, end=2.5)


def test_paths_of_the_table_may_lie_elsewhere(tmp_path: pathlib.Path) -> None:
    lines(tmp_path / "mine/q.jsonl", [{"image": "a.png", "caption": "x"}])
    elsewhere = {"queries": str(tmp_path / "mine/q.jsonl"), "all.pictures": "mine"}
    read = benchmarks.load("custom", tmp_path, elsewhere=elsewhere)
    assert read.queries[0].medium == tmp_path / "mine/a.png"
