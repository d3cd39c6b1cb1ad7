"""TFDS sets from disk without TensorFlow: images stay encoded, wrong names are told."""

import io
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import tfds_reader
from flamingo_jax.data.sources import SourceSpec, open_source
from flamingo_jax.errors import InputError

TRAIN, TEST = 11, 3


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue() + b"\0\0"  # NumPy's bytes would lose zeros at the end


def example(i: int) -> dict[str, Any]:
    return {
        "image": png(i),
        "text": f"é {i}",
        "images": [png(i), png(i + 1)][: i % 3],
        "objects": [{"crop": png(i), "name": "ö"}, {"crop": png(0), "name": ""}][: i % 3],
        "nested": {"image": png(99), "texts": ["a", "b"][: i % 3]},
        "label": i % 2,
        "vector": np.arange(3, dtype=np.float32) + i,
    }


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    name = "tiny"
    # Of builders in folders without __init__.py TFDS asks a package that it does not bring.
    __module__ = "tiny"

    def _info(self) -> Any:
        image = tfds.features.Image
        features = tfds.features.FeaturesDict(
            {
                "image": image(shape=(None, None, 3)),
                "text": tfds.features.Text(),
                "images": tfds.features.Sequence(image()),
                "objects": tfds.features.Sequence({"crop": image(), "name": tfds.features.Text()}),
                "nested": {
                    "image": image(),
                    "texts": tfds.features.Sequence(tfds.features.Text()),
                },
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
                "vector": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

    def _generate_examples(self, count: int) -> Any:
        def streams(value: Any) -> Any:
            """Encoded images go into a set as files: pixels would need TensorFlow."""
            if isinstance(value, dict):
                return {key: streams(part) for key, part in value.items()}
            if isinstance(value, list):
                return [streams(part) for part in value]
            return io.BytesIO(value) if isinstance(value, bytes) else value

        for i in range(count):
            yield i, streams(example(i))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def copied(prepared: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(prepared, tmp_path / "sets")
    return tmp_path / "sets"


def folder_of(data_dir: pathlib.Path) -> pathlib.Path:
    return data_dir / "tiny" / str(Tiny.VERSION)


def shard_of(data_dir: pathlib.Path, split: str) -> pathlib.Path:
    (shard,) = folder_of(data_dir).glob(f"tiny-{split}.array_record*")
    return shard


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return type(found) is type(expected) and found == expected


def test_examples_as_they_are_stored(prepared: pathlib.Path) -> None:
    reader = tfds_reader.open_tfds("tiny", str(prepared), "train")
    assert len(reader) == TRAIN
    seen = set()
    for index in range(TRAIN):
        fields = dict(reader[index].fields)
        i = int(fields["text"].split()[1])  # TFDS shuffles as it writes
        expected = example(i)
        objects = expected.pop("objects")  # a sequence of dicts is a dict of lists
        assert fields.pop("objects") == {
            "crop": [item["crop"] for item in objects],
            "name": [item["name"] for item in objects],
        }
        assert fields.keys() == expected.keys()
        assert all(same(fields[key], expected[key]) for key in expected)
        seen.add((i, reader[index].key))
    assert {i for i, _ in seen} == set(range(TRAIN)) and len({key for _, key in seen}) == TRAIN
    for index in (-1, TRAIN):
        with pytest.raises(IndexError):
            reader[index]


def test_parts_of_splits(prepared: pathlib.Path) -> None:
    whole = tfds_reader.open_tfds("tiny:1.2.0", str(prepared), "train")
    part = tfds_reader.open_tfds("tiny", str(prepared), "train[2:5]")
    assert [part[i].key for i in range(len(part))] == [whole[i].key for i in range(2, 5)]
    assert part[0].fields["text"] == whole[2].fields["text"]
    assert len(tfds_reader.open_tfds("tiny", str(prepared), "train+test")) == TRAIN + TEST


def test_tensorflow_is_not_imported(prepared: pathlib.Path) -> None:
    code = (
        "import sys\n"
        "from flamingo_jax.data.readers import tfds_reader\n"
        f"reader = tfds_reader.open_tfds('tiny', {str(prepared)!r}, 'test')\n"
        "assert reader[0].fields['image'][:4] == b'\\x89PNG'\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "split", "word"),
    [
        ("mnist", "train", r"no set 'mnist' in .*holds tiny; .*tfds build mnist .*array_record"),
        ("tiny:9.9.9", "train", r"no version 9\.9\.9; it has 1\.2\.0"),
        ("tiny/large", "train", "not prepared"),
        ("tiny", "validation", r"no split 'validation'; it has .*test"),
        ("tiny", "train[", "no split"),
        ("tiny", "train[50:]", "no split"),
        ("tiny", "", "no split"),
        ("../tiny", "train", "no name of a TFDS set"),
        ("tiny/../tiny", "train", "no name of a TFDS set"),
        ("tiny/..", "train", "not prepared"),
        ("", "train", "no name of a TFDS set"),
        ("huggingface:tiny", "train", "no name of a TFDS set"),
    ],
)
def test_wrong_names(prepared: pathlib.Path, name: str, split: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        tfds_reader.open_tfds(name, str(prepared), split)


def test_missing_folders(tmp_path: pathlib.Path) -> None:
    for path in ("", str(tmp_path / "none")):
        with pytest.raises(InputError, match="there is no folder"):
            tfds_reader.open_tfds("tiny", path, "train")


def test_versions_and_configurations(copied: pathlib.Path) -> None:
    for version in ("1.10.0", "1.9.0"):
        shutil.copytree(folder_of(copied), copied / "tiny" / version)
    (copied / "tiny" / "2.0.0").mkdir()  # of a preparation that was broken off
    assert tfds_reader._find("tiny", str(copied)).name == "1.10.0"
    assert tfds_reader._find("tiny:1.9.0", str(copied)).name == "1.9.0"
    shutil.copytree(copied / "tiny", copied / "other" / "small")
    assert tfds_reader._find("other", str(copied)) == copied / "other" / "small" / "1.10.0"
    shutil.copytree(copied / "tiny", copied / "other" / "large")
    with pytest.raises(InputError, match="configurations large, small; name one: other/large"):
        tfds_reader._find("other", str(copied))
    assert tfds_reader._find("other/small:1.2.0", str(copied)).parent.name == "small"


def test_names_of_fields(prepared: pathlib.Path) -> None:
    """Those that a corpus needs and the set has not are told when it is opened."""
    reader = tfds_reader.open_tfds("tiny", str(prepared), "train")
    assert set(reader.names) == example(0).keys()
    path = f"tfds:tiny@{prepared}"
    source = open_source(SourceSpec("pairs", path))
    assert len(source) == TRAIN
    assert len(open_source(SourceSpec("pairs", f"{path}#test"))) == TEST
    options = {"media": ["photo", "foto"]}
    with pytest.raises(
        InputError, match=r"none of the fields photo, foto .* but .*image.*; name yours"
    ):
        open_source(SourceSpec("pairs", path, options=options))
    with pytest.raises(
        InputError, match=r"none of the fields images, json .*'obelics'|texts, json"
    ):
        open_source(SourceSpec("obelics", path))
    # The split that is asked for, where the path names none.
    both = SourceSpec("pairs", path, validation_path=path)
    with pytest.raises(InputError, match="no split 'validation'; it has"):
        open_source(both, "validation")
    mine = SourceSpec("pairs", path, validation_path=f"{path}#test")
    assert len(open_source(mine, "validation")) == TEST and len(open_source(mine)) == TRAIN


def test_examples_without_names(prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = tfds.features.Text()
    builder = tfds.builder_from_directory(folder_of(prepared))
    monkeypatch.setattr(type(builder.info), "features", property(lambda info: features))
    with pytest.raises(InputError, match=r"no fields by name; .*FeaturesDict"):
        tfds_reader.open_tfds("tiny", str(prepared), "train")


def test_another_format(copied: pathlib.Path) -> None:
    info = folder_of(copied) / "dataset_info.json"
    about = json.loads(info.read_text())
    info.write_text(json.dumps(about | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"stored as tfrecord.*--file_format=array_record"):
        tfds_reader.open_tfds("tiny", str(copied), "train")


def test_features_never_import_a_module(
    copied: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TFDS imports the module that features.json names; ours refuses what is not TFDS's."""
    (tmp_path / "evil_feature.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = folder_of(copied) / "features.json"
    own = "tensorflow_datasets.core.features.text_feature.Text"
    text = features.read_text()
    assert own in text
    inside = json.dumps({"feature": {"type": "evil_feature.Text"}})
    for evil in (
        text.replace(own, "evil_feature.Text"),
        json.dumps({"type": "evil_feature.Text", "content": {}}),
        json.dumps({"pythonClassName": own, "json": {"json": inside}}),
    ):
        features.write_text(evil)
        with pytest.raises(InputError, match="not TFDS's own"):
            tfds_reader.open_tfds("tiny", str(copied), "train")


def test_shards_outside_of_the_set(copied: pathlib.Path) -> None:
    shutil.copy(shard_of(copied, "train"), copied / "tiny")
    info = folder_of(copied) / "dataset_info.json"
    info.write_text(info.read_text().replace("{DATASET}-{SPLIT}", "../{DATASET}-{SPLIT}"))
    with pytest.raises(InputError):
        tfds_reader.open_tfds("tiny", str(copied), "train")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1}'])
def test_broken_metadata(copied: pathlib.Path, name: str, text: str) -> None:
    (folder_of(copied) / name).write_text(text)
    with pytest.raises(InputError):
        tfds_reader.open_tfds("tiny", str(copied), "train")


def test_broken_shards(copied: pathlib.Path) -> None:
    shard = shard_of(copied, "train")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="truncated"):
        tfds_reader.open_tfds("tiny", str(copied), "train")
    # Another split's shard in its place has too few examples.
    shutil.copy(shard_of(copied, "test"), shard)
    with pytest.raises(InputError, match=f"has {TEST} records, {TRAIN} are needed"):
        tfds_reader.open_tfds("tiny", str(copied), "train")
    shard.unlink()
    with pytest.raises(InputError):
        tfds_reader.open_tfds("tiny", str(copied), "train")
    broken = bytearray(whole)
    broken[64 + 40] ^= 1  # of the first record, behind the file's signature and its own header
    shard.write_bytes(broken)
    reader = tfds_reader.open_tfds("tiny", str(copied), "train")
    bad = 0
    for index in range(TRAIN):
        try:
            assert Image.open(io.BytesIO(reader[index].fields["image"])).size == (4, 4)
        except BadRecord:
            bad += 1
    assert bad == 1


@pytest.mark.parametrize("data", [b"", b"\n\0", b"\xff" * 40, b"hello"])
def test_records_that_are_no_examples(
    prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    reader = tfds_reader.open_tfds("tiny", str(prepared), "train")
    monkeypatch.setattr(reader._records, "read", lambda index: ("key", data))
    with pytest.raises(BadRecord, match="damaged record"):
        reader[0]
