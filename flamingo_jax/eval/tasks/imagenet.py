"""ImageNet (ILSVRC 2012): one of 1,000 classes.

Pictures lie in folders of their WordNet ids, train/n01440764/*.JPEG. Those of the validation split
may lie together, their ids then being in LOC_val_solution.csv (ImageId, PredictionString:
"n01440764 and a box") or, a line each in the pictures' order, in
imagenet_2012_validation_synset_labels.txt. Classes are named by classnames.txt or
LOC_synset_mapping.txt, a line each: "n01440764 tench, Tinca tinca", of which the first name is
used, in the order of their WordNet ids.
"""

from __future__ import annotations

import os
import pathlib

from flamingo_jax.data.prompt import IMAGE_SUFFIXES
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CHOICE, Example
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import read_csv, read_lines

_PAGE = "https://www.image-net.org/download.php"
_KAGGLE = "https://www.kaggle.com/c/imagenet-object-localization-challenge/data"


def _read(files: Files) -> Pools:
    path = files.file("classes")
    names = dict(_class(line, path) for line in read_lines(path))
    ids = sorted(names)
    classes = tuple(names[ident] for ident in ids)
    places = {ident: place for place, ident in enumerate(ids)}
    pools = []
    for split in ("train", files.split):
        folder = files.pictures(f"{split}.pictures").folder
        examples = []
        for name, ident in _labelled(files, folder, split):
            if ident not in places:
                raise InputError(f"{folder / name} is of class {ident!r}, which {path} lacks")
            label = classes[places[ident]]
            examples.append(
                Example(
                    f"{split}/{pathlib.PurePosixPath(name).name}",
                    folder / name,
                    answers=(label,),
                    choices=classes,
                    right=places[ident],
                    label=label,
                    about={"wnid": ident},
                )
            )
        pools.append(examples)
    return Pools(pools[0], pools[1], classes)


def _class(line: str, path: pathlib.Path) -> tuple[str, str]:
    ident, _, names = line.partition(" ")
    if not names.strip():
        raise InputError(f"{path}: {line!r} is not a WordNet id and a name")
    return ident, names.split(",")[0].strip()


def _labelled(files: Files, folder: pathlib.Path, split: str) -> list[tuple[str, str]]:
    """(name below the folder, WordNet id) of every picture, in order."""
    names = sorted(os.listdir(folder))
    flat = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if split != "train" and flat:
        labels = _labels(files, flat)
        return [(name, labels[name]) for name in flat]
    found = [
        (f"{name}/{picture}", name)
        for name in names
        if (folder / name).is_dir()
        for picture in sorted(os.listdir(folder / name))
        if picture.lower().endswith(IMAGE_SUFFIXES)
    ]
    if not found:
        raise InputError(f"{folder} holds no folder of pictures; name folders by WordNet ids")
    return found


def _labels(files: Files, pictures: list[str]) -> dict[str, str]:
    path = files.file("val.labels")
    if path.suffix == ".csv":
        found = {
            record.filled("ImageId"): record.filled("PredictionString").split()[0]
            for record in read_csv(path, ("ImageId", "PredictionString"))
        }
    else:
        lines = read_lines(path)
        if len(lines) != len(pictures):
            raise InputError(f"{path} has {len(lines)} lines for {len(pictures)} pictures")
        found = dict(zip([name.split(".")[0] for name in pictures], lines, strict=True))
    missing = [name for name in pictures if name.split(".")[0] not in found]
    if missing:
        raise InputError(f"{path} has no class for the picture {missing[0]!r}")
    return {name: found[name.split(".")[0]] for name in pictures}


IMAGENET = Entry(
    name="imagenet",
    title="ImageNet",
    kind=CHOICE,
    metric="top1",
    medium="image",
    page=_PAGE,
    licence="non-commercial research and education",
    needs=(
        Need("classes", ("classnames.txt", "LOC_synset_mapping.txt"), "names of classes", _KAGGLE),
        Need("train.pictures", ("train", "ILSVRC/Data/CLS-LOC/train"), "training pictures", _PAGE),
        Need("val.pictures", ("val", "ILSVRC/Data/CLS-LOC/val"), "validation pictures", _PAGE),
        Need("val.labels",
             ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt"),
             "classes of validation pictures that lie in one folder", _KAGGLE, optional=True),
    ),
    splits=("val",),
    read=_read,
    development=10_000,
)  # fmt: skip
