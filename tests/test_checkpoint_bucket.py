"""Steps in a bucket: what a kill leaves of a save or a removal is never taken for a whole one."""

import contextlib

import pytest

from flamingo_jax import checkpoint, sealed
from flamingo_jax.errors import InputError, OutOfReach
from tests.bucket import Refused
from tests.test_checkpoint import abstract, assert_same, open_stage, save, save_steps, state

FOLDER = "gs://bucket/run/checkpoints/flamingo"
PREFIX = "run/checkpoints/flamingo"
SLOW = pytest.mark.slow


def restore(stage: checkpoint.StageCheckpoints) -> int:
    """The newest sound step, after its values have been compared; 0 = none."""
    restored = stage.restore(*map(abstract, state(0)))
    if restored is None:
        return 0
    assert_same((restored.params, restored.opt), state(restored.step))
    return restored.step


@pytest.mark.parametrize(("looked_at", "every"), [(-1, 8), pytest.param(1, 1, marks=SLOW)])
def test_every_beginning_of_a_save(looked_at, every, bucket):
    """Objects in the order in which they were written: a kill leaves the first ones."""
    save_steps(FOLDER, 1)
    one = dict(bucket.objects)
    written: list[str] = []
    bucket.before_write = written.append
    save_steps(FOLDER, 2)
    bucket.before_write = lambda _: None
    whole = dict(bucket.objects)
    assert written[-1] == f"{PREFIX}/2/commit_success.txt" and len(written) > 10
    counts = range((len(written) - 1) % every, len(written), every)
    for count in counts:
        bucket.objects.clear()
        bucket.objects.update(one | {name: whole[name] for name in written[:count]})
        assert checkpoint.list_steps(FOLDER) == [1], count
        assert not sealed.is_whole(checkpoint.storage.to_path(FOLDER) / "2")
        if count == counts[looked_at]:
            with open_stage(FOLDER) as stage:
                assert not bucket.names(f"{PREFIX}/2/"), "what is left is removed"
                assert restore(stage) == 1
                assert save(stage, 2)
            assert checkpoint.load_params(FOLDER).step == 2


@SLOW
def test_every_moment_of_a_removal(bucket):
    save_steps(FOLDER, 1, 2)
    removed: list[str] = []
    bucket.before_remove = removed.append
    with open_stage(FOLDER, keep=1) as stage:
        stage.wait()
    assert removed[0] == f"{PREFIX}/1/commit_success.txt" and len(removed) > 10
    assert checkpoint.list_steps(FOLDER) == [2] and not bucket.names(f"{PREFIX}/1/")

    bucket.before_remove = lambda _: None
    save_steps(FOLDER, 3)
    bucket.before_remove = stop_after(1)
    with contextlib.suppress(Exception), open_stage(FOLDER, keep=1) as stage:
        stage.wait()
    bucket.before_remove = lambda _: None
    assert bucket.names(f"{PREFIX}/2/") and checkpoint.list_steps(FOLDER) == [3]
    with open_stage(FOLDER) as stage:
        assert not bucket.names(f"{PREFIX}/2/") and restore(stage) == 3


def stop_after(count: int):
    """A hook that lets so many through: a process that was killed removes no more."""
    left = [count]

    def hook(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Refused(404, "killed")

    return hook


LOST = ("/2/meta/metadata", "/2/params/manifest.ocdbt", "/2/opt/")


@SLOW
@pytest.mark.parametrize("lost", LOST)
def test_lost_objects_are_walked_back_from(lost, bucket):
    save_steps(FOLDER, 1, 2)
    names = bucket.names(f"{PREFIX}{lost}")
    assert names
    for name in names:
        bucket.remove(name)
    left = len(bucket.names(f"{PREFIX}/2/"))
    with open_stage(FOLDER) as stage:
        assert restore(stage) == 1
        assert len(bucket.names(f"{PREFIX}/2.damaged/")) == left
        assert not bucket.names(f"{PREFIX}/2/")
        assert save(stage, 2)
    assert checkpoint.list_steps(FOLDER) == [1, 2]
    with open_stage(FOLDER) as stage:
        assert bucket.names(f"{PREFIX}/2.damaged/"), "it is for people to look at"
        assert restore(stage) == 2


def test_an_outage_is_no_damage(bucket):
    save_steps(FOLDER, 1, 2)
    with open_stage(FOLDER) as stage:
        before = dict(bucket.objects)
        read, bucket.find = bucket.find, refuse_content
        try:
            with pytest.raises(OutOfReach):
                restore(stage)
        finally:
            bucket.find = read
        assert bucket.objects == before
        assert restore(stage) == 2


def refuse_content(name: str):
    raise Refused(403, f"{name}: no access any more")


@SLOW
def test_frozen_weights(bucket):
    tree = state(0)[0]
    digest = checkpoint.save_frozen("gs://bucket/run", tree)
    assert checkpoint.save_frozen("gs://bucket/run", tree) == digest
    assert_same(checkpoint.load_frozen("gs://bucket/run", digest, abstract(tree)), tree)
    bucket.remove(f"run/frozen/{digest}/commit_success.txt")
    with pytest.raises(InputError, match="are missing"):
        checkpoint.load_frozen("gs://bucket/run", digest)
    assert checkpoint.save_frozen("gs://bucket/run", tree) == digest
    assert_same(checkpoint.load_frozen("gs://bucket/run", digest, abstract(tree)), tree)
