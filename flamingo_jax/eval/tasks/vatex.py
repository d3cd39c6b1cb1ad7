"""VATEX: ten English captions of each ten-second clip of Kinetics.

[{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": [texts], "chCap": …}]: YouTube's id, the first
and the last second. Queries are of the public test split, whose captions are given.
"""

from __future__ import annotations

import re

from flamingo_jax.eval.examples import CAPTION, Example
from flamingo_jax.eval.tasks.entries import Clips, Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json_list

_PAGE = "https://eric-xw.github.io/vatex-website/download.html"
_CLIPS = "YouTube, by the ids in the caption files (Kinetics-600)"
_NAME = re.compile(r"(.+)_([0-9]{6})_([0-9]{6})")


def _read(files: Files) -> Pools:
    clips = files.clips("all.clips")
    support = _examples(files, "train", clips)
    queries = _examples(files, files.split, clips)
    return Pools(support, queries, left_out=clips.check(len(queries)))


def _examples(files: Files, split: str, clips: Clips) -> list[Example]:
    examples = []
    for record in read_json_list(files.file(f"{split}.captions")):
        name, captions = record.filled("videoID"), record.texts("enCap", least=1)
        match = _NAME.fullmatch(name)
        if match is None or not int(match[2]) < int(match[3]):
            raise record.wrong(f"field 'videoID' is {name!r}, not an id and two times")
        clip = clips.part(match[1], float(match[2]), float(match[3]), name)
        if clip is not None:
            examples.append(Example(name, clip, answers=captions, about={"videoID": name}))
    return examples


VATEX = Entry(
    name="vatex",
    title="VATEX",
    kind=CAPTION,
    metric="cider",
    medium="video",
    page=_PAGE,
    licence="CC BY 4.0 for the captions",
    needs=(
        Need("train.captions", ("vatex_training_v1.0.json",), "training captions", _PAGE),
        Need("test.captions", ("vatex_public_test_english_v1.1.json",), "public test captions",
             _PAGE, ("test",)),
        Need("val.captions", ("vatex_validation_v1.0.json",), "validation captions",
             _PAGE, ("val",)),
        Need("all.clips", ("videos",), "all clips", _CLIPS),
    ),
    splits=("test", "val"),
    read=_read,
    development=1024,
)  # fmt: skip
