"""HatefulMemes: is a meme hateful? Its text is part of the prompt.

JSON lines: {"id", "img": "img/42953.png", "label": 0 or 1, "text"}. The paper asks "test_seen".
"""

from __future__ import annotations

import pathlib

from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_jsonl

CLASSES = ("no", "yes")
"""By label; in OpenFlamingo's order as well."""
_PAGE = "https://ai.meta.com/tools/hatefulmemes/"
_SPLITS = ("test_seen", "dev_seen", "test_unseen", "dev_unseen")


def _read(files: Files) -> Pools:
    return Pools(_examples(files, "train"), _examples(files, files.split), CLASSES)


def _examples(files: Files, split: str) -> list[Example]:
    path, pictures = files.file(f"{split}.memes"), files.pictures("all.pictures")
    examples = []
    for record in read_jsonl(path):
        label = record.integer("label")
        if label not in (0, 1):
            raise record.wrong(f"field 'label' is {label}, not 0 or 1")
        key = record.ident("id")
        examples.append(
            Example(
                key,
                pictures.named(_below_img(record.filled("img")), record.where),
                ocr=record.text("text"),
                answers=(CLASSES[label],),
                choices=CLASSES,
                right=label,
                label=CLASSES[label],
                about={"id": key},
            )
        )
    return examples


def _below_img(name: str) -> str:
    """The name below the folder `img`, which the annotations' names begin with."""
    parts = pathlib.PurePosixPath(name).parts
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "img" else parts)


HATEFUL_MEMES = Entry(
    name="hateful_memes",
    title="HatefulMemes",
    kind=CHOICE,
    metric="roc_auc",
    medium="image",
    page=_PAGE,
    licence="the Hateful Memes licence: research alone",
    needs=(
        Need("train.memes", ("train.jsonl",), "training memes", _PAGE),
        *(
            Need(f"{split}.memes", (f"{split}.jsonl",), f"memes of {split}", _PAGE, (split,))
            for split in _SPLITS
        ),
        Need("all.pictures", ("img",), "all pictures", _PAGE),
    ),
    splits=_SPLITS,
    read=_read,
)
