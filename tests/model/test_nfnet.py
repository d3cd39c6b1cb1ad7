"""NFNet: what its blocks do at the start, stochastic depth, FLOPs, the tower around it."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flamingo_jax import sharding
from flamingo_jax.model.nfnet import GAMMAS, VARIANTS, NFNet, NFNetConfig, Stage, count_flops
from flamingo_jax.model.vision import VisionConfig, VisionTower
from flamingo_jax.shapes import flatten_paths, map_paths

# Two stages, one of them with a scanned rest: little to compile. GROUPED has two groups there.
GROUPED = dataclasses.replace(
    VARIANTS["tiny"], widths=(16, 32), depths=(1, 3), strides=(1, 2), stem=((8, 2), (16, 2))
)
TINY = dataclasses.replace(GROUPED, group_width=64, extra_conv=False)

# Test sizes and "FLOPs" (multiply-adds) of the NFNet paper, table 1 of its appendix.
PUBLISHED = {
    "F0": (256, 12.38e9),
    "F1": (320, 35.54e9),
    "F2": (352, 62.59e9),
    "F3": (416, 114.76e9),
    "F4": (512, 215.24e9),
    "F5": (544, 289.76e9),
    "F6": (576, 377.28e9),
}


def initial(make):
    """Parameters as training starts from; few of them: random numbers take long to compile."""
    return nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(0))))


def make(module):
    """The graph of `module()`, and parameters of which none is at a special value."""
    graph, state = nnx.split(nnx.eval_shape(module))
    rng = np.random.default_rng(0)

    def value(path, leaf):
        r = rng.standard_normal(leaf.shape, dtype=np.float32)
        if path.endswith("kernel"):
            return r / np.sqrt(math.prod(leaf.shape[-4:-1]))
        return (1 if path.endswith("/gain") else 0.3) + 0.2 * r

    return graph, map_paths(value, nnx.to_pure_dict(state))


def network(cfg: NFNetConfig):
    return make(lambda: NFNet(cfg, rngs=nnx.Rngs(0)))


def pictures(side: int = 32, rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, side, side, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def tiny():
    return network(TINY)


def run(graph, params, x, dtype=jnp.float32, key=None):
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x, dtype, key))(params, x)


def test_stages_are_a_first_block_and_a_stack():
    _, params = network(GROUPED)
    shapes = {path: leaf.shape for path, leaf in flatten_paths(params).items()}
    inner, groups = GROUPED.inner(GROUPED.widths[1])
    assert groups > 1
    assert shapes["stage2/first/conv1/kernel"] == (3, 3, inner // groups, inner)
    assert shapes["stage2/rest/conv1/kernel"] == (2, 3, 3, inner // groups, inner)
    assert shapes["stage2/rest/skip_gain"] == (2,)
    assert not any(path.startswith("stage1/rest") for path in shapes)
    assert "stage2/rest/shortcut/kernel" not in shapes


def test_stacked_blocks_start_with_kernels_of_their_own():
    params = initial(functools.partial(Stage, 32, 1, cfg=TINY))
    kernels = np.asarray(params["rest"]["conv1"]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
    assert kernels.std() * math.sqrt(math.prod(kernels.shape[1:-1])) == pytest.approx(1, rel=0.1)
    assert params["first"]["skip_gain"] == 0 and not params["rest"]["skip_gain"].any()


def test_at_skip_gain_0_blocks_add_nothing(tiny):
    graph, params = tiny
    closed = map_paths(lambda p, a: a * 0 if p.endswith("skip_gain") else a, params)
    changed = map_paths(lambda p, a: a + 1 if "/conv2/" in p and "stage" in p else a, closed)
    assert not np.allclose(run(graph, params, pictures()), run(graph, closed, pictures()))
    np.testing.assert_array_equal(run(graph, closed, pictures()), run(graph, changed, pictures()))


def test_scanned_blocks_are_the_blocks_one_by_one(tiny):
    """The stack's own order, betas and parameters, against a plain loop."""
    graph, params = tiny

    @jax.jit
    def both(params, x):
        model = nnx.merge(graph, params)
        activations = model.activations(x, jnp.float32)
        stage, rows = model.stage2, TINY.schedule()[1]
        x = stage.first(activations[1], jnp.float32(rows[0][0]), jnp.float32, None)
        blocks, state = nnx.split(stage.rest)
        for n, (beta, _) in enumerate(rows[1:]):
            block = nnx.merge(blocks, jax.tree.map(lambda a, n=n: a[n], state))
            x = block(x, jnp.float32(beta), jnp.float32, None)
        return activations[2], x

    scanned, looped = both(params, pictures())
    np.testing.assert_allclose(scanned, looped, rtol=1e-4, atol=1e-5)
    assert len({beta for beta, _ in TINY.schedule()[1][1:]}) > 1


