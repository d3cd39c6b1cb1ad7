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
def test_slopes(slope, amiss, resident, capsys):
    assert len(resident["growth"]([(s, 480 + slope * s / 1000) for s in STEPS])) == amiss
    assert f"{slope:+.2f} MB a thousand steps" in capsys.readouterr().out


def test_the_warm_up_is_not_judged(resident):
    assert not resident["growth"](list(enumerate([10.0, 20.0, 30.0, 40.0, *[100.0] * 8])))
    assert not resident["growth"]([])


def test_what_is_held_is_seen(resident):
    before = resident["used_mb"]()
    held = np.ones(20_000_000, np.uint8)
    assert resident["used_mb"]() - before > 15
    del held
