"""Beside the table: heads, slices, what is left whole, where activations lie."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax import sharding
from flamingo_jax.errors import InputError
from flamingo_jax.layout import Layout
from flamingo_jax.shapes import Batch
from flamingo_jax.sharding import Remark
from flamingo_jax.train import objective

HEADS = (
    (r"^language/.*/(key|value)/", 3),
    (r"^language/", 6),
    (r"^xattn/", 4),
    (r"^resampler/", 5),
)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("language/blocks/query/kernel", (4, 16, 24), P(None, "fsdp", "tensor")),
        ("language/blocks/key/kernel", (4, 16, 12), P(None, "fsdp")),  # 12 / 2, but of 3 heads
        ("language/blocks/out/kernel", (4, 24, 16), P(None, "tensor", "fsdp")),
        ("language/blocks/content_bias", (4, 6, 4), P(None, "tensor")),
        ("xattn/value/kernel", (2, 16, 32), P(None, "fsdp", "tensor")),
        ("resampler/layers/out/kernel", (1, 20, 16), P(None, None, "fsdp")),
        ("resampler/layers/dense/up/kernel", (1, 16, 20), P(None, "fsdp", "tensor")),
    ],
)
def test_no_head_is_cut_in_two(path, shape, expected):
    assert sharding.spec(path, shape, sharding.make_mesh(2, 2, 2), HEADS) == expected


def test_what_is_left_whole_is_told_with_its_cost():
    mesh = sharding.make_mesh(1, 2, 4)
    tree = {
        "embed": {"table": jax.ShapeDtypeStruct((34, 16), jnp.bfloat16)},
        "language": {"blocks": {
            "key": {"kernel": jax.ShapeDtypeStruct((4, 16, 12), jnp.float32)},
            "dense": {"up": {"kernel": jax.ShapeDtypeStruct((4, 16, 32), jnp.float32)}},
        }},
    }  # fmt: skip
    assert sharding.remarks(tree, mesh, HEADS) == [
        # Half of 34·16 on a device, where it could be an eighth: V is whole, D over fsdp.
        Remark("embed/table", "V", 34, "tensor", 4, 34 * 16 * 2 // 2 * 3 // 4),
        Remark("language/blocks/key/kernel", "N", 3, "tensor", 4, 4 * 16 * 12 * 4 // 2 * 3 // 4),
    ]
    assert sharding.remarks(tree, sharding.make_mesh(1, 8, 1), HEADS) == []


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as a topology describes it: what the grid of a mesh is made from."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0
    process_index: int = 0


def chips(slices: int) -> list[Any]:
    """Slices of 2 x 2 x 2 chips, in an order of no meaning."""
    found = [
        Chip(8 * s + 4 * z + 2 * y + x, (x, y, z), s)
        for z in range(2) for y in range(2) for x in range(2) for s in range(slices)
    ]  # fmt: skip
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def test_replicas_run_over_slices_and_all_else_inside():
    grid = sharding._grid([4, 2, 2], chips(2), 2)
    assert grid.shape == (4, 2, 2)
    assert len({chip.id for chip in grid.ravel()}) == 16
    of_slice = [{chip.slice_index for chip in part.ravel()} for part in grid]
    assert of_slice[0] == of_slice[1] != of_slice[2] == of_slice[3]
    assert all(len(part) == 1 for part in of_slice)


def test_neighbours_on_an_axis_are_neighbours_on_the_torus():
    grid = sharding._grid([1, 4, 2], chips(1), 1)
    for pair in grid.reshape(-1, 2):
        assert sum(a != b for a, b in zip(pair[0].coords, pair[1].coords, strict=True)) == 1


def test_slices_of_devices_without_any():
    """Simulated devices are taken in order, replicas outermost."""
    mesh = sharding.make_mesh(2, 2, 2, slices=2)
    assert [d.id for d in mesh.devices.ravel()] == list(range(8))
    for sizes, slices in (((1, 8, 1), 2), ((2, 2, 2), 0), ((4, 2, 1), 3)):
        with pytest.raises(InputError, match=r"config\.mesh\.slices"):
            sharding.make_mesh(*sizes, slices=slices)
    with pytest.raises(InputError, match=r"config\.mesh\.slices is 4"):
        sharding._grid([4, 2, 2], chips(2), 4)


def test_the_stream_is_split_over_tensor_between_layers():
    mesh = sharding.make_mesh(2, 2, 2)
    x = jnp.zeros((8, 6, 4))

    def lies(layout: Layout, x: jax.Array) -> tuple[int, ...]:
        return jax.jit(layout.residual)(x).addressable_shards[0].data.shape

    assert lies(Layout(mesh), x) == (2, 3, 4)
    assert lies(Layout(mesh, sequence=False), x) == (2, 6, 4)
    assert lies(Layout(mesh), x[:, :5]) == (2, 5, 4)  # T that the axis does not divide
    assert lies(Layout(sharding.make_mesh(2, 4, 1)), x) == (1, 6, 4)


@pytest.mark.parametrize("media", [1, 3, 4])
def test_images_are_spread_over_all_devices_and_come_back(media):
    """Each device of a tensor group takes its share, padded; order and rows' places are kept."""
    mesh = sharding.make_mesh(2, 2, 2)
    layout, n = Layout(mesh), 8 * media
    images = np.arange(1, n * 2 + 1, dtype=np.uint8).reshape(n, 2)

    @jax.jit
    def encode(images):
        spread = layout.spread([images])
        return spread, layout.gather(spread.astype(jnp.float32) * 2, [n])[0]

    rows = jax.device_put(images, sharding.rows_sharding(mesh))
    spread, features = encode(rows)
    each = -(-2 * media // 2)  # two rows a shard, over two devices
    assert {s.data.shape for s in spread.addressable_shards} == {(each, 2)}
    np.testing.assert_array_equal(features, images * 2.0)
    assert {s.data.shape[0] for s in features.addressable_shards} == {n // 4}
    assert layout.spread([images[:0]]).shape == (0, 2)


def test_a_split_vocabulary_is_never_joined():
    """The loss's only collectives are sums over it: none holds logits."""
    mesh = sharding.make_mesh(1, 4, 2)
    B, T, D, V, W = 8, 16, 8, 64, 2
    layout, rows = Layout(mesh), sharding.rows_sharding(mesh)
    where = [jax.sharding.NamedSharding(mesh, p) for p in (P("fsdp", "tensor"), P("fsdp"))]

    def total(x, kernel, new, batch):
        def parts(weights, x):
            return tuple(jnp.einsum("btd,dv->btv", x, w) for w in weights)

        head = layout.head((kernel, new))
        return objective.next_token(parts, head, layout.residual(x), batch, 4)[0]

    def struct(dtype: Any, *dims: int, to: Any = rows) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=to)

    integers, floats = struct(jnp.int32, B, T), struct(jnp.float32, B, T)
    batch = Batch(integers, integers, integers, integers, integers, floats)
    arguments = struct(jnp.float32, B, T, D), struct(jnp.float32, D, V, to=where[0])
    new = struct(jnp.float32, D, W, to=where[1])
    compiled = jax.jit(jax.grad(total, argnums=(0, 2))).lower(*arguments, new, batch).compile()
    kinds = r"= (.*) (?:all-[a-z-]+|collective-permute|reduce-scatter)\("
    results = " ".join(re.findall(kinds, str(compiled.as_text())))
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", results)]
    assert (B // 4, 4) in shapes  # maxima and sums over a chunk's vocabulary
    assert [s for s in shapes if {V, V // 2, V + W} & set(s)] == [(D, V // 2)]  # the kernel, once
