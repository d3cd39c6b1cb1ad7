"""Traces of the steps that were asked for, by flag or signal."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from flamingo_jax import profiling
from flamingo_jax.errors import InputError


def test_ranges_of_steps() -> None:
    assert profiling.parse("") == (0, 0)
    assert profiling.parse("100:105") == (100, 105)
    for text in ("5", "5:5", "6:5", "0:5", "a:b", "5:-1", ":7"):
        with pytest.raises(InputError, match="FIRST:END"):
            profiling.parse(text)


def traced(folder) -> list[str]:
    """The names of the traces that hold a profile."""
    return sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*.xplane.pb")})


def run(profiler: profiling.Profiler, first: int, last: int) -> None:
    step = jax.jit(lambda x: x @ x)
    x = jnp.eye(8)
    for number in range(first, last + 1):
        profiler.before(number)
        x = step(x)
        profiler.after(number, x)


def test_by_flag_and_by_signal(tmp_path) -> None:
    with profiling.Profiler(tmp_path, (3, 5)) as profiler:
        run(profiler, 1, 6)
        assert traced(tmp_path) == ["step-3"]
        os.kill(os.getpid(), signal.SIGUSR1)
        run(profiler, 7, 8)  # the loop ends before the trace does
    assert traced(tmp_path) == ["step-3", "step-7"]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_run_that_begins_within_the_range_traces_its_rest(tmp_path) -> None:
    with profiling.Profiler(tmp_path, (3, 6)) as profiler:
        run(profiler, 5, 7)
    assert traced(tmp_path) == ["step-5"]
