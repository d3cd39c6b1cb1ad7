"""The table of chips: what its figures must agree on among themselves."""

import pytest

from flamingo_jax.planning import chips
from flamingo_jax.planning.chips import CHIPS, GIB


@pytest.mark.parametrize("kind", CHIPS)
def test_rows_are_whole(kind):
    chip = CHIPS[kind]
    assert chip.kind == kind and chip.source
    assert 1e14 < chip.peak < 1e16
    # A link is slower than memory, the network slower than all links.
    assert chip.network_rate < chip.links * chip.link_rate < chip.hbm_rate
    assert chip.links == 2 * chip.torus or not chip.torus
    assert chip.usable is None or 0.9 * chip.hbm < chip.usable < 1.01 * chip.hbm
    assert chip.devices <= chip.cores


def test_memory_is_what_the_compiler_allows():
    assert CHIPS["v5e"].memory == 15.75 * GIB
    assert CHIPS["tpu7x"].memory == int(94.74 * GIB)  # of one of its two devices
    assert CHIPS["h100"].memory == CHIPS["h100"].hbm  # nothing else is known


@pytest.mark.parametrize(
    ("name", "kind"),
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")],
)
def test_chips_are_known_by_jaxs_names(name, kind):
    assert chips.of_device(name) is CHIPS[kind]


def test_what_is_no_known_chip():
    assert chips.of_device("cpu") is None
    assert chips.of_device("TPU v4 lite") is None


@pytest.mark.parametrize(("kind", "rate"), [("h100", 900e9), ("a100", 600e9)])
def test_gpus_links_are_the_data_sheets_both_ways(kind, rate):
    assert 2 * CHIPS[kind].links * CHIPS[kind].link_rate == rate
    assert CHIPS[kind].platform == "cuda"
