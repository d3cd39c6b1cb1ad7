"""Traffic of a step by mesh axis: groups in every notation, real TPU programs, what is remarked."""

import pathlib

import pytest

from flamingo_jax.planning import collectives, hlo
from flamingo_jax.planning.collectives import Weight

SAMPLES = pathlib.Path(__file__).parent / "samples"
MESH = {"replica": 2, "fsdp": 4, "tensor": 2}


def sample(name: str) -> hlo.Module:
    return hlo.parse((SAMPLES / f"{name}.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("rest", "groups", "axis"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]], "tensor"),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]], "tensor"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], "replica"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]], "replica+fsdp"),
        ("replica_groups=[8]<=[8]", [[0, 1, 2, 3, 4, 5, 6, 7]], "replica+fsdp+tensor"),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]], "replica+fsdp+tensor"),
        (
            "replica_groups=mesh['axis_0'=8] {'axis_0'}, x={}",
            [list(range(8))],
            "replica+fsdp+tensor",
        ),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]], "replica+fsdp"),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]], "fsdp"),
        ("source_target_pairs={{0,2},{2,0}}", [[0, 2], [2, 0]], "fsdp"),
        ("replica_groups={{0},{1}}", [[0], [1]], "none"),
    ],
)
def test_groups_and_the_axes_they_span(rest, groups, axis):
    found = collectives.groups_of(f"channel_id=1, {rest}, metadata={{op_name='x'}}", 8)
    assert sorted(found) == sorted(groups)
    assert collectives.axes_of(found, {"replica": 2, "fsdp": 2, "tensor": 2}) == axis


def test_turns_that_are_peeled_off_a_loop_count():
    """Ten turns, and one laid out before them: the same collective by its channel."""
    (found,) = collectives.read(sample("offloaded"), MESH)
    assert (found.op, found.axis, found.times) == ("all-gather", "tensor", 11)


