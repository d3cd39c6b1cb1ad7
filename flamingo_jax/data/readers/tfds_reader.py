"""TensorFlow Datasets as they were prepared on disk, without TensorFlow.

A set is opened from its folder, NAME[/CONFIG]/VERSION: neither its builder's code is imported nor
anything downloaded. Its shards are read as other ArrayRecord files are, with their check sums;
TFDS parses the examples. Images, alone or in sequences, stay encoded bytes.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import paths
from flamingo_jax.data.readers.array_records import Part, RawRecords
from flamingo_jax.data.readers.record import Record
from flamingo_jax.errors import InputError

_NAME = re.compile(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_OWN = "tensorflow_datasets.core.features."
_MAX_FEATURES = 1 << 24  # bytes of features.json


class TfdsReader:
    """The examples of one split; `record.Reader`.

    Fields are as the set declares them: text is str, labels are numbers, numbers and tensors are
    Python scalars and NumPy arrays, an image is bytes, a sequence of bytes or texts is a list.

    Attributes:
      names: the fields that every example has.
    """

    def __init__(self, records: RawRecords, features: Any) -> None:
        self._records = records
        self._features = features
        self._decoders = _decoders(features)
        self.names = tuple(features.keys())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """The example at `index`, in the order of the shards.

        Raises:
          BadRecord: if the example is damaged.
          IndexError: beyond the end.
        """
        key, data = self._records.read(index)
        try:
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
            return Record(key, _plain(example, self._features))
        except Exception as error:  # protobuf's DecodeError, KeyError, … of any feature's decoder
            raise BadRecord("damaged record", f"{key}: {error}"[:500]) from error


def open_tfds(name: str, data_dir: str, split: str) -> TfdsReader:
    """Opens a split of a prepared set.

    Args:
      name: "NAME", "NAME/CONFIG", "NAME:1.0.0" or "NAME/CONFIG:1.0.0"; the newest version if none
        is named, the only configuration likewise.
      data_dir: the folder that TFDS prepared it in (its `data_dir`).
      split: a split or a part of one: "train", "train[:90%]", "train+test".

    Raises:
      InputError: if there is no such set, version or split, or it was not prepared as ArrayRecord.
    """
    folder = _find(name, data_dir)
    _check_features(folder)
    try:
        builder = tfds.builder_from_directory(folder)
        features, splits, kind = (
            builder.info.features,
            builder.info.splits,
            builder.info.file_format,
        )
    except Exception as error:  # whatever broken metadata ends in
        raise InputError(f"TFDS cannot open {str(folder)!r}: {error}; prepare it again") from error
    if not isinstance(features, tfds.features.FeaturesDict):
        raise InputError(
            f"the examples of {str(folder)!r} have no fields by name; prepare the set with a "
            "tfds.features.FeaturesDict"
        )
    if kind is None or kind.value != "array_record":
        raise InputError(
            f"{str(folder)!r} is stored as {kind and kind.value}, which cannot be read in any "
            f"order; {_prepare(name, data_dir)}"
        )
    try:
        instructions = splits[split].file_instructions
    except Exception as error:  # KeyError, ValueError, AssertionError by how it is wrong
        raise InputError(
            f"{name!r} in {data_dir!r} has no split {split!r}; it has {', '.join(splits)}"
        ) from error
    parts = []
    for instruction in instructions:
        path = pathlib.Path(instruction.filename)
        if path.resolve().parent != folder.resolve():
            raise InputError(f"{str(folder)!r} has a shard outside of it; prepare it again")
        parts.append(Part(str(path), instruction.skip, instruction.take))
    return TfdsReader(RawRecords(parts), features)


def _prepare(name: str, data_dir: str) -> str:
    return f"prepare it: tfds build {name} --file_format=array_record --data_dir={data_dir}"


def _find(name: str, data_dir: str) -> pathlib.Path:
    """The folder of a set's version."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no name of a TFDS set; NAME, NAME/CONFIG or NAME:1.0.0")
    paths.refuse_url(data_dir, "TFDS sets")
    root = pathlib.Path(data_dir).expanduser()
    if not data_dir or not root.is_dir():
        raise InputError(f"there is no folder {data_dir!r} of TFDS sets; set the dataset's path")
    base, config, version = match.groups()
    folder = root / base
    if not folder.is_dir():
        there = [path.name for path in _folders(root) if _versions(path) or _configs(path)]
        raise InputError(
            f"there is no set {base!r} in {data_dir!r}, "
            f"which holds {', '.join(there) or 'none'}; " + _prepare(name, data_dir)
        )
    if config:
        folder /= config
    versions = _versions(folder)
    if not versions and not config:
        configs = _configs(folder)
        if len(configs) > 1:
            raise InputError(
                f"{base!r} in {data_dir!r} has the configurations {', '.join(configs)}; "
                f"name one: {base}/{configs[0]}"
            )
        if configs:
            versions = _versions(folder := folder / configs[0])
    if not versions:
        raise InputError(f"{name!r} in {data_dir!r} is not prepared; {_prepare(name, data_dir)}")
    if version and version not in versions:
        raise InputError(
            f"{base!r} in {data_dir!r} has no version {version}; it has {', '.join(versions)}"
        )
    return folder / (version or versions[-1])


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # no folder, or not ours to look into
        return []


