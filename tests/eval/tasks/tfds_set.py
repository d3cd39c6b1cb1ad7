"""A prepared set of TFDS, in the form of its `coco_captions`."""

import io
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLITS = {"train": (1, 2, 3), "test": (4, 5)}


class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures of one colour each."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="2014")
    ]
    name = "coco_captions"
    # Of builders in folders without __init__.py TFDS asks a package that it does not bring.
    __module__ = "coco_captions"

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
        return {split: self._generate_examples(numbers) for split, numbers in SPLITS.items()}

    def _generate_examples(self, numbers: tuple[int, ...]) -> Any:
        for number in numbers:
            file = io.BytesIO()
            Image.new("RGB", (4, 3), (number, 0, 0)).save(file, "PNG")
            captions = [{"id": place, "text": f"é {number}.{place}"} for place in range(2)]
            name = f"COCO_val2014_{number:012d}.jpg"
            yield (
                number,
                {
                    "image": io.BytesIO(file.getvalue()),
                    "image/filename": name,
                    "image/id": number,
                    "captions": captions,
                },
            )


def coco_tfds(root: pathlib.Path) -> None:
    """Prepares it."""
    builder = CocoCaptions(data_dir=root / "coco_tfds", file_format="array_record")
    builder.download_and_prepare()
