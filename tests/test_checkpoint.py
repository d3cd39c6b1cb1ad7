"""What was saved comes back bit for bit, on any mesh; which steps are saved, and which stay."""

import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax import checkpoint, sealed
from flamingo_jax.errors import InputError

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_mesh(shape=(4, 2)):
    count = int(np.prod(shape))
    return jax.make_mesh(
        shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:count]
    )


def shard(tree, mesh):
    """The tree on the mesh: matrices by rows and columns, the rest replicated."""
    spec = PartitionSpec("fsdp", "tensor")
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec())),
        tree,
    )


def host_state(step: int):
    """The parameters and moments that belong to a step, as NumPy arrays."""
    rng = np.random.default_rng(step)
    params = {
        "resampler": {
            "latents": rng.standard_normal((8, 6)).astype(np.float32),
            "gate": np.asarray(rng.standard_normal(), np.float32),
        },
        "embed": {"new": rng.integers(0, 256, (4, 16), np.uint8).view(jnp.bfloat16)},
        "xattn": {"bias": rng.standard_normal(5).astype(np.float32)},
    }
    opt = jax.eval_shape(OPTIMIZER.init, params)
    return params, jax.tree.map(lambda x: np.asarray(rng.normal(step, 9, x.shape), x.dtype), opt)


def state(step: int, mesh=None):
    return shard(host_state(step), mesh or make_mesh())


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, want):
    assert jax.tree.structure(tree) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def open_stage(folder, keep=3, every=1, keep_every=0) -> checkpoint.StageCheckpoints:
    return checkpoint.StageCheckpoints(folder, keep=keep, every=every, keep_every=keep_every)


def save(stage: checkpoint.StageCheckpoints, step: int, force=False) -> bool:
    params, opt = state(step)
    return stage.save(step, params, opt, {"config": {"seed": 7}}, force=force)


def save_steps(folder, *steps: int) -> None:
    with open_stage(folder) as stage:
        assert all(save(stage, step) for step in steps)


def restore(stage: checkpoint.StageCheckpoints, mesh=None):
    params, opt = abstract(state(0, mesh))
    return stage.restore(params, opt)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return tmp_path / "checkpoints" / "flamingo"


def test_what_is_saved_comes_back(folder):
    with open_stage(folder) as stage:
        assert restore(stage) is None
        params, opt = state(3)
        assert stage.save(3, params, opt, {"config": {"seed": 7}, "lr": 0.1})
        restored = restore(stage)
    assert restored is not None and restored.step == 3
    assert_same((restored.params, restored.opt), host_state(3))
    for got, want in zip(
        jax.tree.leaves(restored[1:3]), jax.tree.leaves((params, opt)), strict=True
    ):
        assert got.sharding == want.sharding
    meta = restored.meta
    assert (meta["stage"], meta["step"], meta["config"], meta["lr"]) == (
        "flamingo",
        3,
        {"seed": 7},
        0.1,
    )
    assert meta["fingerprints"]["params"]["resampler/latents"].startswith("float32[8,6] ")
    assert len(meta["fingerprints"]["opt"]) == len(jax.tree.leaves(opt))
    assert {entry.name for entry in (folder / "3").iterdir()} >= {"params", "opt", "meta"}


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (1, 1)])
def test_restores_on_another_mesh(folder, shape):
    save_steps(folder, 1)
    with open_stage(folder) as stage:
        restored = restore(stage, make_mesh(shape))
    assert restored is not None
    assert_same((restored.params, restored.opt), host_state(1))


def test_a_sharding_that_does_not_divide_is_no_damage(folder):
    save_steps(folder, 1, 2)
    params, opt = abstract(state(0))
    columns = NamedSharding(make_mesh((2, 4)), PartitionSpec(None, "tensor"))
    params["resampler"]["latents"] = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=columns)
    with open_stage(folder) as stage, pytest.raises(ValueError, match="divi") as caught:
        stage.restore(params, opt)
    assert not isinstance(caught.value, InputError)
    assert checkpoint.list_steps(folder) == [1, 2]


def test_donated_arrays_are_saved_as_they_were(folder):
    update = jax.jit(
        lambda tree: jax.tree.map(lambda x: x * 3 + 1 if x.ndim else x + 1, tree), donate_argnums=0
    )
    tree = shard({f"w{i}": np.full((64, 64), i, np.float32) for i in range(40)}, make_mesh())
    with open_stage(folder, keep=4) as stage:
        want = {}
        for step in range(1, 5):
            want[step] = jax.tree.map(np.array, tree)
            assert stage.save(step, tree, {"count": jnp.int32(step)}, {})
            for _ in range(5):
                tree = update(tree)
        jax.block_until_ready(tree)
    for step, arrays in want.items():
        assert_same(checkpoint.load_params(folder, step=step).params, arrays)


def test_which_steps_are_saved_and_which_stay(folder):
    with open_stage(folder, keep=2, every=10) as stage:
        saved = [step for step in range(1, 36) if save(stage, step)]
        assert saved == [10, 20, 30]
        assert save(stage, 35, force=True)
        assert not save(stage, 35, force=True)
        with pytest.raises(ValueError, match="older"):
            save(stage, 34, force=True)
    assert checkpoint.list_steps(folder) == [30, 35]
    assert {entry.name for entry in folder.iterdir()} == {"30", "35"}
    with open_stage(folder, keep=1, every=0) as stage:
        assert stage.steps() == [30, 35]
        assert not save(stage, 40)
    assert checkpoint.list_steps(folder) == [35]
    for keep, every in ((0, 1), (1, -1)):
        with pytest.raises(InputError, match="keep"):
            open_stage(folder, keep=keep, every=every)