def _versions(folder: pathlib.Path) -> list[str]:
    """The versions that are prepared to the end, the newest last."""
    found = [path for path in _folders(folder) if _VERSION.fullmatch(path.name)]
    whole = [path.name for path in found if (path / "dataset_info.json").is_file()]
    return sorted(whole, key=lambda version: tuple(map(int, version.split("."))))


def _configs(folder: pathlib.Path) -> list[str]:
    """The configurations of which a version is prepared."""
    return [path.name for path in _folders(folder) if _versions(path)]


def _check_features(folder: pathlib.Path) -> None:
    """Refuses features of others' making: TFDS would import the module that the file names."""
    path = folder / "features.json"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FEATURES)
        todo: list[Any] = [json.loads(text)]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}); prepare the set again"
        ) from error
    while todo:
        value = todo.pop()
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            with contextlib.suppress(
                ValueError, RecursionError
            ):  # JSON within JSON, of old versions
                todo.append(json.loads(value))
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
            for key in ("pythonClassName", "python_class_name", "type"):
                kind = value.get(key, _OWN)
                if not isinstance(kind, dict) and not str(kind).startswith(_OWN):
                    raise InputError(
                        f"{str(path)!r} has a feature of the class {kind!r}, which is not TFDS's "
                        "own; prepare the set with tfds.features alone"
                    )


class _Encoded(tfds.decode.SkipDecoding):
    """Leaves images encoded in sequences too, for which TFDS's own needs TensorFlow."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example

    def decode_ragged_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


def _decoders(feature: Any) -> Any:
    """The decoders of the images in a feature, nested as the feature; None if it has none."""
    if isinstance(feature, tfds.features.FeaturesDict):
        nested = {key: _decoders(part) for key, part in feature.items()}
        return {key: part for key, part in nested.items() if part is not None} or None
    if isinstance(feature, tfds.features.Sequence):
        return _decoders(feature.feature)
    return _Encoded() if isinstance(feature, tfds.features.Image) else None


def _plain(value: Any, feature: Any) -> Any:
    """An example's value with its texts as str and its sequences of bytes as lists."""
    if isinstance(value, dict):
        if isinstance(feature, tfds.features.Sequence):  # {name: list} of a sequence of dicts
            feature = feature.feature
        return {key: _plain(part, feature[key]) for key, part in value.items()}
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(part, feature) for part in value]
    if isinstance(value, bytes) and isinstance(feature, tfds.features.Text):
        return value.decode("utf-8")
    return value
