"""VQAv2 and OK-VQA: a file of questions and one of ten answers to each.

{"questions": [{"question_id", "image_id", "question"}]} and {"annotations": [{"question_id",
"answers": [{"answer", …}], "question_type", "answer_type", …}]} (https://visualqa.org/download).
A split without public answers is read without them: its answers can only be submitted.
"""

from __future__ import annotations

import sys

from flamingo_jax.eval.examples import ANSWER, Example
from flamingo_jax.eval.tasks.captions import COCO_ZIPS
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import Fields, read_json

_PAGE = "https://visualqa.org/download.html"
_TEST_ZIP = "http://images.cocodataset.org/zips/test2015.zip"
_TYPES = ("question_type", "answer_type")


def _read(files: Files) -> Pools:
    split = files.split
    public = split == "val"
    support = _examples(files, "train", "train.answers")
    return Pools(support, _examples(files, split, "val.answers" if public else ""))


def _examples(files: Files, split: str, answers: str) -> list[Example]:
    questions = read_json(files.file(f"{split}.questions"))
    pictures = files.pictures(f"{'test' if split.startswith('test') else split}.pictures")
    known = _answers(files, answers) if answers else {}
    examples = []
    for record in questions.records("questions"):
        key = record.ident("question_id")
        if answers and key not in known:
            raise record.wrong(f"question_id {key} has no record in {files.used[-1]}")
        number = record.integer("image_id")
        texts, types = known.get(key, ((), {}))
        about = {"question_id": record.integer("question_id"), "image_id": number, **types}
        picture = pictures.numbered(number, record.where)
        question = record.filled("question")
        examples.append(Example(key, picture, question, answers=texts, about=about))
    return examples


def _answers(files: Files, key: str) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    """By question_id: its answers, and the types that VQA's evaluation tells apart."""
    found = {}
    for record in read_json(files.file(key)).records("annotations"):
        types = {name: sys.intern(record.text(name)) for name in _TYPES if name in record}
        found[record.ident("question_id")] = (listed_answers(record), types)
    return found


def listed_answers(record: Fields) -> tuple[str, ...]:
    """The answers of a record, as VQA's, OK-VQA's and VizWiz's files have them."""
    # Interned: millions of answers are some thousands of words.
    answers = tuple(sys.intern(answer.text("answer")) for answer in record.records("answers"))
    if not answers:
        raise record.wrong("'answers' is empty")
    return answers


def _coco(split: str, *splits: str) -> Need:
    name = f"{split}/COCO_{split}_{{id:012d}}.jpg"
    source = _TEST_ZIP if split == "test2015" else COCO_ZIPS
    key = f"{split[:-4]}.pictures"
    return Need(key, (name, f"../coco/{name}"), f"COCO's pictures of {split}", source, splits)


def _json(key: str, name: str, what: str, page: str, *splits: str) -> Need:
    return Need(key, (name,), what, page, splits)


VQAV2 = Entry(
    name="vqav2",
    title="VQAv2",
    kind=ANSWER,
    metric="vqa_accuracy",
    medium="image",
    page=_PAGE,
    licence="CC BY 4.0; pictures under their Flickr licences",
    needs=(
        _json("train.questions", "v2_OpenEnded_mscoco_train2014_questions.json",
              "training questions", _PAGE),
        _json("train.answers", "v2_mscoco_train2014_annotations.json", "training answers", _PAGE),
        _json("val.questions", "v2_OpenEnded_mscoco_val2014_questions.json",
              "validation questions", _PAGE, "val"),
        _json("val.answers", "v2_mscoco_val2014_annotations.json",
              "validation answers", _PAGE, "val"),
        _json("test-dev.questions", "v2_OpenEnded_mscoco_test-dev2015_questions.json",
              "test-dev questions", _PAGE, "test-dev"),
        _json("test.questions", "v2_OpenEnded_mscoco_test2015_questions.json",
              "test questions", _PAGE, "test"),
        _coco("train2014"),
        _coco("val2014", "val"),
        _coco("test2015", "test-dev", "test"),
    ),
    splits=("val", "test-dev", "test"),
    read=_read,
    development=1024,
)  # fmt: skip
_OK_PAGE = "https://okvqa.allenai.org/download.html"
OKVQA = Entry(
    name="okvqa",
    title="OK-VQA",
    kind=ANSWER,
    metric="vqa_accuracy",
    medium="image",
    page=_OK_PAGE,
    needs=(
        _json("train.questions", "OpenEnded_mscoco_train2014_questions.json",
              "training questions", _OK_PAGE),
        _json("train.answers", "mscoco_train2014_annotations.json", "training answers", _OK_PAGE),
        _json("val.questions", "OpenEnded_mscoco_val2014_questions.json",
              "validation questions", _OK_PAGE),
        _json("val.answers", "mscoco_val2014_annotations.json", "validation answers", _OK_PAGE),
        _coco("train2014"),
        _coco("val2014"),
    ),
    splits=("val",),
    read=_read,
    development=1024,
)  # fmt: skip
