"""COCO captions as TensorFlow Datasets prepares them: Karpathy's splits, pictures inside.

    tfds build coco_captions --file_format=array_record --data_dir=ROOT/coco_tfds

An example of `coco_captions` has `image`, `image/id`, `image/filename` and `captions`, a sequence
of {"id", "text"}. Records are read when they are asked for, pictures only to be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers.record import Reader
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CAPTION, Example, Stored
from flamingo_jax.eval.tasks.captions import COCO_PAGE
from flamingo_jax.eval.tasks.entries import Entry, Files, Need, Pools
from flamingo_jax.eval.tasks.reading import Fields

_NAME = "coco_captions"


class _Captions(Sequence[Example]):
    """The examples of one split."""

    def __init__(self, reader: Reader, where: str) -> None:
        self._reader, self._where = reader, where

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        try:
            record = self._reader[index]
        except BadRecord as error:
            raise InputError(f"{self._where} cannot be read: {error}; prepare it again") from error
        fields = Fields(record.fields, self._where, ": ", record.key)
        number = fields.integer("image/id")
        texts = fields.record("captions").texts("text", least=1)
        picture = Stored(self._reader, index, "image")
        return Example(str(number), picture, answers=texts, about={"image_id": number})


def _read(files: Files) -> Pools:
    from flamingo_jax.data.readers.tfds_reader import open_tfds

    folder = files.pictures("all.pictures").folder

    def examples(split: str) -> _Captions:
        return _Captions(open_tfds(folder.name, str(folder.parent), split), f"{folder} {split}")

    return Pools(examples("train"), examples(files.split))


COCO_TFDS = Entry(
    name="coco_tfds",
    title="COCO captions (TFDS)",
    kind=CAPTION,
    metric="cider",
    medium="image",
    page=COCO_PAGE,
    licence="captions CC BY 4.0; pictures under their Flickr licences",
    needs=(
        Need(
            "all.pictures",
            (_NAME,),
            "the set as TFDS prepares it",
            f"`tfds build {_NAME} --file_format=array_record`",
        ),
    ),
    splits=("test", "val"),
    read=_read,
    development=5000,
)
