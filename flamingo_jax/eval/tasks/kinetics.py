"""Kinetics-700 (2020): one of 700 actions.

{train,val}.csv with the columns label, youtube_id, time_start, time_end, split. Clips are named
ID_000012_000022.mp4, in folders of their classes or not; a whole recording ID.mp4 is taken too.
Classes are those of the training file, in alphabetical order.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools, six_digits
from flamingo_jax.eval.tasks.reading import Fields, read_csv

_PAGE = "https://github.com/cvdfoundation/kinetics-dataset"
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def _read(files: Files) -> Pools:
    train = list(read_csv(files.file("train.labels"), _COLUMNS))
    asked = list(read_csv(files.file("val.labels"), _COLUMNS))
    classes = tuple(sorted({record.filled("label") for record in train}))
    places = {name: place for place, name in enumerate(classes)}
    clips = files.clips("train.clips"), files.clips("val.clips")
    support = _examples(train, "train", clips[0], classes, places)
    queries = _examples(asked, "val", clips[1], classes, places)
    left_out = clips[0].check(len(support)) + clips[1].check(len(queries))
    return Pools(support, queries, classes, left_out)


def _examples(
    records: list[Fields],
    split: str,
    clips: Clips,
    classes: tuple[str, ...],
    places: dict[str, int],
) -> list[Example]:
    examples = []
    for record in records:
        label, video = record.filled("label"), record.filled("youtube_id")
        if label not in places:
            raise record.wrong(f"column 'label' is {label!r}, which no training clip has")
        start, end = record.number("time_start"), record.number("time_end")
        if not 0 <= start < end:
            raise record.wrong(f"time_start {start:g} and time_end {end:g} are no part of a clip")
        name = f"{video}_{six_digits(start)}_{six_digits(end)}"
        clip = clips.part(video, start, end, name)
        if clip is not None:
            examples.append(
                Example(
                    f"{split}/{name}",
                    clip,
                    answers=(label,),
                    choices=classes,
                    right=places[label],
                    label=label,
                    about={"youtube_id": video},
                )
            )
    return examples


KINETICS700 = Entry(
    name="kinetics700",
    title="Kinetics-700",
    kind=CHOICE,
    metric="top1_top5",
    medium="video",
    page=_PAGE,
    licence="CC BY 4.0 for the annotations",
    needs=(
        Need("train.labels", ("annotations/train.csv", "train.csv"), "training classes", _PAGE),
        Need("val.labels", ("annotations/val.csv", "val.csv"), "validation classes", _PAGE),
        Need("train.clips", ("train",), "training clips", _PAGE),
        Need("val.clips", ("val",), "validation clips", _PAGE),
    ),
    splits=("val",),
    read=_read,
    development=7000,
)
