"""FLOPs of a jaxpr against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from flamingo_jax.layout import Layout
from flamingo_jax.model.attention import attend
from flamingo_jax.model.convolution import grouped_conv
from flamingo_jax.model.products import dot
from flamingo_jax.planning import flops
from tests.small import make_mesh


def counted(function: Any, *args: Any) -> flops.Flops:
    return flops.count(jax.make_jaxpr(function)(*args))


def array(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def test_a_product():
    found = counted(jnp.matmul, array(5, 7), array(7, 11))
    assert found.total == 2 * 5 * 7 * 11
    assert found.by_kind == {"product": found.total} and found.by_dtype == {"float32": found.total}


def test_a_batched_product_is_told_apart():
    found = counted(lambda a, b: a @ b, array(3, 5, 7), array(3, 7, 11))
    assert found.by_kind == {"batched product": 2 * 3 * 5 * 7 * 11}


def test_dtypes_are_the_operands():
    def both(a: Any, b: Any) -> Any:
        dims = (((1,), (0,)), ((), ()))
        return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)

    half = array(4, 4, dtype=jnp.bfloat16)
    assert counted(both, half, half).by_dtype == {"bfloat16": 128}
    assert counted(both, array(4, 4), half).by_dtype == {"float32": 128}


def test_a_share_for_each_device():
    jaxpr = jax.make_jaxpr(jnp.matmul)(array(4, 4), array(4, 4))
    assert flops.count(jaxpr, mesh_devices=8).per_device == 16


def chain(x: Any, weights: Any) -> Any:
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_as_often_as_it_runs():
    assert counted(chain, array(5, 7), array(9, 7, 7)).total == 9 * 2 * 5 * 7 * 7


def test_a_scan_in_a_scan():
    def twice(x: Any, weights: Any) -> Any:
        return lax.scan(lambda x, w: (chain(x, w), None), x, weights)[0]

    assert counted(jax.jit(twice), array(5, 7), array(3, 9, 7, 7)).total == 27 * 2 * 5 * 7 * 7


def test_the_dearer_branch():
    def either(p: Any, x: Any) -> Any:
        return lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(either, array(dtype=jnp.bool), array(4, 4)).total == 2 * 128


@pytest.mark.parametrize(
    ("loop", "turns"),
    [
        (lambda x: lax.fori_loop(0, 5, lambda _, c: c @ c, x), 5),
        (
            lambda x: lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 2, c[1] @ c[1]), (0, x)),
            3,
        ),
        (lambda x: lax.while_loop(lambda c: c[0] <= 5, lambda c: (c[0] + 1, c[1] @ x), (2, x)), 4),
    ],
)
def test_loops_whose_turns_can_be_told(loop, turns):
    assert counted(loop, array(4, 4)).total == turns * 128


def test_a_while_to_a_carried_limit():
    def loop(x: Any) -> Any:
        turn = lambda c: (c[0] + 1, c[1], c[2] @ c[2])  # noqa: E731
        return lax.while_loop(lambda c: c[0] < c[1], turn, (1, 7, x))

    assert counted(loop, array(4, 4)).total == 6 * 128


def test_loops_whose_turns_cannot_be_told():
    def to(n: Any, x: Any) -> Any:
        with jax.named_scope("decoding"):
            return lax.fori_loop(0, n, lambda _, c: c @ c, x)

    with pytest.raises(ValueError, match="decoding"):
        counted(to, array(dtype=jnp.int32), array(4, 4))
    changing = lambda c: (c[0] + 1, c[1] - 1, c[2] @ c[2])  # noqa: E731
    with pytest.raises(ValueError, match="while"):
        counted(lambda x: lax.while_loop(lambda c: c[0] < c[1], changing, (0, 9, x)), array(4, 4))
    # One without products costs nothing, however often it turns.
    assert counted(lambda n: lax.fori_loop(0, n, lambda _, c: c + 1, 0), 3).total == 0


def conv(x: Any, kernel: Any, stride: int = 1, groups: int = 1, split: bool = False) -> Any:
    return grouped_conv(x, kernel, stride=stride, groups=groups, split=split)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_grouped_convolution_and_its_gradients(split, stride):
    """Both gradients cost what the convolution does: the holes of a strided one are not counted."""
    x, kernel = array(2, 8, 6, 12), array(3, 3, 4, 24)
    forward = 2 * 2 * (8 // stride) * (6 // stride) * 9 * 4 * 24

    def loss(x: Any, kernel: Any) -> Any:
        return jnp.sum(conv(x, kernel, stride, 3, split) ** 2)

    assert counted(loss, x, kernel).by_kind == {"convolution": forward}
    assert counted(jax.grad(loss, argnums=(0, 1)), x, kernel).total == 3 * forward
    assert counted(jax.grad(loss, argnums=1), x, kernel).total == 2 * forward


def mlp(weights: Any, x: Any) -> Any:
    return jnp.sum(chain(x, weights) ** 2)


def test_a_gradient_is_three_passes_and_remat_four():
    weights, x = array(6, 7, 7), array(5, 7)
    forward = 6 * 2 * 5 * 7 * 7
    assert counted(mlp, weights, x).total == forward
    # Of the first layer no gradient is needed for its input, but a loop treats all alike.
    assert counted(jax.grad(mlp), weights, x).total == 3 * forward

    def again(weights: Any, x: Any) -> Any:
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
        return jnp.sum(lax.scan(layer, x, weights)[0] ** 2)

    found = counted(jax.grad(again), weights, x)
    assert found.total == 4 * forward and found.again == forward


def test_scopes():
    def named(a: Any, b: Any) -> Any:
        with jax.named_scope("vision"):
            a = jax.jit(lambda a: a @ a)(a)
        with jax.named_scope("language"), jax.named_scope("block"):
            b = b @ b
        return jnp.sum((a @ b) ** 2)

    found = counted(jax.grad(named, argnums=(0, 1)), array(4, 4), array(4, 4))
    assert found.by_scope == {"vision": 3 * 128, "language": 3 * 128, "": 3 * 128}


def test_what_nothing_uses_is_not_counted():
    """The gradient of a frozen kernel, which the rule of bf16 products gives anyway."""
    x, kernel = array(5, 7, dtype=jnp.bfloat16), array(7, 11, dtype=jnp.bfloat16)

    def loss(x: Any, kernel: Any) -> Any:
        return jnp.sum(dot(x, kernel, jnp.bfloat16) ** 2)

    forward = 2 * 5 * 7 * 11
    assert counted(jax.grad(loss), x, kernel).total == 2 * forward
    assert counted(jax.grad(loss, argnums=(0, 1)), x, kernel).total == 3 * forward


def test_attention():
    B, T, S, N, H = 2, 5, 9, 4, 8
    q, k = array(B, T, N, H), array(B, S, N, H)

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(attend(q, k, v, None) ** 2)

    forward = 4 * B * N * T * S * H
    assert counted(loss, q, k, k).by_kind == {"batched product": forward}
    assert counted(loss, q, k, k).by_scope == {"": forward}
    assert counted(jax.grad(loss, argnums=(0, 1, 2)), q, k, k).total == 3 * forward
    grouped = array(B, S, 2, H)
    assert counted(loss, q, grouped, grouped).total == forward


def test_a_shard_maps_share_is_multiplied():
    mesh = AbstractMesh((4, 2), ("a", "b"))
    x, y = array(8, 4), array(4, 4)
    for axes in (frozenset("a"), frozenset("ab")):
        spec = {"in_specs": (P(tuple(sorted(axes))), P()), "out_specs": P(tuple(sorted(axes)))}
        split = jax.shard_map(jnp.matmul, mesh=mesh, axis_names=axes, **spec)
        assert counted(split, x, y).total == 2 * 8 * 4 * 4


def inside_kernels(jaxpr: Any) -> int:
    """FLOPs of all Pallas kernels by what they hold: the body's times the grid's size."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            size = 1
            for side in equation.params["grid_mapping"].grid:
                size *= side
            total += size * flops._count(equation.params["jaxpr"], "", False).total
        else:
            total += sum(inside_kernels(inner) for inner in jaxprs_in_params(equation.params))
    return total


