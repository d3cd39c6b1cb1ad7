"""A user's own set: two files of JSON lines, or one.

queries.jsonl is what is asked, support.jsonl what shots are taken from; without the latter, shots
come from the queries (never a query itself). Each line is an object with some of these fields:

- "image" or "video": a file's name below the folder of media, or neither; "start" and "end": the
  seconds of the part of a clip that is shown;
- "id": unique in its file; the line's number without it;
- "question", "context" (text before the question), "ocr" (text in the picture);
- "answers" or "captions" (a list), "answer" or "caption" (a text): references; the first of these
  four that is there;
- "choices" (a list): what is chosen from; the right one is the first of the answers, or the index
  in "right";
- "label_name" or "label" (a text): the class, where all lines have one. The classes are then the
  choices, in alphabetical order.

All lines of both files are of one kind: choices or labels make a choice (top-1 accuracy), questions
alone an answer (VQA accuracy if every line has four references or more, else exact match), and the
rest is captions (CIDEr). Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from flamingo_jax.data.prompt import Video
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import ANSWER, CAPTION, CHOICE, Example, Medium
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pictures, Pools
from flamingo_jax.eval.tasks.reading import Fields, read_jsonl

_ANSWERS = ("answers", "captions", "answer", "caption")
_LEAST = 4  # references: VQA accuracy holds each against the others, of which 3 must agree
LABELS, CHOICES, QUESTIONS, CAPTIONS = "a label", "choices", "a question", "captions alone"
_KINDS = {
    LABELS: (CHOICE, "top1"),
    CHOICES: (CHOICE, "top1"),
    QUESTIONS: (ANSWER, "top1"),
    CAPTIONS: (CAPTION, "cider"),
}
_PAGE = "your own set: see flamingo_jax/eval/tasks/custom.py"


def _read(files: Files) -> Pools:
    media = files.pictures("all.pictures")
    queries = parse(read_jsonl(files.file("queries")), media)
    own = files.find("support") is not None
    support = parse(read_jsonl(files.file("support")), media) if own else queries
    first = {_form(example): example.key for example in (*queries, *support)}
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        raise InputError(
            f"{files.file('queries')}: all lines are of one kind; {a!r} has {one}, {b!r} {other}"
        )
    form = next(iter(first), CAPTIONS)
    classes: tuple[str, ...] = ()
    if form == LABELS:
        classes = tuple(sorted({example.label for example in (*queries, *support)}))
        queries, support = _classify(queries, classes), _classify(support, classes)
    least = min((len(query.answers) for query in queries), default=0)
    kind, metric = _KINDS[form]
    if form == QUESTIONS and least >= _LEAST:
        metric = "vqa_accuracy"
    return Pools(support, queries, classes, kind=kind, metric=metric)


def parse(records: Iterable[Fields], media: Pictures) -> list[Example]:
    """The examples of a file.

    Args:
      records: its lines.
      media: the folder that names are looked up in.

    Raises:
      InputError: for a line that makes no sense; it names file, line and field.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for place, record in enumerate(records):
        example = _example(record, str(place), media)
        if example.key in seen:
            raise record.wrong(f"the id {example.key!r} stands in an earlier line, too")
        seen.add(example.key)
        examples.append(example)
    return examples


def _example(record: Fields, place: str, media: Pictures) -> Example:
    answers, choices = _answers(record), record.texts("choices") if "choices" in record else ()
    label = _label(record)
    if choices and label:
        raise record.wrong("'choices' and a label do not go together; leave one out")
    if not answers and not choices and not label:
        raise record.wrong(f"none of {', '.join(_ANSWERS)}, 'choices' and 'label' is there")
    right = _right(record, answers, choices) if choices else None
    if choices and right is not None:
        answers = (choices[right],)
    key = record.ident("id") if "id" in record else place
    return Example(
        key,
        _medium(record, media),
        record.text("question", "").strip(),
        context=record.text("context", "").strip(),
        ocr=record.text("ocr", ""),
        answers=(label,) if label else answers,
        choices=choices,
        right=right,
        label=label,
        about={"id": key},
    )


def _medium(record: Fields, media: Pictures) -> Medium | None:
    if "image" in record and "video" in record:
        raise record.wrong("both 'image' and 'video' are there; an example has one medium")
    if "image" in record:
        return media.named(record.filled("image"), record.where)
    if "video" not in record:
        return None
    path = media.named(record.filled("video"), record.where)
    start = record.number("start") if "start" in record else 0.0
    end = record.number("end") if "end" in record else None
    try:
        return Video(path, start=start, end=end)
    except InputError as error:
        raise record.wrong(f"'start' and 'end' are no part of a clip ({error})") from error


def _answers(record: Fields) -> tuple[str, ...]:
    name = next((name for name in _ANSWERS if name in record), "")
    if name in ("answers", "captions"):
        return record.texts(name, least=1)
    return (record.filled(name),) if name else ()


def _label(record: Fields) -> str:
    name = "label_name" if "label_name" in record else "label"
    return record.filled(name).strip() if name in record else ""


def _right(record: Fields, answers: tuple[str, ...], choices: tuple[str, ...]) -> int | None:
    if "right" in record:
        right = record.integer("right")
        if not 0 <= right < len(choices):
            raise record.wrong(f"field 'right' is {right}, not from 0 to {len(choices) - 1}")
        return right
    if not answers:
        return None
    if answers[0] not in choices:
        raise record.wrong(f"the answer {answers[0]!r} is not one of 'choices'")
    return choices.index(answers[0])


def _form(example: Example) -> str:
    if example.label or example.choices:
        return LABELS if example.label else CHOICES
    return QUESTIONS if example.question else CAPTIONS


def _classify(examples: list[Example], classes: tuple[str, ...]) -> list[Example]:
    places = {name: place for place, name in enumerate(classes)}
    return [
        dataclasses.replace(example, choices=classes, right=places[example.label])
        for example in examples
    ]


CUSTOM = Entry(
    name="custom",
    title="Your own set",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page=_PAGE,
    needs=(
        Need("queries", ("queries.jsonl",), "what is asked", _PAGE),
        Need("support", ("support.jsonl",), "what shots are taken from", _PAGE, optional=True),
        Need("all.pictures", ("media", "."), "pictures and clips", _PAGE),
    ),
    splits=("queries",),
    read=_read,
)
