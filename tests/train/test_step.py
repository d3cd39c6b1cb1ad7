"""The update: weighted sums of gradients, what is frozen, how often it is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax import assemble, config, sharding
from flamingo_jax.model import nfnet
from flamingo_jax.shapes import Batch, Params, flatten_paths, unflatten_paths
from flamingo_jax.train import losses
from flamingo_jax.train import step as steps

B, T, SIDE = 8, 8, 8
VOCABULARY = assemble.Vocabulary(30, 2)
ENCODER = nfnet.NFNetConfig(
    widths=(8,), depths=(1,), strides=(1,), stem=((4, 2), (8, 2)), group_width=8, final_width=8
)


def small() -> Any:
    """All of Flamingo in f32 with two datasets, as small as it can be."""
    c = config.base()
    c.model.update(dtype="float32", remat="full")
    c.model.vision.update(variant="smallest", image_size=SIDE, dtype="float32")
    c.model.language.update(width=16, blocks=2, heads=2, head_dim=8, hidden=32)
    c.model.resampler.update(depth=1, latents=4, width=16, heads=2, head_dim=8, hidden=32)
    c.model.xattn.update(heads=2, head_dim=8, hidden=32)
    c.train.steps = 10
    c.train.optimizer.update(lr=1e-2, warmup=0)
    c.train.datasets.pages = config.dataset(layout="page", batch=B, length=T, images=2)
    c.train.datasets.pairs = config.dataset(batch=B, length=T, weight=0.2)
    return config.finish(c)


def example(spec: Any, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    media = (spec.batch, spec.media, spec.frames)
    of_token = np.minimum(np.arange(T) // 3, spec.media)
    return Batch(
        tokens=rng.integers(0, 32, (B, T)).astype(np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        media=rng.integers(0, 256, (*media, SIDE, SIDE, 3)).astype(np.uint8),
        frames=np.ones(media[:2], np.int32),
        media_of_token=np.tile(of_token.astype(np.int32), (B, 1)),
        loss_mask=rng.integers(0, 2, (B, T)).astype(np.float32),
    )


TRACED: list[tuple[int, ...]] = []  # the shape of the tokens of each dataset that was traced


@pytest.fixture(scope="module")
def stage():
    losses_of = losses.text_losses

    def counted(
        graph: Any, params: Params, frozen: Params, batches: dict[str, Batch], key: Any
    ) -> Any:
        TRACED.extend(batch.tokens.shape for batch in batches.values())
        return losses_of(graph, params, frozen, batches, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nfnet.VARIANTS, "smallest", ENCODER)
        patch.setattr(losses, "text_losses", counted)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        yield assemble.stage(small(), "flamingo", VOCABULARY, mesh)


@pytest.fixture(scope="module")
def trained(stage):
    """(parameters, frozen before, state, frozen after, metrics of each step, compilations)."""
    flat = flatten_paths(stage.initial(0, set(flatten_paths(stage.abstract))))
    parts = [flatten_paths(part) for part in (stage.trainable, stage.frozen)]
    params, frozen = (unflatten_paths({path: flat[path] for path in part}) for part in parts)
    copies = [jax.tree.map(np.array, part) for part in (params, frozen)]
    opt = jax.jit(stage.tx.init, out_shardings=stage.state_shardings.opt)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), stage.state_shardings.step)
    state, rows = steps.TrainState(step, params, opt), []
    for step in range(3):
        batches = {
            name: sharding.to_devices(example(spec, 10 * step + place), stage.mesh)
            for place, (name, spec) in enumerate(stage.datasets.items())
        }
        state, metrics = stage.update(state, frozen, batches)
        rows.append({key: float(value) for key, value in metrics.items()})
    return *copies, state, frozen, rows, stage.update._cache_size()


def test_what_is_frozen_stays_bit_for_bit(trained):
    _, before, _, after, _, _ = trained
    assert flatten_paths(before).keys() == flatten_paths(after).keys() != set()
    for path, array in flatten_paths(after).items():
        np.testing.assert_array_equal(array, flatten_paths(before)[path], err_msg=path)


def test_all_that_is_trained_moves(trained):
    before, _, state, _, _, _ = trained
    for path, array in flatten_paths(state.params).items():
        assert np.any(np.asarray(array) != flatten_paths(before)[path]), path
    assert int(state.step) == 3


def test_the_split_is_the_papers(stage):
    """Trained: resampler, gated layers, projection, rows of new tokens. Frozen: all else."""
    trained, frozen = (set(flatten_paths(part)) for part in (stage.trainable, stage.frozen))
    heads = {path.split("/")[0] for path in trained}
    assert heads == {"resampler", "xattn", "project", "embed"} and "embed/new" in trained
    assert {path.split("/")[0] for path in frozen} == {"vision", "language", "embed"}
    assert not trained & frozen and trained | frozen == set(flatten_paths(stage.abstract))


def test_the_optimizer_holds_nothing_for_what_is_frozen(stage, trained):
    """Two moments for each trained parameter, of its shape, in f32; scalars of steps; no more."""
    _, _, state, _, _, _ = trained
    leaves = jax.tree.leaves(state.opt)
    shapes = sorted(a.shape for a in leaves if a.dtype == jnp.float32)
    expected = [a.shape for a in jax.tree.leaves(stage.trainable)]
    assert shapes == sorted([*expected * 2, ()])  # the one is the mean norm of gradients
    assert all(a.shape == () and a.dtype == jnp.int32 for a in leaves if a.dtype != jnp.float32)


def test_the_step_is_traced_and_compiled_once(stage, trained):
    assert TRACED == [(B, T)] * len(stage.datasets)
    assert trained[-1] == 1


def test_losses_are_logged_and_weighted(trained):
    for row in trained[4]:
        np.testing.assert_allclose(
            row["loss"], row["pages/loss"] + 0.2 * row["pairs/loss"], rtol=1e-6
        )
        assert row["pages/tokens"] > 0 and row["grad_norm"] > 0
        np.testing.assert_allclose(row["lr"], 1e-2, rtol=1e-6)
        assert {"gate_attention/0", "gate_attention/1", "gate_dense/1"} <= row.keys()


def toy(weights: dict[str, float], watch: Any = lambda params: {}) -> Any:
    """An update of plain gradient descent; a dataset's loss is scale · Σ p · tokens, and noise."""

    def losses_of(params: Params, frozen: Params, batches: Any, key: jax.Array) -> losses.Losses:
        found, noises = {}, dict(zip(batches, jax.random.normal(key, (len(batches),)), strict=True))
        for name, batch in batches.items():
            found[name] = frozen["scale"] * jnp.sum(params["p"] * batch["tokens"])
            found[name] += noises[name] * params["q"]
        return found, {name: {"noise": noise} for name, noise in noises.items()}

    return steps.train_step(losses_of, weights, optax.sgd(1.0), lambda step: step, 7, watch)