def flash(q: Any, k: Any, v: Any) -> Any:
    return flash_attention.flash_attention(q, k, v)


def splash(fused: bool) -> Any:
    heads = [splash_attention_mask.FullMask((256, 512)) for _ in range(4)]
    sizes: dict[str, Any] = {
        f"block_{name}": 128 for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv")
    }
    sizes["block_kv_dkv_compute"] = 128
    if not fused:
        sizes |= {"block_q_dq": 128, "block_kv_dq": 128}
    kernel = splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask(heads),
        block_sizes=splash_attention_kernel.BlockSizes(**sizes, use_fused_bwd_kernel=fused),
        head_shards=1,
        q_seq_shards=1,
    )
    return jax.vmap(kernel)


@pytest.mark.parametrize(
    ("kernel", "products"), [(flash, 2 + 4 + 3), (splash(False), 2 + 4 + 3), (splash(True), 2 + 5)]
)
def test_kernels_cost_what_they_hold(kernel, products):
    """Their prices by name and shape equal their bodies' products, block by block."""
    B, N, T, S, H = 2, 4, 256, 512, 128
    q, k = (array(B, N, length, H, dtype=jnp.bfloat16) for length in (T, S))

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(kernel(q, k, v).astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, k)
    found = flops.count(jaxpr)
    assert found.by_kind["kernel"] == products * 2 * B * N * T * S * H
    assert found.by_kind["kernel"] == inside_kernels(jaxpr.jaxpr)
    assert found.by_dtype["bfloat16"] == found.by_kind["kernel"]