def test_betas_follow_the_expected_variance():
    """1, then 1/sqrt(1 + alpha²), … within a stage; the next stage's first sees all of it."""
    cfg = dataclasses.replace(VARIANTS["tiny"], depths=(2, 3, 1, 1), alpha=0.5)
    betas = [[beta for beta, _ in stage] for stage in cfg.schedule()]
    variances = [[1, 1.25], [1.5, 1.25, 1.5], [1.75], [1.25]]
    for ours, theirs in zip(betas, variances, strict=True):
        np.testing.assert_allclose(ours, [v**-0.5 for v in theirs])


def test_remat_and_split_groups_change_nothing():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 16), dtype=np.float32)
    cfg = dataclasses.replace(GROUPED, extra_conv=False)

    def gradients(**changes):
        stage = dataclasses.replace(cfg, **changes)
        graph, params = make(lambda: Stage(16, 1, cfg=stage, rngs=nnx.Rngs(0)))

        def loss(params, x):
            return jnp.mean(jnp.square(nnx.merge(graph, params)(x, jnp.float32, None)))

        return jax.jit(jax.value_and_grad(loss))(params, x)

    value, grads = gradients(split_groups=True)
    other, others = gradients(split_groups=False, remat=True)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_no_picture_travels():
    """Each of eight devices encodes its own; XLA gathers the rows of a grouped convolution."""
    graph, params = make(lambda: Stage(16, 1, cfg=GROUPED, rngs=nnx.Rngs(0)))
    mesh = sharding.make_mesh()

    def encode(params, x):
        return nnx.merge(graph, params)(x, jnp.float32, None)

    rows, whole = sharding.rows_sharding(mesh), sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((16, 8, 8, 16), jnp.float32)
    lowered = jax.jit(encode, in_shardings=(whole, rows), out_shardings=rows).lower(params, x)
    text = lowered.compile().as_text()
    assert text and not re.findall(r"all-gather|all-to-all|all-reduce|permute", text)