def test_some_steps_stay_for_ever(folder):
    with open_stage(folder, keep=2, every=2, keep_every=4) as stage:
        for step in range(1, 12):
            save(stage, step)
    assert checkpoint.list_steps(folder) == [4, 8, 10]
    with open_stage(folder, keep=1, every=2, keep_every=4) as stage:
        save(stage, 12)
    assert checkpoint.list_steps(folder) == [4, 8, 12]
    for keep_every in (-2, 3):
        with pytest.raises(InputError, match="keep_every"):
            open_stage(folder, every=2, keep_every=keep_every)


def test_a_save_that_fails(folder):
    """It is told at the next call, and costs that step alone."""
    rows = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8)
    params, opt = {"w": jnp.asarray(rows)}, {"count": jnp.int32(0)}
    with open_stage(folder) as stage:
        stage.save(1, params, opt, {})
        stage.wait()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            stage.save(2, params, opt, {})
            with pytest.raises(ValueError, match="File too large"):
                stage.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert stage.steps() == [1]
        assert stage.save(2, params, opt, {})
        stage.wait()
        assert stage.steps() == checkpoint.list_steps(folder) == [1, 2]


def test_a_full_disk(folder, monkeypatch):
    def fail() -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

    with open_stage(folder) as stage:
        with monkeypatch.context() as patch:
            patch.setattr(stage._checkpointer, "wait_until_finished", fail)
            with pytest.raises(InputError, match="its disk is full; free some space"):
                stage.wait()


def test_state_without_arrays(folder):
    """Plain gradient descent keeps nothing."""
    optimizer = optax.sgd(0.1)
    params = {"w": jnp.arange(6.0)}
    with open_stage(folder) as stage:
        stage.save(1, params, optimizer.init(params), {})
        restored = stage.restore(params, optimizer.init(params))
    assert restored is not None
    assert_same(restored.params, params)
    assert jax.tree.structure(restored.opt) == jax.tree.structure(optimizer.init(params))


def test_load_params(folder):
    save_steps(folder, 1, 2, 3)
    loaded = checkpoint.load_params(folder)
    assert loaded.step == 3 and loaded.opt is None and loaded.meta["config"] == {"seed": 7}
    assert_same(loaded.params, host_state(3)[0])
    assert {x.sharding.device_set.pop() for x in jax.tree.leaves(loaded.params)} == {
        jax.local_devices()[0]
    }
    target = abstract(state(0)[0])
    sharded = checkpoint.load_params(folder, target, step=2).params
    assert_same(sharded, host_state(2)[0])
    assert sharded["embed"]["new"].sharding == target["embed"]["new"].sharding
    with pytest.raises(InputError, match="no step 7; it holds 1, 2, 3"):
        checkpoint.load_params(folder, step=7)
    with pytest.raises(InputError, match=r"holds no sound step \(nothing was saved"):
        checkpoint.load_params(folder.parent / "language")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"holds params/xattn/bias as float32\[5\], which is float32\[6\]"),
        ("dtype", r"holds params/xattn/bias as float32\[5\], which is bfloat16\[5\]"),
        ("missing", "holds params/xattn/bias, which this config lacks"),
        ("extra", "holds no params/xattn/more, which this config has"),
        ("optimizer", "opt/.*, which this config lacks"),
    ],
)
def test_another_config_is_bad_input_and_no_damage(folder, change, message):
    save_steps(folder, 1, 2)
    params, opt = abstract(state(0))
    bias = params["xattn"]["bias"]
    if change == "shape":
        params["xattn"]["bias"] = jax.ShapeDtypeStruct((6,), bias.dtype)
    elif change == "dtype":
        params["xattn"]["bias"] = jax.ShapeDtypeStruct((5,), jnp.bfloat16)
    elif change == "missing":
        del params["xattn"]["bias"]
    elif change == "extra":
        params["xattn"]["more"] = bias
    else:
        opt = jax.eval_shape(optax.sgd(0.1).init, params)
    with open_stage(folder) as stage, pytest.raises(InputError, match=message):
        stage.restore(params, opt)
    assert checkpoint.list_steps(folder) == [1, 2]


def test_a_torn_save_is_never_taken_for_a_step(folder):
    save_steps(folder, 1)
    torn = folder / f"2{sealed.TEMPORARY}-1234"
    shutil.copytree(folder / "1", torn)
    leaving = folder / "0.leaving"
    shutil.copytree(folder / "1", leaving)
    assert checkpoint.list_steps(folder) == [1]
    with open_stage(folder) as stage:
        restored = restore(stage)
        assert restored is not None and restored.step == 1
        assert save(stage, 2)
    assert {entry.name for entry in folder.iterdir()} == {"1", "2"}


def bytes_read() -> int:
    """What this process has read from files through tensorstore, which Orbax reads arrays with."""
    name = "/tensorstore/kvstore/file/bytes_read"
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for metric in found for value in metric["values"])


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (4, 2)])
def test_for_use_the_parameters_alone_are_read(tmp_path, shape):
    """On the first device and on the devices they were saved from: at most 1.1 of their bytes."""
    rng = np.random.default_rng(0)
    kernels = {name: rng.standard_normal((512, 1024)).astype(np.float32) for name in "abc"}
    params = shard({**kernels, "scale": np.ones(512, np.float32)}, make_mesh(shape))
    with open_stage(tmp_path) as stage:
        assert stage.save(1, params, {"mu": params, "nu": params}, {})
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for target in (None, abstract(params)):
        before = bytes_read()
        restored = checkpoint.load_params(tmp_path, target)
        read = bytes_read() - before
        assert_same(restored.params, params)
        assert 0.8 * size < read <= 1.1 * size  # the rest is compression
