"""Topologies by name: what they hold, what is refused, what is doubted."""

import math

import jax
import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.planning import gpus, topology
from flamingo_jax.planning.chips import CHIPS


@pytest.mark.parametrize(
    ("text", "chips", "devices", "hosts", "wrap"),
    [
        ("v4:8x12x16", 1536, 1536, 384, (True, True, True)),
        ("v4:2x2x4", 16, 16, 4, (False, False, False)),
        ("v5p:8x8x8", 512, 512, 128, (True, True, True)),
        ("v5p:8x8x8*2", 1024, 1024, 256, (True, True, True)),
        ("v5e:4x4", 16, 16, 4, (False, False)),
        ("v5e:8x16", 128, 128, 32, (False, True)),
        ("v5e:1x1", 1, 1, 1, (False, False)),
        ("v5e:2x4", 8, 8, 2, (False, False)),
        ("v6e:16x16", 256, 256, 64, (True, True)),
        ("tpu7x:4x4x4", 64, 128, 16, (True, True, True)),
        ("h100:8x8", 64, 64, 8, (False, False)),
    ],
)
def test_what_a_name_means(text, chips, devices, hosts, wrap):
    found = topology.parse(text)
    assert (found.chips, found.devices, found.hosts) == (chips, devices, hosts)
    assert found.wrap == wrap and not found.warnings
    assert found.name == text
    assert found.chip is CHIPS[found.kind]


def test_islands_are_joined_by_fast_links():
    names = ("v5p:8x8x8*2", "h100:4x8", "tpu7x:2x2x1*3", "v4:4x4x4")
    assert [topology.parse(name).island for name in names] == [512, 8, 8, 64]


def test_this_machine():
    here = topology.parse("local")
    assert (here.devices, here.chips) == (jax.device_count(), jax.device_count())
    assert (here.island, here.hosts) == (jax.device_count(), 1)
    assert here.name == "local" and here.chip is None
    with pytest.raises(ValueError, match=r"jax\.devices"):
        topology.description(here)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v9:4x4", "v5e"),
        ("v5p", "KIND:SHAPE"),
        ("v5p:8x8x", "KIND:SHAPE"),
        ("v5p:8x8x8*0", "at least 1"),
        ("v4:0x4x4", "at least 1"),
        ("v5e:4x4x4", "2 dims"),
        ("v4:16x16", "3 dims"),
        ("v5e:32x8", "at most 16"),
        ("v4:8x12x18", "multiple of 4"),
        ("v4:2x2x8", "multiple of 4"),
        ("v4:16x16x20", "4096"),
        ("h100:64", "NODESxGPUS"),
        ("h100:2x16", "at most 8"),
        ("h100:2x8*2", "no number of slices"),
    ],
)
def test_what_there_is_not(text, says):
    with pytest.raises(InputError) as error:
        topology.parse(text)
    message = str(error.value)
    assert says in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:2x8", "none of the shapes"),
        ("v4:1x2x2", "none of the shapes"),
        ("v5p:16x8x8", "8x8x16"),
        ("v5p:16x20x28", "6144"),
    ],
)
def test_what_is_doubted(text, says):
    assert says in " ".join(topology.parse(text).warnings)


def test_proposals_begin_with_the_most_cubic():
    def shapes(kind: str, chips: int) -> list[tuple[int, ...]]:
        return [found.dims for found in topology.propose(kind, chips)]

    assert shapes("v5p", 256) == [(4, 8, 8), (4, 4, 16)]
    assert shapes("v4", 1536)[0] == (8, 12, 16)
    assert shapes("v5e", 64) == [(8, 8)]
    assert shapes("h100", 64) == [(8, 8)]
    assert shapes("v4", 8) == [(2, 2, 2)]


@pytest.mark.parametrize("kind", CHIPS)
def test_proposals_are_what_was_asked_for(kind):
    for size in (4, 16, 64, 256):
        for found in topology.propose(kind, size):
            assert found.chips == size and not found.warnings
            assert found.kind == kind and math.prod(found.dims) == size


def test_what_cannot_be_proposed():
    with pytest.raises(InputError, match="64 and 128"):
        topology.propose("v6e", 100)
    with pytest.raises(InputError, match="v5e"):
        topology.propose("v7", 64)


def test_descriptions():
    assert topology.description(topology.parse("v4:8x12x16")) == {
        "platform": "tpu",
        "topology_name": "v4:8x12x16",
        "chip_config_name": "megacore",
        "chips_per_host_bounds": (2, 2, 1),
        "num_slices": 1,
        "wrap": (True, True, True),
    }
    flat = topology.description(topology.parse("v5e:8x16*2"))
    assert flat["wrap"] == (False, True, False) and flat["num_slices"] == 2
    assert flat["topology_name"] == "v5e:8x16" and "chip_config_name" not in flat
    one = topology.description(topology.parse("v6e:1x1"))
    assert one["chips_per_host_bounds"] == (1, 1, 1)
    nodes = topology.description(topology.parse("h100:2x8"))
    assert (nodes["platform"], nodes["topology"]) == ("cuda", "1x2x8")
    assert "core_count: 132" in nodes["target_config"]
    assert set(gpus.PROCESSORS) == {chip.kind for chip in CHIPS.values() if not chip.torus}
