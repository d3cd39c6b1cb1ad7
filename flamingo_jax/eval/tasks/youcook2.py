"""YouCook2: a sentence for each step of a recipe's recording.

youcookii_annotations_trainval.json: {"database": {VIDEO: {"subset": "training" or "validation",
"annotations": [{"id", "segment": [first second, last second], "sentence"}], …}}}.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CAPTION, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_json

_PAGE = "http://youcook2.eecs.umich.edu/download"


def _read(files: Files) -> Pools:
    clips = files.clips("all.clips")
    pools: dict[str, list[Example]] = {"training": [], "validation": []}
    for video, record in read_json(files.file("annotations")).record("database").items():
        subset = record.text("subset")
        if subset not in pools:
            raise record.wrong(f"field 'subset' is {subset!r}, not one of {', '.join(pools)}")
        for step in record.records("annotations"):
            key = f"{video}_{step.integer('id')}"
            segment = step.numbers("segment")
            if len(segment) != 2 or not 0 <= segment[0] < segment[1]:
                raise step.wrong("field 'segment' is not a first and a later second")
            sentence = step.filled("sentence")
            clip = clips.part(video, *segment, key)
            if clip is not None:
                about = {"video": video, "id": step.integer("id")}
                pools[subset].append(Example(key, clip, answers=(sentence,), about=about))
    queries = pools["validation"]
    return Pools(pools["training"], queries, left_out=clips.check(len(queries)))


YOUCOOK2 = Entry(
    name="youcook2",
    title="YouCook2",
    kind=CAPTION,
    metric="cider",
    medium="video",
    page=_PAGE,
    needs=(
        Need("annotations", ("youcookii_annotations_trainval.json",), "captions of all steps",
             _PAGE),
        Need("all.clips", ("raw_videos", "videos"), "recordings, or clips VIDEO_ID of steps",
             f"{_PAGE} (YouTube's ids)"),
    ),
    splits=("val",),
    read=_read,
)  # fmt: skip
