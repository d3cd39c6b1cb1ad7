"""`load` finds the newest sound step, whatever else a folder holds, and says what is wrong."""

import json
import shutil

import jax
import numpy as np
import pytest

from flamingo_jax import load, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import flatten_paths, map_paths
from flamingo_jax.use import from_parts

TOKENS = np.array([[256, 259, 97, 98, 258, 99, 100, 101]], np.int32)


@pytest.fixture
def copy(tiny_workdir, tmp_path):
    shutil.copytree(tiny_workdir.path, tmp_path / "copy")
    return tmp_path / "copy"


def logits(model) -> np.ndarray:
    return model.logits(TOKENS)


def assert_same(found, expected):
    found, expected = flatten_paths(found), flatten_paths(expected)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[path]), err_msg=path)


def damage(step):
    """Flips a bit in the largest file of a step's parameters."""
    files = [f for f in (step / "params").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def test_a_workdir_is_its_newest_step(tiny_workdir, flamingo):
    assert_same(flamingo.params, tiny_workdir.params[2])
    assert flamingo.about == {"path": str(tiny_workdir.path), "stage": "flamingo", "step": 2}
    assert flamingo.tokenizer.digest == tiny_workdir.tokenizer.digest
    assert flamingo.config.to_dict() == tiny_workdir.config.to_dict()


def test_a_step_and_a_stage(tiny_workdir):
    stage = tiny_workdir.path / "checkpoints" / "flamingo"
    assert_same(load(stage / "1").params, tiny_workdir.params[1])
    assert_same(load(str(stage)).params, tiny_workdir.params[2])


def test_without_moments(copy, tiny_workdir):
    shutil.rmtree(copy / "checkpoints" / "flamingo" / "2" / "opt")
    assert_same(load(copy).params, tiny_workdir.params[2])


def test_a_damaged_step_is_passed_over(copy, tiny_workdir):
    stage = copy / "checkpoints" / "flamingo"
    damage(stage / "2")
    with pytest.warns(UserWarning, match="step 2 is damaged.*using step 1"):
        model = load(copy)
    assert_same(model.params, tiny_workdir.params[1])
    assert model.about["step"] == 1
    with pytest.raises(InputError, match="damaged"):
        load(stage / "2")
    damage(stage / "1")
    with pytest.raises(InputError, match="no sound step"):
        load(copy)


def test_parts_in_memory_are_the_same_model(tiny_workdir, flamingo):
    parts = from_parts(tiny_workdir.config, tiny_workdir.tokenizer, tiny_workdir.params[2])
    np.testing.assert_array_equal(logits(parts), logits(flamingo))
    other = from_parts(tiny_workdir.config, tiny_workdir.tokenizer, tiny_workdir.params[1])
    assert np.abs(logits(other) - logits(flamingo)).max() > 1e-3


@pytest.mark.slow
def test_over_eight_devices(tiny_workdir, flamingo):
    mesh = sharding.make_mesh(1, 4, 2)
    spread = load(tiny_workdir.path, mesh=mesh)
    kernel = spread.params["language"]["blocks"]["query"]["kernel"]
    assert kernel.sharding.spec == sharding.spec("language/blocks/query/kernel", kernel.shape, mesh)
    assert not kernel.sharding.is_fully_replicated
    np.testing.assert_allclose(logits(spread), logits(flamingo), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_dtypes(half_workdir):
    run = half_workdir
    half, whole = load(run.path), load(run.path, dtype="float32")
    trained = half.params["resampler"]["latents"]
    assert half.params["language"]["norm"]["scale"].dtype == "bfloat16"
    assert trained.dtype == "float32"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(whole.params)} == {"float32"}
    assert_same(whole.params, map_paths(lambda _, a: np.asarray(a, np.float32), run.params[2]))
    gap = np.abs(logits(half) - logits(whole)).max()
    assert 1e-6 < gap < 0.5


def test_the_bare_language_model(copy, tiny_workdir, pictures):
    shutil.rmtree(copy / "checkpoints" / "flamingo")
    model = load(copy)
    assert model.about["stage"] == "language"
    assert_same(model.params, tiny_workdir.language)
    assert model.generate([["ab"]], 3) == model.generate([["ab"]], 3, stop=())
    assert np.isfinite(model.score([["ab"]], ["c", "dd"])).all()
    for prompt in (["ab<EOC>"], [pictures[0]]):
        with pytest.raises(InputError, match="bare language model"):
            model.generate([prompt])
    with pytest.raises(InputError, match="bare language model"):
        model.embed(pictures)


def test_refuses_folders_without_a_model(tiny_workdir, copy, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)
    (copy / "checkpoints" / "flamingo" / "7").mkdir()
    with pytest.raises(InputError, match=r"step 7.*missing"):
        load(copy / "checkpoints" / "flamingo" / "7")
    (copy / "checkpoints" / "flamingo" / "7").rmdir()
    with pytest.raises(InputError, match="dtype"):
        load(copy, dtype="float16")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(InputError, match="tokenizer"):
        load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        load(copy)
    shutil.copy(tiny_workdir.path / "config.json", copy)
    shutil.copytree(tiny_workdir.path / "tokenizer", copy / "tokenizer")
    shutil.rmtree(copy / "frozen")
    with pytest.raises(InputError, match="frozen"):
        load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint"):
        load(copy)


def test_refuses_another_config(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["resampler"]["latents"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="resampler/latents"):
        load(copy)


def test_a_field_added_since_has_its_default(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["model"]["xattn"]["attend"]
    (copy / "config.json").write_text(json.dumps(config))
    assert load(copy).config.model.xattn.attend == "one"


def test_refuses_parts_that_do_not_fit(tiny_workdir):
    whole = tiny_workdir.params[2]
    missing = {part: tree for part, tree in whole.items() if part != "resampler"}
    with pytest.raises(InputError, match="resampler"):
        from_parts(tiny_workdir.config, tiny_workdir.tokenizer, missing)
    with pytest.raises(InputError, match="extra"):
        from_parts(tiny_workdir.config, tiny_workdir.tokenizer, {**whole, "extra": np.zeros(2)})
