"""Weight tables: stacking, transforms, and errors that name everything at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from flamingo_jax.errors import InputError
from flamingo_jax.pretrained import table as tables
from flamingo_jax.pretrained.files import read_json, read_safetensors
from flamingo_jax.pretrained.table import HALVES, LINEAR, SCALAR, Row, convert, revert

TABLE = (
    Row("embed", "embed/table"),
    Row("layers.{layer}.q", "blocks/query/kernel", LINEAR),
    Row("layers.{layer}.kv", ("blocks/key/kernel", "blocks/value/kernel"), HALVES),
    Row("layers.{layer}.gate", "blocks/gate", SCALAR),
)


def shape(*dims: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def abstract() -> dict:
    return {
        "embed": {"table": shape(5, 4)},
        "blocks": {
            "query": {"kernel": shape(2, 4, 6)},
            "key": {"kernel": shape(2, 4, 3)},
            "value": {"kernel": shape(2, 4, 3)},
            "gate": shape(2),
        },
    }


def foreign() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (5, 4)}
    for i in range(2):
        shapes |= {f"layers.{i}.q": (6, 4), f"layers.{i}.kv": (6, 4), f"layers.{i}.gate": (1,)}
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}


def problems(weights: dict, wanted: dict | None = None) -> list[str]:
    with pytest.raises(InputError) as error:
        convert(TABLE, weights, wanted or abstract())
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_layers_are_stacked_and_fused_kernels_split():
    weights = foreign()
    params = convert(TABLE, weights, abstract())
    for i in range(2):
        kv = weights[f"layers.{i}.kv"]
        np.testing.assert_array_equal(
            params["blocks"]["query"]["kernel"][i], weights[f"layers.{i}.q"].T
        )
        np.testing.assert_array_equal(params["blocks"]["key"]["kernel"][i], kv[:3].T)
        np.testing.assert_array_equal(params["blocks"]["value"]["kernel"][i], kv[3:].T)
        assert params["blocks"]["gate"][i] == weights[f"layers.{i}.gate"][0]
    back = revert(TABLE, params)
    assert set(back) == set(weights)
    assert all((back[name] == array).all() for name, array in weights.items())


def test_foreign_indices_may_be_a_function_of_ours():
    row = Row("blocks.{layer*4+3}.gate", "gate")
    assert [row.match(f"blocks.{i}.gate") for i in range(8)] == [None] * 3 + [
        0,
        None,
        None,
        None,
        1,
    ]
    assert row.match("blocks.3.gate.more") is None
    assert [row.foreign(layer) for layer in (0, 1)] == ["blocks.3.gate", "blocks.7.gate"]
    assert Row("a.0.b{layer+1}", "x").match("a.0.b0") is None
    assert Row("a+b", "x").match("aab") is None, "names are literal"


def test_all_problems_come_at_once():
    weights = foreign()
    del weights["layers.1.q"]
    weights["layers.0.kv"] = np.zeros((6, 5), np.float32)
    weights["layers.2.gate"] = np.zeros(1, np.float32)
    weights["optimizer"] = np.zeros(1, np.float32)
    weights["embed"] = np.zeros((5, 4), np.int64)
    found = problems(weights)
    expected = [
        "missing: 'layers.1.q', for blocks/query/kernel",
        "wrong shape: 'layers.0.kv' is [6, 5], which gives [5, 3] for blocks/key/kernel; "
        "it needs [4, 3]",
        "wrong shape: 'layers.0.kv' is [6, 5], which gives [5, 3] for blocks/value/kernel; "
        "it needs [4, 3]",
        "unexpected: 'layers.2.gate' is for layer 2 of blocks/gate: [2, …]",
        "unexpected: 'optimizer' is in no row of the table",
        "wrong dtype: 'embed' is int64, not floating",
    ]
    assert sorted(found) == sorted(expected)


def test_a_gate_of_several_values_is_refused():
    weights = foreign()
    weights["layers.0.gate"] = np.zeros(4, np.float32)
    (line,) = problems(weights)
    assert line.startswith("wrong shape: 'layers.0.gate' is [4]")


def test_what_no_row_gives_is_named():
    wanted = abstract()
    wanted["head"] = {"kernel": shape(4, 5)}
    assert problems(foreign(), wanted) == ["missing: no row of the table gives head/kernel"]
    del wanted["head"], wanted["embed"]
    (line,) = problems(foreign(), wanted)
    assert "'embed' is for embed/table, which this model does not have" in line


def test_long_lists_are_cut():
    weights = {f"x{i}": np.zeros(1, np.float32) for i in range(tables.LINES)} | foreign()
    weights.pop("embed")
    lines = problems(weights)
    assert len(lines) == tables.LINES + 1 and lines[-1] == "… and 1 more"


@pytest.mark.parametrize(
    ("transform", "dims"),
    [
        (tables.SAME, (3, 2)), (tables.LINEAR, (3, 2)), (tables.HALVES, (4, 3)),
        (tables.CONV, (5, 4, 3, 2)), (tables.POINTWISE, (5, 4, 1, 1)),
        (tables.CHANNELS, (5, 1, 1, 1)), (tables.SCALAR, (1,)), (tables.ROWS, (3, 1, 4)),
    ],
)  # fmt: skip
def test_transforms_go_there_and_back(transform, dims):
    array = np.random.default_rng(0).standard_normal(dims)
    np.testing.assert_array_equal(transform.back(*transform.there(array)), array)


def test_dtypes_are_those_wanted(tmp_path):
    """Also from a file in bf16, as weights are often published."""
    weights = {name: a.astype(jnp.bfloat16) for name, a in foreign().items()}
    save_file(weights, tmp_path / "model.safetensors")
    read = read_safetensors(tmp_path)
    wanted = abstract()
    wanted["embed"]["table"] = shape(5, 4, dtype=jnp.bfloat16)
    params = convert(TABLE, read, wanted)
    assert params["embed"]["table"].dtype == jnp.bfloat16
    assert params["blocks"]["gate"].dtype == np.float32
    np.testing.assert_array_equal(
        params["blocks"]["query"]["kernel"][0], weights["layers.0.q"].T.astype(np.float32)
    )


def test_shards_of_a_folder_are_joined(tmp_path):
    weights = foreign()
    names = sorted(weights)
    save_file({n: weights[n] for n in names[:3]}, tmp_path / "model-1.safetensors")
    save_file({n: weights[n] for n in names[3:]}, tmp_path / "model-2.safetensors")
    assert set(read_safetensors(tmp_path)) == set(weights)
    save_file({names[0]: weights[names[0]]}, tmp_path / "model-3.safetensors")
    with pytest.raises(InputError, match="in two files"):
        read_safetensors(tmp_path)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no weights"):
        read_safetensors(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        read_safetensors(tmp_path)
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    for name in ("config.json", "none.json"):
        with pytest.raises(InputError, match=name):
            read_json(tmp_path / name)
