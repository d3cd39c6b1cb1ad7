"""A damaged folder is told from a sound one: older values come back or none, never wrong ones."""

import gc
import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax import checkpoint
from flamingo_jax.errors import InputError

# What Orbax leaves behind when several arrays of a folder are broken.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SHARDED = PartitionSpec("fsdp")


def shard(tree):
    """The tree on eight devices, rows of matrices apart."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    return jax.tree.map(
        lambda x: jax.device_put(
            x, NamedSharding(mesh, SHARDED if x.ndim == 2 else PartitionSpec())
        ),
        tree,
    )


def host_state(step: int):
    """The parameters and an optimizer's state that belong to a step."""
    rng = np.random.default_rng(step)
    params = {
        "resampler": {"latents": rng.standard_normal((8, 6)).astype(np.float32)},
        "embed": {"new": rng.integers(0, 256, (8, 4), np.uint8).view(jnp.bfloat16)},
    }
    return params, {"count": np.asarray(step, np.int32), "mu": params["resampler"]}


def state(step: int):
    return shard(host_state(step))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, want):
    assert jax.tree.structure(tree) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def open_stage(folder, reports=None) -> checkpoint.StageCheckpoints:
    report = None if reports is None else lambda step, text: reports.append((step, text))
    return checkpoint.StageCheckpoints(folder, keep=3, every=1, report=report)


def save_steps(folder, *steps: int) -> None:
    with open_stage(folder) as stage:
        for step in steps:
            params, opt = state(step)
            assert stage.save(step, params, opt, {"config": {"seed": 7}})


def restore(stage: checkpoint.StageCheckpoints):
    params, opt = abstract(state(0))
    return stage.restore(params, opt)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture(autouse=True)
def collect():
    """What Orbax leaves behind is complained of here, and not in whatever test runs next."""
    yield
    gc.collect()


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return tmp_path / "checkpoints" / "flamingo"


def damage(path: pathlib.Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "garbage":
        path.write_bytes(random.Random(0).randbytes(len(data)))
    else:
        path.unlink()


OTHERS = ("cut", "garbage", "remove")


@pytest.mark.parametrize(
    "how", ["flip", *(pytest.param(how, marks=pytest.mark.slow) for how in OTHERS)]
)
def test_damaged_files_never_give_wrong_values(folder, how):
    """Each file of the newest step is damaged in turn: the same values come back, or older ones."""
    save_steps(folder, 200, 300)
    sound = folder.parent / "sound"
    shutil.copytree(folder / "300", sound)
    files = sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file())
    walked_back = set()
    for file in files:
        if not (folder / "300" / file).stat().st_size and how != "remove":
            continue
        damage(folder / "300" / file, how)
        reports = []
        with open_stage(folder, reports=reports) as stage:
            restored = restore(stage)
            assert restored is not None
            assert_same((restored.params, restored.opt), host_state(restored.step))
            assert stage.steps() == ([200] if restored.step == 200 else [200, 300])
        if restored.step == 200:
            walked_back.add(file.parts[0])
            ((step, text),) = reports
            assert step == 300
            assert text.startswith("step 300 is damaged (") and "using step 200" in text
            assert (folder / "300.damaged").is_dir() and not (folder / "300").exists()
            shutil.rmtree(folder / "300.damaged")
        else:
            assert not reports
            shutil.rmtree(folder / "300")
        shutil.copytree(sound, folder / "300")
    assert walked_back >= {"params", "opt", "meta"}


def test_flipped_values_are_told_by_their_path(folder):
    """The case that Orbax does not see: a byte of the stored numbers themselves."""
    rows = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    params = {"a": rows, "b": np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)}
    with open_stage(folder) as stage:
        stage.save(1, params, {}, {})
        stage.save(2, params, {}, {})
    largest = largest_file(folder / "2")
    assert largest.stat().st_size > 45_000
    damage(largest, "flip")
    with pytest.raises(InputError, match="the fingerprint of params/b differs"):
        checkpoint.load_params(folder, step=2)


@pytest.mark.parametrize("item", ["params", "opt", "meta"])
def test_missing_items(folder, item):
    save_steps(folder, 1, 2)
    shutil.rmtree(folder / "2" / item)
    reports = []
    with open_stage(folder, reports=reports) as stage:
        restored = restore(stage)
    assert restored is not None and restored.step == 1
    assert reports == [
        (
            2,
            f"step 2 is damaged (its {item} {'is' if item == 'meta' else 'are'} missing), using "
            "step 1; the damaged one is kept as 2.damaged",
        )
    ]


