"""VisDial 1.0: which of 100 answers fits the next question of a dialogue, graded by people.

visdial_1.0_*.json: {"split", "data": {"questions": […], "answers": […], "dialogs": [{"image_id",
"caption", "dialog": [ten rounds of {"question", "answer", "answer_options", "gt_index"}]}]}}, where
questions and answers are indices into the two lists. visdial_1.0_val_dense_annotations.json:
[{"image_id", "round_id" (from 1), "gt_relevance": [100 numbers]}]: that round is what is asked, the
rounds before it are read with their true answers. A shot is a whole dialogue.

The files leave out the questions' marks, which we add. Training pictures are COCO's, of both its
folders, and the file does not say which: whichever has it.
"""

from __future__ import annotations

import os
import pathlib

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.captions import COCO_ZIPS
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pictures, Pools, question
from flamingo_jax.eval.tasks.reading import Fields, read_json, read_json_list

_PAGE = "https://visualdialog.org/data"


class _Dialogues:
    """One file's dialogues, with their texts in place."""

    def __init__(self, path: pathlib.Path) -> None:
        data = read_json(path).record("data")
        self._questions = tuple(map(question, data.texts("questions")))
        self._answers = data.texts("answers")
        self.dialogues = list(data.records("dialogs"))

    def turns(self, dialogue: Fields, count: int) -> tuple[tuple[str, str], ...]:
        """The first `count` questions of a dialogue with their answers."""
        rounds = self.rounds(dialogue, count)
        return tuple((self.asked(r), self._one(self._answers, r, "answer")) for r in rounds)

    def rounds(self, dialogue: Fields, count: int) -> list[Fields]:
        """The first `count` rounds."""
        rounds = list(dialogue.records("dialog"))
        if len(rounds) < count:
            raise dialogue.wrong(f"'dialog' has {len(rounds)} rounds, {count} are needed")
        return rounds[:count]

    def asked(self, turn: Fields) -> str:
        """A round's question."""
        return self._one(self._questions, turn, "question")

    def options(self, turn: Fields) -> tuple[str, ...]:
        """A round's candidates."""
        places = Fields(
            {str(i): place for i, place in enumerate(turn.values("answer_options"))},
            f"{turn.where}: 'answer_options'",
        )
        return tuple(self._one(self._answers, places, name) for name in places.names())

    def _one(self, texts: tuple[str, ...], record: Fields, name: str) -> str:
        place = record.integer(name)
        if not 0 <= place < len(texts):
            raise record.wrong(f"field {name!r} is {place}; there are {len(texts)} texts")
        return texts[place]


def _read(files: Files) -> Pools:
    return Pools(_support(files), _queries(files))


def _support(files: Files) -> list[Example]:
    read = _Dialogues(files.file("train.dialogues"))
    folders = [files.pictures("train.pictures"), files.pictures("more.pictures")]
    names = set(os.listdir(folders[1].folder))
    examples = []
    for dialogue in read.dialogues:
        number = dialogue.integer("image_id")
        turns = read.turns(dialogue, len(dialogue.values("dialog")))
        if not turns:
            raise dialogue.wrong("'dialog' is empty")
        (last, answer), before = turns[-1], turns[:-1]
        examples.append(
            Example(
                f"{number}#{len(turns)}",
                _either(folders, names, number, dialogue.where),
                last,
                context=dialogue.text("caption").strip(),
                turns=before,
                answers=(answer,),
                about={"image_id": number, "round_id": len(turns)},
            )
        )
    return examples


def _queries(files: Files) -> list[Example]:
    read = _Dialogues(files.file("val.dialogues"))
    pictures = files.pictures("val.pictures")
    known = {dialogue.integer("image_id"): dialogue for dialogue in read.dialogues}
    examples = []
    for record in read_json_list(files.file("val.relevance")):
        number, place = record.integer("image_id"), record.integer("round_id")
        if number not in known or place < 1:
            raise record.wrong(f"there is no round {place} of image_id {number} in the dialogues")
        dialogue = known[number]
        turn = read.rounds(dialogue, place)[-1]
        choices, relevance = read.options(turn), record.numbers("gt_relevance")
        right = turn.integer("gt_index")
        if len(relevance) != len(choices) or not 0 <= right < len(choices):
            raise record.wrong(
                f"{len(relevance)} grades and gt_index {right} for {len(choices)} answers"
            )
        examples.append(
            Example(
                f"{number}#{place}",
                pictures.numbered(number, dialogue.where),
                read.asked(turn),
                context=dialogue.text("caption").strip(),
                turns=read.turns(dialogue, place - 1),
                answers=(choices[right],),
                choices=choices,
                right=right,
                relevance=relevance,
                about={"image_id": number, "round_id": place},
            )
        )
    return examples


def _either(folders: list[Pictures], names: set[str], number: int, where: str) -> pathlib.Path:
    """The picture in the second folder if its `names` have it, else that in the first."""
    first, second = (folder.numbered(number, where) for folder in folders)
    return second if second.name in names else first


def _coco(key: str, split: str) -> Need:
    name = f"{split}/COCO_{split}_{{id:012d}}.jpg"
    return Need(key, (name, f"../coco/{name}"), f"COCO's pictures of {split}", COCO_ZIPS)


VISDIAL = Entry(
    name="visdial",
    title="VisDial",
    kind=CHOICE,
    metric="ndcg",
    medium="image",
    page=_PAGE,
    licence="CC BY 4.0; pictures under their Flickr licences",
    needs=(
        Need("train.dialogues", ("visdial_1.0_train.json",), "training dialogues", _PAGE),
        Need("val.dialogues", ("visdial_1.0_val.json",), "validation dialogues", _PAGE),
        Need("val.relevance", ("visdial_1.0_val_dense_annotations.json",),
             "graded answers of the validation split", _PAGE),
        _coco("train.pictures", "train2014"),
        _coco("more.pictures", "val2014"),
        Need("val.pictures", ("VisualDialog_val2018/VisualDialog_val2018_{id:012d}.jpg",),
             "validation pictures", _PAGE),
    ),
    splits=("val",),
    read=_read,
)  # fmt: skip
