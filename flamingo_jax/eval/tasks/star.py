"""STAR: situated reasoning over parts of Charades' clips, one of four answers.

STAR_*.json: [{"question_id", "question", "video_id", "start", "end", "answer", "choices":
[{"choice_id", "choice", …}], …}]. The paper asks the test split, whose answers are not public
(EvalAI takes them): without another split named, the validation split is asked.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json_list

_PAGE = "https://bobbywu.com/STAR/"
_CLIPS = "https://prior.allenai.org/projects/charades (480p)"


def _read(files: Files) -> Pools:
    clips = files.clips("all.clips")
    support = _examples(files, "train", clips)
    queries = _examples(files, files.split, clips)
    return Pools(support, queries, left_out=clips.check(len(queries)))


def _examples(files: Files, split: str, clips: Clips) -> list[Example]:
    examples = []
    for record in read_json_list(files.file(f"{split}.questions")):
        key, video = record.ident("question_id"), record.filled("video_id")
        question, start, end = (
            record.filled("question"),
            record.number("start"),
            record.number("end"),
        )
        if not 0 <= start < end:
            raise record.wrong(f"start {start:g} and end {end:g} are no part of a clip")
        choices = tuple(choice.filled("choice") for choice in record.records("choices"))
        answer = None if split == "test" else record.filled("answer")
        if answer is not None and answer not in choices:
            raise record.wrong(f"field 'answer' is {answer!r}, which is not one of 'choices'")
        clip = clips.part(video, start, end, key)
        if clip is not None:
            examples.append(
                Example(
                    key,
                    clip,
                    question,
                    answers=() if answer is None else (answer,),
                    choices=choices,
                    right=None if answer is None else choices.index(answer),
                    about={"question_id": key, "question_type": key.split("_")[0]},
                )
            )
    return examples


STAR = Entry(
    name="star",
    title="STAR",
    kind=CHOICE,
    metric="top1",
    medium="video",
    page=_PAGE,
    licence="Apache 2.0 for the annotations",
    needs=(
        Need("train.questions", ("STAR_train.json",), "training questions", _PAGE),
        Need("val.questions", ("STAR_val.json",), "validation questions", _PAGE, ("val",)),
        Need("test.questions", ("STAR_test.json",), "test questions", _PAGE, ("test",)),
        Need("all.clips", ("Charades_v1_480", "videos"), "Charades' clips", _CLIPS),
    ),
    splits=("val", "test"),
    read=_read,
)
