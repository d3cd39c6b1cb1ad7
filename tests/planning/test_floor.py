"""The floor of a step's time: bytes on the wire against rings that are played, and closed forms."""

import dataclasses

import pytest

from flamingo_jax.planning import floor, topology
from flamingo_jax.planning.chips import CHIPS
from flamingo_jax.planning.floor import Transfer


def played(op: str, group: int) -> float:
    """What a device sends when a ring is played step by step, a result being 1 byte a device."""
    chunk = 1.0 if op == "reduce-scatter" else 1 / group
    turns = {"all-gather": group - 1, "reduce-scatter": group - 1, "all-reduce": 2 * (group - 1)}
    sent = 0.0
    for _ in range(turns[op]):
        sent += chunk  # each device hands one chunk to its neighbour
    return sent


@pytest.mark.parametrize("group", [1, 2, 3, 16])
@pytest.mark.parametrize("op", ["all-gather", "reduce-scatter", "all-reduce"])
def test_bytes_are_those_of_a_ring(op, group):
    assert floor.wire_bytes(op, 1, group) == pytest.approx(played(op, group))


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather():
    size, group = 4096.0, 8
    parts = floor.wire_bytes("reduce-scatter", size / group, group)
    parts += floor.wire_bytes("all-gather", size, group)
    assert floor.wire_bytes("all-reduce", size, group) == parts


def test_what_others_get():
    assert floor.wire_bytes("all-to-all", 80, 8) == 70
    assert floor.wire_bytes("collective-permute", 80, 8) == 80
    for op in floor.OPS:
        assert floor.wire_bytes(op, 80, 1) == 0
    with pytest.raises(ValueError, match="all-gather"):
        floor.wire_bytes("gather", 1, 2)


@pytest.mark.parametrize("op", floor.OPS)
def test_within_an_island_nothing_crosses_the_network(op):
    near, far = floor.paths(Transfer(op, "fsdp", 1000, group=8, inside=8))
    assert (near, far) == (floor.wire_bytes(op, 1000, 8), 0)
    # One member an island: everything crosses.
    near, far = floor.paths(Transfer(op, "replica", 1000, group=8, inside=1))
    assert (near, far) == (0, floor.wire_bytes(op, 1000, 8))


@pytest.mark.parametrize("op", ["all-gather", "reduce-scatter", "all-reduce"])
def test_across_islands_each_level_is_a_ring(op):
    """Both levels together send what one ring over all would."""
    near, far = floor.paths(Transfer(op, "fsdp", 4096, group=32, inside=8))
    assert near > 0 < far < near
    assert near + far == pytest.approx(floor.wire_bytes(op, 4096, 32))


def test_a_step_is_no_faster_than_its_slowest_part():
    pod = topology.parse("v5p:4x4x4")
    gather = Transfer("all-gather", "fsdp", 64 * 10**9, group=64, inside=64, times=2)
    parts = floor.floor(459e12, [gather], pod)
    assert parts is not None
    assert parts.compute == 1 and parts.network == 0
    sent = 2 * 63 * 10**9
    assert parts.by_axis == {("fsdp", "all-gather"): sent}
    assert parts.links == pytest.approx(sent / (6 * 90e9))
    assert parts.one_axis == pytest.approx(3 * parts.links)
    assert parts.seconds == 1
    slower = floor.floor(459e11, [gather], pod)
    assert slower is not None and slower.seconds == parts.links


def test_slices_meet_on_the_network():
    pod = topology.parse("v5p:4x4x4*2")
    assert pod.island == 64
    gradients = Transfer("all-reduce", "replica", 10**9, group=2, inside=1)
    parts = floor.floor(0, [gradients], pod)
    assert parts is not None
    assert parts.links == 0 and parts.seconds == parts.network == 10**9 / 6.25e9


def test_a_chip_of_two_devices_sends_for_both():
    gather = Transfer("all-gather", "fsdp", 10**9, group=2, inside=2)
    one = floor.floor(0, [gather], topology.parse("v5p:4x4x4"))
    two = floor.floor(0, [gather], topology.parse("tpu7x:4x4x4"))
    assert one is not None and two is not None
    assert two.links == 2 * one.links  # their links are alike


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("v5p:4x4x4", (6, 2)),
        ("v5p:2x2x1", (2, 1)),
        ("v5p:2x2x4", (4, 1)),
        ("v5e:4x4", (4, 1)),
        ("v5e:8x16", (4, 1)),
        ("v5e:16x16", (4, 2)),
        ("v5e:1x1", (0, 0)),
        ("h100:1x8", (18, 18)),
    ],
)
def test_links_of_a_chip(name, links):
    assert floor.usable_links(topology.parse(name)) == links


@pytest.mark.parametrize(
    ("axis", "members"),
    [("fsdp", 4), ("tensor", 2), ("replica", 1), ("fsdp+tensor", 8), ("replica+fsdp", 4)],
)
def test_members_of_a_group_in_one_island(axis, members):
    """Two slices of 8, the replica axis across them."""
    assert floor.inside(axis, {"replica": 2, "fsdp": 4, "tensor": 2}, 8) == members


def test_members_of_a_group_over_nodes():
    """4 nodes of 8 GPUs: 32 along fsdp are 8 a node; with tensor 2 inside, 16 are 4 a node."""
    assert floor.inside("fsdp", {"replica": 1, "fsdp": 32, "tensor": 1}, 8) == 8
    assert floor.inside("fsdp", {"replica": 1, "fsdp": 16, "tensor": 2}, 8) == 4


def test_nothing_is_known_of_this_machine():
    assert floor.floor(1, [], topology.parse("local")) is None


def test_an_estimate_is_a_range():
    pod = topology.parse("v5e:16x16")
    gather = Transfer("all-gather", "fsdp", 256 * 10**8, group=256, inside=256)
    parts, chip = floor.floor(197e12, [gather], pod), CHIPS["v5e"]
    assert parts is not None
    found = floor.estimate(3e9, parts, chip)
    assert found == (2 + parts.links, 2 + parts.one_axis)
    assert floor.estimate(3e9, parts, dataclasses.replace(chip, clock=None)) is None


def test_utilisation_and_days():
    chip = CHIPS["v4"]
    assert floor.mfu(0.5 * 275e12 * 16 * 3, 3, 16, chip) == 0.5
    assert floor.days(0.864, 500_000) == 5


def test_what_comes_from_the_hosts_bounds_a_step_where_its_rate_is_known():
    parts = floor.floor(275e12, [], topology.parse("v4:4x4x4"), brought=32 * 10**9)
    assert parts is not None and parts.host == 2
    assert parts.seconds == 2
    unknown = floor.floor(459e12, [], topology.parse("v5p:4x4x4"), brought=32 * 10**9)
    assert unknown is not None and unknown.host is None
    assert unknown.seconds == unknown.compute
    none = floor.floor(275e12, [], topology.parse("v5p:4x4x4"))
    assert none is not None and none.host == 0
