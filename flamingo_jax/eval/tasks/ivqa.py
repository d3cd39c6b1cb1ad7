"""iVQA: questions about instructional videos, five answers each (Yang et al., 2021).

{train,val,test}.csv with the columns video_id, question, answer1 … answer5 (as the authors' own
reader takes them) and, if the recordings are not cut yet, start and end in seconds (of these two we
have seen no published description).
"""

from __future__ import annotations

from flamingo_jax.eval.examples import ANSWER, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools, six_digits
from flamingo_jax.eval.tasks.reading import read_csv

_PAGE = "https://antoyang.github.io/just-ask.html#ivqa"
_ANSWERS = tuple(f"answer{number}" for number in range(1, 6))


def _read(files: Files) -> Pools:
    clips = files.clips("all.clips")
    support = _examples(files, "train", clips)
    queries = _examples(files, files.split, clips)
    return Pools(support, queries, left_out=clips.check(len(queries)))


def _examples(files: Files, split: str, clips: Clips) -> list[Example]:
    path, examples = files.file(f"{split}.questions"), []
    records = read_csv(path, ("video_id", "question", *_ANSWERS))
    for place, record in enumerate(records):
        video, question = record.filled("video_id"), record.filled("question")
        answers = tuple(record.filled(name) for name in _ANSWERS)
        if "start" in record and "end" in record:
            start, end = record.number("start"), record.number("end")
            if not 0 <= start < end:
                raise record.wrong(f"start {start:g} and end {end:g} are no part of a clip")
            cut = f"{video}_{start:g}_{end:g}", f"{video}_{six_digits(start)}_{six_digits(end)}"
            clip = clips.part(video, start, end, *cut)
        else:
            clip = clips.whole(video)
        if clip is not None:
            key, about = f"{split}/{place}", {"video_id": video, "row": place}
            examples.append(Example(key, clip, question, answers=answers, about=about))
    return examples


IVQA = Entry(
    name="ivqa",
    title="iVQA",
    kind=ANSWER,
    metric="ivqa_accuracy",
    medium="video",
    page=_PAGE,
    needs=(
        Need("train.questions", ("train.csv",), "training questions", _PAGE),
        Need("test.questions", ("test.csv",), "test questions", _PAGE, ("test",)),
        Need("val.questions", ("val.csv",), "validation questions", _PAGE, ("val",)),
        Need("all.clips", ("videos", "video"), "all clips", _PAGE),
    ),
    splits=("test", "val"),
    read=_read,
)