def test_the_gradients_of_the_datasets_are_weighted_and_summed():
    params = {"p": jnp.asarray([1.0, 2.0]), "q": jnp.asarray(0.0)}
    state = steps.init_state(params, optax.sgd(1.0))
    batches = {"a": {"tokens": jnp.asarray([1.0, 0.0])}, "b": {"tokens": jnp.asarray([3.0, 4.0])}}
    frozen = {"scale": jnp.asarray(2.0)}
    update = jax.jit(toy({"a": 1.0, "b": 0.5}))
    after, metrics = update(state, frozen, batches)
    np.testing.assert_allclose(after.params["p"], [1 - 2 - 3, 2 - 0 - 4])
    noise = [float(metrics[f"{name}/noise"]) for name in "ab"]
    np.testing.assert_allclose(after.params["q"], -noise[0] - 0.5 * noise[1], rtol=1e-6)
    np.testing.assert_allclose(
        [metrics["a/loss"], metrics["b/loss"], metrics["loss"]], [2.0, 22.0, 13.0]
    )
    gradient = [2 + 3, 4, noise[0] + 0.5 * noise[1]]
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-6)
    assert int(after.step) == 1


def test_randomness_is_the_steps_and_the_datasets():
    """Each step draws its own; the same step draws the same again."""
    state = steps.init_state({"p": jnp.zeros(2), "q": jnp.asarray(0.0)}, optax.sgd(1.0))
    batches = {name: {"tokens": jnp.ones(2)} for name in "ab"}
    update = jax.jit(toy({"a": 1.0, "b": 1.0}))
    drawn = []
    for _ in range(2):
        fresh, noises = state, []
        for _ in range(3):
            fresh, metrics = update(fresh, {"scale": jnp.asarray(1.0)}, batches)
            noises += [float(metrics["a/noise"]), float(metrics["b/noise"])]
        drawn.append(noises)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 6


def test_validation_sums_add_up():
    def measures(params: Params, frozen: Params, batches: Any) -> dict[str, dict[str, jax.Array]]:
        return {
            name: {"nll": params["p"] * jnp.sum(batch), "count": frozen["one"] * batch.size}
            for name, batch in batches.items()
        }

    evaluate = steps.eval_step(measures)
    batches: Any = {"a": jnp.ones(3), "b": jnp.ones(5)}
    found = evaluate({"p": 2.0}, {"one": 1.0}, batches)
    assert found == {"a/nll": 6.0, "a/count": 3.0, "b/nll": 10.0, "b/count": 5.0}
