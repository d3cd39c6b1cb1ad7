"""ScienceQA: school questions with choices, about half of them with a picture.

problems.json: {ID: {"question", "choices", "answer" (an index), "hint", "image" ("image.png" or
null), "split", …}}; pid_splits.json: {"train": [IDs], "val", "test", "minitest", …}; pictures:
images/SPLIT/ID/image.png. Only questions with a picture are read ("IMG" in the authors' tables);
the splits "test-all", "val-all" and "minitest-all" read the others too, which show no medium.
"""

from __future__ import annotations

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pictures, Pools
from flamingo_jax.eval.tasks.reading import Fields, read_json

_PAGE = "https://github.com/lupantech/ScienceQA"
_ALL = "-all"


def _read(files: Files) -> Pools:
    problems, splits = read_json(files.file("problems")), read_json(files.file("splits"))
    pictures = files.pictures("all.pictures")
    everything = files.split.endswith(_ALL)
    known = dict(problems.items())
    pools = []
    for split in ("train", files.split.removesuffix(_ALL)):
        examples = []
        for ident in splits.texts(split):
            if ident not in known:
                raise splits.wrong(f"{split!r} names the problem {ident!r}, which problems lack")
            if everything or "image" in known[ident]:
                examples.append(_example(ident, known[ident], pictures))
        pools.append(examples)
    return Pools(*pools)


def _example(ident: str, record: Fields, pictures: Pictures) -> Example:
    choices, right = record.texts("choices", least=1), record.integer("answer")
    if not 0 <= right < len(choices):
        raise record.wrong(f"field 'answer' is {right}, not from 0 to {len(choices) - 1}")
    picture = None
    if "image" in record:
        name = f"{record.filled('split')}/{ident}/{record.filled('image')}"
        picture = pictures.named(name, record.where)
    return Example(
        ident,
        picture,
        record.filled("question"),
        context=record.text("hint", "").strip(),
        answers=(choices[right],),
        choices=choices,
        right=right,
        about={"id": ident, "subject": record.text("subject", "")},
    )


SCIENCEQA = Entry(
    name="scienceqa",
    title="ScienceQA",
    kind=CHOICE,
    metric="top1",
    medium="image",
    page=_PAGE,
    licence="CC BY-NC-SA 4.0",
    needs=(
        Need("problems", ("problems.json",), "all problems", _PAGE),
        Need("splits", ("pid_splits.json",), "which problems are of which split", _PAGE),
        Need("all.pictures", ("images",), "all pictures", _PAGE),
    ),
    splits=tuple(
        f"{split}{which}" for which in ("", _ALL) for split in ("test", "val", "minitest")
    ),
    read=_read,
)