def test_stochastic_depth_drops_whole_branches_and_needs_a_key(tiny):
    _, params = tiny
    cfg = dataclasses.replace(TINY, stochastic_depth=1.0)
    graph, _ = network(cfg)
    x = pictures(rows=8)
    plain = run(tiny[0], params, x)
    np.testing.assert_array_equal(run(graph, params, x), plain)
    np.testing.assert_array_equal(run(tiny[0], params, x, key=jax.random.key(0)), plain)
    draw = jax.jit(lambda key: nnx.merge(graph, params)(x, jnp.float32, key))
    one, again, two = (draw(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two)
    # Rates grow linearly from 0 at the first block of all.
    rates = [rate for stage in cfg.schedule() for _, rate in stage]
    np.testing.assert_allclose(rates, np.arange(len(rates)) / len(rates))


def test_a_dropped_block_is_its_shortcut(tiny):
    graph, params = tiny
    model = nnx.merge(graph, params)
    blocks, state = nnx.split(model.stage2.rest)
    block = nnx.merge(blocks, jax.tree.map(lambda a: a[0], state))
    x = jnp.asarray(pictures(8, 64) @ np.ones((3, TINY.widths[1]), np.float32))

    @jax.jit
    def call(x, key):
        drop = (key, jnp.float32(0.5))
        beta = jnp.float32(1)
        return block(x, beta, jnp.float32, None), block(x, beta, jnp.float32, drop)

    kept, half = call(x, jax.random.key(0))
    dropped = np.asarray((half == x).all((1, 2, 3)))
    whole = np.asarray((half == kept).all((1, 2, 3)))  # not scaled up
    assert (dropped ^ whole).all() and 16 <= dropped.sum() <= 48


@pytest.mark.parametrize("activation", sorted(GAMMAS))
def test_gammas_keep_a_unit_normals_variance(activation):
    from flamingo_jax.model.layers import ACTIVATIONS

    x = np.random.default_rng(0).standard_normal(2_000_000, dtype=np.float32)
    y = np.asarray(ACTIVATIONS[activation](x)) * GAMMAS[activation]
    assert abs(y.std() - 1) < 3e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_are_the_published_ones(name):
    side, macs = PUBLISHED[name]
    cfg = dataclasses.replace(VARIANTS[name], classes=1000)
    assert count_flops(cfg, side) / 2 == pytest.approx(macs, rel=5e-4)


def test_flops_of_an_odd_picture_are_what_is_computed():
    cfg = dataclasses.replace(TINY, depths=(1, 1), split_groups=False)
    graph, params = network(cfg)
    x = jax.ShapeDtypeStruct((1, 49, 49, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x, jnp.float32))(params, x)
    total = 0

    def visit(jaxpr):
        nonlocal total
        for equation in jaxpr.eqns:
            out = equation.outvars[0].aval.shape
            if equation.primitive.name == "conv_general_dilated":
                total += 2 * math.prod(out) * math.prod(equation.invars[1].aval.shape[:3])
            elif equation.primitive.name == "dot_general":
                total += 2 * math.prod(out) * equation.invars[1].aval.shape[0]
            for inner in equation.params.values():
                if hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    visit(jaxpr.jaxpr)
    assert count_flops(cfg, 49) == total


def test_the_demos_encoder_is_small_and_gives_4_by_4():
    cfg = VARIANTS["demo"]
    state = nnx.eval_shape(lambda: nnx.state(NFNet(cfg, rngs=nnx.Rngs(0))))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert 1.5e6 < count < 2.5e6
    assert count_flops(cfg, 64) <= 140e6
    assert (cfg.grid(64), cfg.features_width) == (4, 256)
    assert all(cfg.inner(width)[1] == 1 for width in cfg.widths)  # dense


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_the_tower_normalises_and_flattens(dtype):
    cfg = VisionConfig(TINY, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    graph, params = make(lambda: VisionTower(cfg, rngs=nnx.Rngs(0)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)
    ours = run(graph, params, pixels, dtype)
    assert ours.dtype == dtype
    normalised = (pixels.astype(np.float32) / 255 - np.array(cfg.mean, np.float32)) / np.array(
        cfg.std, np.float32
    )
    features = run(network(TINY)[0], params["nfnet"], normalised, dtype)
    assert features.shape == (2, 2, 4, TINY.final_width)
    rows = np.asarray(features, np.float32).reshape(2, 8, -1)
    atol = (1e-5 if dtype == jnp.float32 else 2e-2) * np.abs(rows).max()
    np.testing.assert_allclose(np.asarray(ours, np.float32), rows, rtol=0, atol=atol)


def test_standardised_features():
    plain, standard = (VisionConfig(TINY, standardise=flag) for flag in (False, True))
    graph, params = make(lambda: VisionTower(standard, rngs=nnx.Rngs(0)))
    bare, _ = make(lambda: VisionTower(plain, rngs=nnx.Rngs(0)))
    small = dataclasses.replace(TINY, widths=(8,), depths=(1,), strides=(1,), stem=((8, 2),))
    starts = initial(functools.partial(VisionTower, VisionConfig(small, standardise=True)))
    assert not starts["mean"].any() and (starts["deviation"] == 1).all()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    features = np.asarray(run(bare, {"nfnet": params["nfnet"]}, pixels))
    E = TINY.final_width
    params["mean"], params["deviation"] = jnp.linspace(-1, 1, E), jnp.linspace(0.5, 2, E)
    expected = (features - np.asarray(params["mean"])) / np.asarray(params["deviation"])
    np.testing.assert_allclose(run(graph, params, pixels), expected, rtol=1e-5, atol=1e-5)


def test_features_before_the_last_activation():
    towers = (VisionConfig(TINY, activated=flag) for flag in (True, False))
    (graph, params), (linear, _) = (
        make(lambda cfg=cfg: VisionTower(cfg, rngs=nnx.Rngs(0))) for cfg in towers
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    features, before = run(graph, params, pixels), run(linear, params, pixels)
    assert np.asarray(before).min() < 0
    gelu = jax.nn.gelu(before, approximate=True) * GAMMAS["gelu_tanh"]
    np.testing.assert_allclose(features, gelu, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"strides": (1, 3)}, {"depths": (1, 2, 1)}, {"activation": "elu"}, {"ws_form": "max"}],
)
def test_what_cannot_be_built_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)
