"""What the benchmarks call flat, and that they see memory which is held."""

import pathlib
import runpy
from typing import Any

import numpy as np
import pytest

FILE = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "resident.py"
STEPS = range(50, 2050, 50)


@pytest.fixture(scope="module")
def resident() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


@pytest.mark.parametrize(("slope", "amiss"), [(0.0, 0), (1.0, 0), (3.0, 1)])
def test_one_batch_less_in_the_queue_now_and_then_is_no_slope(slope, amiss, resident, capsys):
    drawn = np.random.default_rng(0)
    seen = [(s, 480 + slope * s / 1000 - 10 * float(drawn.random() < 0.25)) for s in STEPS]
    assert len(resident["growth"](seen)) == amiss
    assert f"{slope:+.2f} MB a thousand steps" in capsys.readouterr().out


def test_the_warm_up_is_not_judged(resident):
    flat = [100.0] * 8
    assert not resident["growth"](list(enumerate([10.0, 20.0, 30.0, 40.0, *flat])))
    assert not resident["rise"]([10.0, 20.0, 30.0, 40.0, *flat])
    assert len(resident["rise"]([*flat, 101.0, 100.0, 103.0, 102.0])) == 1
    assert not resident["growth"]([]) and not resident["rise"]([1.0])


def test_what_is_held_is_seen(resident):
    before = resident["used_mb"]()
    held = np.ones(20_000_000, np.uint8)
    assert resident["used_mb"]() - before > 15
    del held
