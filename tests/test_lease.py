"""The lock of a run in a bucket: one holds it, who is gone does not, and who lost it notices."""

import time

import pytest

from flamingo_jax import lease, storage
from flamingo_jax.errors import InputError

ADDRESS = "gs://bucket/run"


@pytest.fixture
def quick(monkeypatch) -> None:
    """Seconds become tenths of one."""
    for name, value in (("BEAT", 0.2), ("STALE", 1.5), ("POLL", 0.1)):
        monkeypatch.setattr(lease, name, value)


def holder(**who) -> lease.Lease:
    """One that takes its lease as a process of another machine, and goes on as that."""
    taken = mine()
    taken._me = {"process": 7, "host": "elsewhere", "boot": "b", "lease": "other", **who}
    taken.take()
    return taken


def mine() -> lease.Lease:
    return lease.Lease(storage.to_path(ADDRESS))


def test_it_is_taken_and_given_back(bucket, quick):
    one = mine()
    one.take()
    assert "run/lease.json" in bucket.objects
    first = bucket.find("run/lease.json").generation
    time.sleep(0.7)
    assert bucket.find("run/lease.json").generation > first
    one.check()
    one.release()
    assert not bucket.objects


def test_one_that_lives_is_told_of(bucket, quick):
    other = holder()
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"gs://bucket/run is in use by process 7 on elsewhere"):
        mine().take()
    assert time.monotonic() - begin < 30
    other.check()
    other.release()


def test_one_that_is_gone_is_waited_for(bucket, quick):
    other = holder()
    other._ended.set()  # as when its machine is gone
    begin = time.monotonic()
    taken = mine()
    taken.take()
    assert time.monotonic() - begin >= lease.STALE
    taken.check()
    taken.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(bucket, quick, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 1000.0)
    other = holder(**lease._myself() | {"process": 2**22 + 1})  # above the kernel's most
    other._ended.set()
    taken = mine()
    taken.take()
    taken.release()


def test_one_that_was_given_up_saves_nothing_more(bucket, quick, monkeypatch):
    other = holder()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_is_gone", lambda _: True)  # as after a long silence
        taken = mine()
        taken.take()
    for _ in range(100):
        if other._taken_over:
            break
        time.sleep(0.1)
    with pytest.raises(InputError, match="was taken over by process"):
        other.check()
    other.release()
    assert "run/lease.json" in bucket.objects, "it is another's now"
    taken.release()