def test_a_v4_programs_traffic():
    """3 layers of up bf16[256, 512] and down bf16[512, 256] on replica 2 x fsdp 4 x tensor 2."""
    layer, rows = 256 * 512 * 2 // 2, 8 * 16 // 8  # bytes of a weight, halved by tensor; x's rows
    found = collectives.read(sample("v4_2x2x4"), MESH)
    table = {(row["axis"], row["op"]): (row["times"], row["bytes"]) for row in
             collectives.summary(found)}  # fmt: skip
    assert table == {
        # Both weights, forward and backward.
        ("fsdp", "all-gather"): (12, 3 * 4 * layer),
        # Written as an all-reduce with two dynamic-slices in one fusion: both weights at once.
        ("fsdp", "reduce-scatter"): (3, 3 * 2 * layer // 4),
        ("replica", "all-reduce"): (3, 3 * 2 * layer // 4),
        # x @ up @ down, and its cotangent.
        ("tensor", "all-reduce"): (6, 3 * 2 * rows * 256 * 2),
    }
    assert not any(one.asynchronous for one in found)
    assert {one.group for one in found if one.axis == "fsdp"} == {4}
    assert {one.groups for one in found if one.axis == "fsdp"} == {4}


def test_a_v5e_programs_asynchronous_gathers_count_once():
    """The same model on fsdp 16: gathers repeated by fusions, gradients summed whole."""
    layer = 256 * 512 * 2
    found = collectives.read(sample("v5e_4x4"), {"replica": 1, "fsdp": 16, "tensor": 1})
    sums = {}
    for one in found:
        sums[one.op, one.asynchronous] = sums.get((one.op, one.asynchronous), 0) + one.total
    assert sums[("all-gather", True)] + sums[("all-gather", False)] == 3 * 4 * layer
    assert sums[("all-gather", True)] > 0
    assert sums[("all-reduce", False)] == 3 * 2 * layer
    assert {one.axis for one in found} == {"fsdp"}


HAND = """HloModule jit_update

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4] parameter(0)
  %a = f32[512,1024] all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), METADATA
  %b = (f32[8], f32[3,512,1024]) all-gather-start(%x), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %c = f32[3,512,1024] all-gather-done(%b)
  %d = f32[700,700] all-reduce(%x), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0)
  %e = (bf16[8,2], bf16[8,2], u32[], u32[]) collective-permute-start(%x), channel_id=4, source_target_pairs={{0,1}}
  %f = (f32[8], f32[9]) all-to-all(%x, %x), replica_groups={}
  %g = f32[30,40] all-reduce(%x), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0), METADATA
  ROOT %out = f32[4] copy(%x)
}
""".replace("METADATA", 'metadata={op_name="jit(update)/transpose(jvp())/dot_general"}')  # noqa: E501
WEIGHTS = [Weight("xattn/query/kernel", (3, 512, 1024), True)]
FROZEN = [Weight("language/blocks/query/kernel", (5, 40, 30), False)]
HAND_MESH = {"replica": 1, "fsdp": 4, "tensor": 2}


def test_results_of_started_and_of_many_armed_collectives():
    found = {one.op_name or one.op: one for one in collectives.read(hlo.parse(HAND), HAND_MESH)}
    assert found["all-gather"].bytes == 3 * 512 * 1024 * 4
    assert found["all-gather"].asynchronous
    assert found["collective-permute"].bytes == 8 * 2 * 2
    assert found["all-to-all"].bytes == (8 + 9) * 4
    assert found["all-to-all"].group == 8


def test_remarks_tell_gradients_stacks_and_activations_apart():
    module = hlo.parse(HAND)
    found = collectives.read(module, HAND_MESH, WEIGHTS)
    remarks = {r.kind: (r.bytes, r.count) for r in collectives.remarks(module, found, WEIGHTS)}
    assert remarks == {
        "gradient-all-reduce": (512 * 1024 * 4, 1),
        "stack-gather": (3 * 512 * 1024 * 4, 1),
        "activation-fsdp": (700 * 700 * 4, 1),
    }


def test_a_weight_gathered_over_tensor_is_remarked():
    """As shards one after another; the room tells a weight from activations of as many numbers."""
    gather = "%c2 = bf16[8,256,256] all-gather(%x), channel_id=9, replica_groups={}, "
    gather += "metadata={op_name=\"frozen['language']\"}\n  ROOT"
    text = HAND.replace("ROOT", gather)
    weights = [Weight("language/blocks/dense/up/kernel", (5, 512, 1024), False)]
    found = collectives.read(hlo.parse(text), HAND_MESH, weights)
    remarks = collectives.remarks(hlo.parse(text), found, weights)
    assert {r.kind: r.bytes for r in remarks}["tensor-gather"] == 8 * 256 * 256 * 2


def test_a_frozen_weights_gradient_is_remarked_where_it_is_summed():
    frames = 'metadata={op_name="jit(update)/transpose(jvp())/dot_general" stack_frame_id=1}'
    tables = (
        'FileNames\n1 "flamingo_jax/model/language.py"\n\nFileLocations\n1 {file_name_id=1 '
        "function_name_id=1 line=1}\n\nStackFrames\n1 {file_location_id=1 parent_frame_id=1}\n\n"
    )
    sum_ = "replica_groups=[2,4]<=[4,2]T(1,0), "
    plain = 'metadata={op_name="jit(update)/transpose(jvp())/dot_general"}'
    text = HAND.replace(sum_ + plain, sum_ + frames).replace("ENTRY", tables + "ENTRY")
    module = hlo.parse(text)
    found = collectives.read(module, HAND_MESH, [*WEIGHTS, *FROZEN])
    kinds = {r.kind: r.bytes for r in collectives.remarks(module, found, [*WEIGHTS, *FROZEN])}
    assert kinds["frozen-gradient"] == 30 * 40 * 4
