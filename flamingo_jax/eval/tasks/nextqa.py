"""NExT-QA: why and how of clips, with open answers (the paper's task) or one of five.

Open answers, of github.com/doc-doc/NExT-OE: {train,val,test}.csv with the columns video,
frame_count, width, height, question, answer, qid, type, and add_reference_answer_test.json,
{video: {qid: text}}, a second reference for the test split. Choices, of github.com/doc-doc/NExT-QA:
the same columns and a0 … a4, answer being the right one's index. The clips of both are VidOR's,
named by the column video, in folders or not.

The files leave out the questions' marks, which we add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flamingo_jax.eval.examples import ANSWER, CHOICE, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools, question
from flamingo_jax.eval.tasks.reading import Fields, read_csv, read_json

_OPEN = "https://github.com/doc-doc/NExT-OE (dataset/nextqa)"
_CHOICE = "https://github.com/doc-doc/NExT-QA (dataset/nextqa)"
_COLUMNS = ("video", "question", "answer", "qid", "type")
_CHOICES = tuple(f"a{place}" for place in range(5))
_Answer = Callable[[Fields], dict[str, Any]]
"""A record's references and choices, as `Example` has them."""


def _read_open(files: Files) -> Pools:
    path = files.find("test.more") if files.split == "test" else None
    more = dict(read_json(path).items()) if path else {}
    return _read(files, _COLUMNS, lambda record: _open(record, more))


def _read_choices(files: Files) -> Pools:
    return _read(files, (*_COLUMNS, *_CHOICES), _closed)


def _read(files: Files, columns: tuple[str, ...], answer: _Answer) -> Pools:
    clips = files.clips("all.clips")
    support = _examples(files, "train", clips, columns, answer)
    queries = _examples(files, files.split, clips, columns, answer)
    return Pools(support, queries, left_out=clips.check(len(queries)))


def _examples(
    files: Files, split: str, clips: Clips, columns: tuple[str, ...], answer: _Answer
) -> list[Example]:
    examples = []
    for record in read_csv(files.file(f"{split}.questions"), columns):
        video, qid = record.filled("video"), record.filled("qid")
        asked, given = question(record.filled("question")), answer(record)
        clip = clips.whole(video)
        if clip is not None:
            about = {"video": video, "qid": qid, "type": record.text("type")}
            examples.append(Example(f"{video}_{qid}", clip, asked, about=about, **given))
    return examples


def _open(record: Fields, more: dict[str, Fields]) -> dict[str, Any]:
    references = [record.filled("answer")]
    second = more.get(record.text("video"))
    if second is not None and record.text("qid") in second:
        references.append(second.text(record.text("qid")))
    return {"answers": tuple(references)}


def _closed(record: Fields) -> dict[str, Any]:
    choices, right = tuple(record.filled(name) for name in _CHOICES), record.integer("answer")
    if not 0 <= right < len(choices):
        raise record.wrong(f"column 'answer' is {right}, not from 0 to {len(choices) - 1}")
    return {"answers": (choices[right],), "choices": choices, "right": right}


def _needs(source: str, beside: str) -> tuple[Need, ...]:
    return (
        Need("train.questions", ("train.csv",), "training questions", source),
        Need("test.questions", ("test.csv",), "test questions", source, ("test",)),
        Need("val.questions", ("val.csv",), "validation questions", source, ("val",)),
        Need("all.clips", ("NExTVideo", "videos", f"../{beside}/NExTVideo", f"../{beside}/videos"),
             "all clips", "https://github.com/doc-doc/NExT-QA (NExTVideo)"),
    )  # fmt: skip


NEXTQA = Entry(
    name="nextqa",
    title="NExT-QA, open answers",
    kind=ANSWER,
    metric="wups",
    medium="video",
    page="https://doc-doc.github.io/docs/nextqa.html",
    licence="MIT for the annotations",
    needs=(
        *_needs(_OPEN, "nextqa_choice"),
        Need("test.more", ("add_reference_answer_test.json",), "second references of the test",
             _OPEN, ("test",), optional=True),
    ),
    splits=("test", "val"),
    read=_read_open,
)  # fmt: skip
NEXTQA_CHOICE = Entry(
    name="nextqa_choice",
    title="NExT-QA, one of five",
    kind=CHOICE,
    metric="top1",
    medium="video",
    page="https://doc-doc.github.io/docs/nextqa.html",
    licence="MIT for the annotations",
    needs=_needs(_CHOICE, "nextqa"),
    splits=("test", "val"),
    read=_read_choices,
)