def test_a_damaged_step_can_be_saved_again(folder):
    save_steps(folder, 1, 2)
    for again in ("2.damaged", "2.damaged-2"):
        shutil.rmtree(folder / "2" / "meta")
        with open_stage(folder) as stage:
            restored = restore(stage)
            assert restored is not None and restored.step == 1
            assert (folder / again).is_dir()
            params, opt = state(2)
            assert stage.save(2, params, opt, {})
            restored = restore(stage)
        assert restored is not None and restored.step == 2
        assert_same(restored.params, host_state(2)[0])


def test_meta_of_another_step(folder):
    save_steps(folder, 1, 2)
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    with open_stage(folder) as stage:
        restored = restore(stage)
    assert restored is not None and restored.step == 1


def test_a_changed_meta_is_damage(folder):
    save_steps(folder, 1, 2)
    path = folder / "2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["config"]["seed"] = 8
    path.write_text(json.dumps(meta))
    with open_stage(folder) as stage:
        restored = restore(stage)
    assert restored is not None and restored.meta["config"] == {"seed": 7}


def test_nothing_sound_is_the_users_to_decide(folder):
    """A run of weeks must not begin anew because its disk cannot be read today."""
    save_steps(folder, 1, 2)
    for step in ("1", "2"):
        shutil.rmtree(folder / step / "params")
    with open_stage(folder) as stage, pytest.raises(InputError, match=r"no sound step .*step 2"):
        restore(stage)
    assert checkpoint.list_steps(folder) == [1, 2]
    with pytest.raises(InputError, match="no sound step"):
        checkpoint.load_params(folder)


def test_load_params_passes_over_damage_and_touches_nothing(folder):
    save_steps(folder, 1, 2)
    shutil.rmtree(folder / "2" / "opt")
    assert checkpoint.load_params(folder).step == 2
    damage(folder / "2" / "params" / "_METADATA", "cut")
    reports = []
    loaded = checkpoint.load_params(folder, report=lambda step, text: reports.append((step, text)))
    assert loaded.step == 1 and "using step 1" in reports[0][1]
    assert checkpoint.list_steps(folder) == [1, 2]
    with pytest.raises(InputError, match="step 2"):
        checkpoint.load_params(folder, step=2)


def test_frozen(tmp_path):
    tree = {
        "vision": {"w": host_state(0)[0]["embed"]["new"]},
        "language": {"n": np.ones(3, np.int32)},
    }
    digest = checkpoint.save_frozen(tmp_path, tree)
    folder = tmp_path / "frozen" / digest
    assert checkpoint.save_frozen(tmp_path, shard(tree)) == digest
    assert [entry.name for entry in folder.parent.iterdir()] == [digest]
    assert_same(checkpoint.load_frozen(tmp_path, digest), tree)
    target = abstract(shard(tree))
    loaded = checkpoint.load_frozen(tmp_path, digest, target)
    assert loaded["vision"]["w"].sharding == target["vision"]["w"].sharding
    assert_same(loaded, tree)
    changed = {**tree, "language": {"n": np.asarray([1, 1, 2], np.int32)}}
    assert checkpoint.save_frozen(tmp_path, changed) != digest
    target["vision"]["w"] = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    with pytest.raises(InputError, match="vision/w"):
        checkpoint.load_frozen(tmp_path, digest, target)
    with pytest.raises(InputError, match="missing"):
        checkpoint.load_frozen(tmp_path, "0" * 32)
    empty = checkpoint.save_frozen(tmp_path, {})
    assert checkpoint.load_frozen(tmp_path, empty, {}) == {}


def test_damaged_frozen_weights(tmp_path):
    tree = {"w": np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)}
    digest = checkpoint.save_frozen(tmp_path, tree)
    folder = tmp_path / "frozen" / digest
    sound = tmp_path / "sound"
    shutil.copytree(folder, sound)
    for how in ("flip", "cut", "remove"):
        for file in sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file()):
            if not (folder / file).stat().st_size and how != "remove":
                continue
            damage(folder / file, how)
            try:
                assert_same(checkpoint.load_frozen(tmp_path, digest), tree)
            except InputError as error:
                assert str(folder) in str(error) and "damaged" in str(error)
            shutil.rmtree(folder)
            shutil.copytree(sound, folder)
    damage(largest_file(folder), "flip")
    with pytest.raises(InputError, match="fingerprint of params/w differs"):
        checkpoint.load_frozen(tmp_path, digest)
    assert checkpoint.save_frozen(tmp_path, tree) == digest
    assert_same(checkpoint.load_frozen(tmp_path, digest), tree)
    assert folder.with_name(f"{digest}.damaged").is_dir()


def test_frozen_weights_of_another_digest(tmp_path):
    digests = [checkpoint.save_frozen(tmp_path, {"w": np.full(3, i, np.int32)}) for i in range(2)]
    frozen = tmp_path / "frozen"
    shutil.rmtree(frozen / digests[0])
    shutil.copytree(frozen / digests[1], frozen / digests[0])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_frozen(tmp_path, digests[0])
