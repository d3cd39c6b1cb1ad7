"""Configs: overriding keeps types, typos are told in one line, JSON brings the same config back."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from flamingo_jax import config
from flamingo_jax.errors import InputError


def experiment() -> Any:
    c: Any = config.base()
    c.train.steps = 10
    c.train.datasets.pairs = config.dataset(source="folder", path="somewhere", batch=16)
    return c


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert message.strip() and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("train.steps", "20", 20),
        ("train.optimizer.lr", "3e-4", 3e-4),
        ("train.optimizer.lr", "1", 1.0),
        ("train.datasets.pairs.batch", "4", 4),
        ("train.datasets.pairs.path", "a=b.c", "a=b.c"),
        ("name", "7", "7"),
        ("model.language.gated", "true", True),
        ("model.language.gated", "False", False),
        ("stages", "('language', 'flamingo')", ("language", "flamingo")),
        ("stages", "['language']", ("language",)),
        ("stages", "language", ("language",)),
        ("eval.shots", "0,4", (0, 4)),
        ("train.optimizer.multipliers", "(('gate_', 5.0),)", (("gate_", 5.0),)),
    ],
)
def test_overrides_keep_the_type(field, text, value):
    c = experiment()
    config.override(c, field, text)
    node: Any = c
    for key in field.split("."):
        node = node[key]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("train.stepz", "did you mean 'steps'"),
        ("trian.steps", "did you mean 'train'"),
        ("train.datasets.pears.batch", "did you mean 'pairs'"),
        ("train.steps.more", "no field 'more' in train.steps"),
        ("train.qqqq", "it has"),
        ("", "there is no field"),
    ],
)
def test_a_typo_is_told_in_one_line(field, told):
    with pytest.raises(InputError) as error:
        config.override(experiment(), field, "1")
    message = one_line(error)
    assert told in message and f"--config.{field}" in message


@pytest.mark.parametrize(
    ("field", "text", "kind"),
    [
        ("train.steps", "many", "int"),
        ("train.steps", "1.5", "int"),
        ("train.optimizer.lr", "fast", "float"),
        ("model.language.gated", "1", "bool"),
        ("train.datasets", "1", "group of fields"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(field, text, kind):
    with pytest.raises(InputError) as error:
        config.override(experiment(), field, text)
    message = one_line(error)
    assert f"--config.{field}" in message and kind in message


def test_keys_are_locked_where_they_are_made():
    c = experiment()
    for node in (c, c.model, c.model.language, c.train, c.train.optimizer, c.train.datasets.pairs):
        with pytest.raises((KeyError, AttributeError)):
            node.no_such_field = 1
    with pytest.raises(KeyError):
        config.dataset(lenght=3)
    with pytest.raises(TypeError):
        c.train.steps = "ten"


def test_rows_of_datasets_have_every_field():
    row = config.dataset(length=7)
    assert row.length == 7 and row.layout == "pair"
    c = experiment()
    c.train.datasets.more = config.dataset(layout="page", images=5)
    assert set(config.finish(c).train.datasets) == {"pairs", "more"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", ("flamingo", "birds")),
        ("train.steps", 0),
        ("train.datasets.pairs.layout", "scroll"),
        ("train.datasets.pairs.batch", 0),
        ("train.micro_batches", 0),
        ("train.datasets.pairs.length", 0),
        ("train.datasets.pairs.images", 0),
        ("train.datasets.pairs.frames", 0),
        ("train.datasets.pairs.next_layout", "backwards"),
        ("model.language.kv_heads", 5),
        ("model.dtype", "float16"),
        ("model.remat", "some"),
        ("model.loss_chunk", -1),
        ("model.xattn.offset", 1),
        ("eval.split", "train"),
    ],
)
def test_finish_names_the_field(field, value):
    c = experiment()
    *parents, last = field.split(".")
    node: Any = c
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(InputError) as error:
        config.finish(c)
    assert last in one_line(error)


def test_finish_wants_datasets_and_freezes():
    c: Any = config.base()
    c.train.steps = 1
    with pytest.raises(InputError, match="datasets is empty"):
        config.finish(c)
    finished: Any = config.finish(experiment())
    with pytest.raises(AttributeError):
        finished.train.steps = 3
    assert isinstance(finished, FrozenConfigDict)


def test_an_unknown_field_of_a_dataset_is_refused():
    c = experiment()
    c.train.datasets.pairs = ConfigDict({**config.dataset().to_dict(), "lenght": 3})
    with pytest.raises(InputError, match="lenght"):
        config.finish(c)


def test_json_brings_the_same_config_back():
    c = experiment()
    c.train.optimizer.multipliers = (("gate_", 5.0),)
    c.train.optimizer.lr = 1.0
    finished = config.finish(c)
    text = config.to_json(finished)
    again: Any = config.from_json(text)
    assert again.to_dict() == finished.to_dict()
    assert config.to_json(again) == text
    assert config.to_json(c) == text
    assert again.train.optimizer.multipliers == (("gate_", 5.0),)
    assert type(again.train.optimizer.lr) is float
    assert text.endswith("}\n") and text.isascii()


def write(folder: pathlib.Path, source: str) -> pathlib.Path:
    path = folder / "experiment.py"
    path.write_text(source, encoding="utf-8")
    return path


GOOD = """
from flamingo_jax import config

def get_config(variant="full"):
    config.pick(variant, ("full", "tiny"))
    c = config.base()
    c.train.steps = 5 if variant == "tiny" else 50
    return c
"""


def test_a_file_and_its_variants(tmp_path):
    path = write(tmp_path, GOOD)
    assert config.load(str(path)).train.steps == 50
    assert config.load(f"{path}:tiny").train.steps == 5
    assert config.load(f"{path}:tiny", {"train.steps": "7"}).train.steps == 7
    with pytest.raises(InputError) as error:
        config.load(f"{path}:huge")
    assert "'huge'" in one_line(error) and "full, tiny" in one_line(error)


def test_files_that_are_no_configs(tmp_path):
    for spec, told in (
        (str(tmp_path / "absent.py"), "no config file"),
        (str(tmp_path), "no config file"),
        (str(write(tmp_path, "x = 1\n")), "get_config"),
    ):
        with pytest.raises(InputError) as error:
            config.load(spec)
        assert told in one_line(error)