def test_fused_attention_costs_what_plain_does_and_the_scores_again():
    """Where nothing is padded: two products forwards, and five backwards for plain's four."""
    B, N, T, S, H = 2, 2, 128, 256, 8
    q, k = array(B, T, N, H), array(B, S, N, H)

    def loss(layout: Layout) -> Any:
        return lambda q, k, v: jnp.sum(attend(q, k, v, None, layout=layout) ** 2)

    product = 2 * B * N * T * S * H
    fused = loss(Layout(attention="splash"))
    assert counted(fused, q, k, k).total == counted(loss(Layout()), q, k, k).total == 2 * product
    found = counted(jax.grad(fused, argnums=(0, 1, 2)), q, k, k)
    rows = 2 * B * N * T * H  # of the result with its gradient, before the kernel
    assert found.by_kind == {"kernel": 7 * product, "batched product": rows}
    assert found.by_kernel == {
        "splash_mha_fwd_segmented_residuals": 2 * product,
        "splash_mha_dkv_segmented_no_residuals": 5 * product,
    }
    # On a mesh: a device has a fourth of it, and all of them together no more.
    spread = loss(Layout(make_mesh(fsdp=2, tensor=2), attention="splash"))
    assert counted(spread, q, k, k).total == 2 * product


def test_cudnns_attention_has_a_price(monkeypatch):
    """Traced as for a GPU, of which only the version of cuDNN is asked."""
    name = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(name, lambda: 91_100)
    B, N, T, S, H = 2, 4, 6, 10, 8
    q, k = array(B, T, N, H, dtype=jnp.bfloat16), array(B, S, 2, H, dtype=jnp.bfloat16)
    mask = jnp.ones((B, 1, T, S), bool)

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(attend(q, k, v, mask, layout=Layout(attention="cudnn")) ** 2)

    product = 2 * B * N * T * S * H
    assert counted(loss, q, k, k).by_kind == {"kernel": 2 * product}
    found = counted(jax.grad(loss, argnums=(0, 1, 2)), q, k, k)
    assert found.by_kind == {"kernel": 7 * product}
    assert found.by_dtype == {"bfloat16": 7 * product}


def test_an_unknown_kernel_is_not_free():
    def unheard_of(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] @ x_ref[...]

    def call(x: Any) -> Any:
        return pl.pallas_call(unheard_of, out_shape=array(8, 8))(x)

    with pytest.raises(ValueError, match="unheard_of"):
        counted(call, array(8, 8))


def test_what_nobody_has_priced_is_refused():
    with pytest.raises(ValueError, match="cholesky"):
        counted(jnp.linalg.cholesky, array(4, 4))
