"""Where time goes: the parts add up, and goodput counts only steps that stay."""

import time

import pytest

from flamingo_jax import pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes only when told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


WORK = pace.Work(tokens=100, images=10, model_flops=6e9, peak_flops=4e9)


def test_parts_add_up(clock) -> None:
    found = pace.Pace(WORK, pace.Past(begun=1000.0))
    clock(20)  # compiling: no step's time
    found.restart(1)
    for _ in range(4):
        with found.waiting("data"):
            clock(0.5)
        clock(2)
    with found.waiting("checkpoint"):
        clock(1)
    row = found.row(5)
    assert row is not None
    assert row["seconds"] == pytest.approx(11)
    assert row["data_wait_seconds"] == pytest.approx(2)
    assert row["checkpoint_seconds"] == pytest.approx(1)
    assert row["compute_seconds"] == pytest.approx(8)
    assert row["steps_per_second"] == pytest.approx(4 / 11)
    assert row["tokens_per_second"] == pytest.approx(400 / 11)
    assert row["images_per_second"] == pytest.approx(40 / 11)
    assert row["mfu"] == pytest.approx(6e9 * 4 / (8 * 4e9))
    assert row["goodput"] == pytest.approx(8 / 31)
    assert 0 < row["rss_gb"] < 100
    assert found.row(5) is None  # no step since


def test_waiting_that_fails_is_counted(clock) -> None:
    found = pace.Pace(WORK, pace.Past(begun=1000.0))
    with pytest.raises(KeyError), found.waiting("data"):
        clock(3)
        raise KeyError
    row = found.row(1)
    assert row is not None and row["data_wait_seconds"] == pytest.approx(3)


def test_goodput_goes_on_after_a_restart(clock) -> None:
    events = [
        {"kind": "start", "time": 900.0},
        {"kind": "resume", "time": 960.0},
        {"kind": "resume", "time": 999.0},
    ]
    # Steps that were undone have no rows any more; an old row may lack the field.
    speed = [{"compute_seconds": 30.0}, {"compute_seconds": 20.0}, {"seconds": 5.0}]
    before = pace.past(events, speed)
    assert (before.begun, before.productive, before.restarts) == (900.0, 50.0, 2)
    found = pace.Pace(pace.Work(1, 1), before)
    clock(25)
    row = found.row(1)
    assert row is not None
    assert row["goodput"] == pytest.approx(75 / 125) and row["restarts"] == 2
    assert "mfu" not in row and "model_tflops" not in row  # nothing is known


def test_a_new_run_begins_now(clock) -> None:
    assert pace.past([], []) == pace.Past(1000.0, 0.0, 0)


def test_validation_is_no_steps_time(clock) -> None:
    found = pace.Pace(WORK, pace.Past(begun=1000.0))
    clock(3)
    with found.paused():
        clock(50)
    clock(1)
    assert found.row(0) is None  # none is finished: the interval goes on
    clock(2)
    row = found.row(2)
    assert row is not None and row["seconds"] == pytest.approx(6)
    assert row["model_tflops"] == pytest.approx(6e9 * 2 / 6 / 1e12)
