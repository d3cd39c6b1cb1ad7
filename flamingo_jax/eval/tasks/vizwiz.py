"""VizWiz-VQA: questions that blind people asked about pictures they took.

Annotations: [{"image": "VizWiz_val_00000000.jpg", "question", "answers": [{"answer",
"answer_confidence"}], "answer_type", "answerable"}]; the test split has no answers. There are no
question ids: a picture has one question, and OpenFlamingo's question_id is the number in its name.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import ANSWER, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json_list
from flamingo_jax.eval.tasks.vqa import listed_answers

_PAGE = "https://vizwiz.org/tasks-and-datasets/vqa/"


def _read(files: Files) -> Pools:
    return Pools(_examples(files, "train"), _examples(files, files.split))


def _examples(files: Files, split: str) -> list[Example]:
    records = read_json_list(files.file(f"{split}.answers"))
    pictures = files.pictures(f"{split}.pictures")
    examples = []
    for record in records:
        image = record.filled("image")
        answers = () if split == "test" else listed_answers(record)
        about = {"image": image}
        if "answer_type" in record:
            about["answer_type"] = record.text("answer_type")
        picture = pictures.named(image, record.where)
        question = record.filled("question")
        examples.append(Example(image, picture, question, answers=answers, about=about))
    return examples


def _needs(split: str, *splits: str) -> tuple[Need, Need]:
    names = tuple(f"{folder}{split}.json" for folder in ("annotations/", "Annotations/", ""))
    return (
        Need(f"{split}.answers", names, f"questions and answers of {split}", _PAGE, splits),
        Need(f"{split}.pictures", (split,), f"pictures of {split}", _PAGE, splits),
    )


VIZWIZ = Entry(
    name="vizwiz",
    title="VizWiz",
    kind=ANSWER,
    metric="vqa_accuracy",
    medium="image",
    page=_PAGE,
    licence="CC BY 4.0",
    needs=(*_needs("train"), *_needs("val", "val"), *_needs("test", "test")),
    splits=("val", "test"),
    read=_read,
)
