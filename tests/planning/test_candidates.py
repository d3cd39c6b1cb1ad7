"""Which layouts a sweep looks at, in which order, and which it need not compile."""

import math
import pathlib

import pytest

from flamingo_jax import config
from flamingo_jax.errors import InputError
from flamingo_jax.planning import candidates
from flamingo_jax.planning.candidates import Candidate

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE = Candidate((1, 16, 1), "none", 1, 1.0)


def made(
    axes: tuple[str, ...], devices: int = 16, overrides: dict[str, str] | None = None
) -> list[Candidate]:
    c = config.load(str(ROOT / "experiments" / "flamingo_3b.py"), overrides)
    return candidates.make(c, c.train, "train", axes, devices)


def like(base: Candidate, **changes) -> Candidate:
    return Candidate(**({**vars(base)} | changes))


@pytest.mark.parametrize("devices", [16, 64, 1536])
def test_meshes_are_whole_and_divide_what_they_split(devices):
    found = candidates.meshes(devices, heads=[64, 16], rows=[6144, 3072], width=8192)
    assert found
    for replica, fsdp, tensor in found:
        assert replica * fsdp * tensor == devices
        assert not 16 % tensor and not 8192 % fsdp
        assert not 6144 % (replica * fsdp) and not 3072 % (replica * fsdp)
    assert len(set(found)) == len(found)


def test_copies_of_the_weights_are_multiples_of_the_slices():
    found = candidates.meshes(32, heads=[8], rows=[64], width=64, slices=2)
    assert {replica % 2 for replica, _, _ in found} == {0}
    assert (2, 16, 1) in found and (2, 2, 8) in found
    assert not [mesh for mesh in found if mesh[2] > 8]


def test_the_configs_own_mesh_is_among_them():
    paper = (96, 1, 16)  # of 1536: more copies than would be tried
    rows, heads = [1536], [64]
    assert paper not in candidates.meshes(1536, heads, rows, 8192)
    assert paper in candidates.meshes(1536, heads, rows, 8192, own=paper)


def test_what_is_not_swept_is_the_configs():
    own = made(("remat",), overrides={"mesh.tensor": "2", "model.remat": "dots"})[1]
    assert own.mesh == (1, 8, 2) and own.factor == 1 and own.parts == 2
    assert own.overrides == (("model.remat", "dots"),)
    assert [one.remat for one in made(("remat",))] == list(candidates.REMAT)
    assert made(("mesh",))[0].overrides == (
        ("mesh.replica", "1"), ("mesh.fsdp", "16"), ("mesh.tensor", "1"),
    )  # fmt: skip


def test_overrides_make_the_candidate():
    """What a sweep recommends is taken by the config."""
    for one in made(("batch", "remat", "mesh", "micro_batches"))[::97]:
        c = config.load(str(ROOT / "experiments" / "flamingo_3b.py"), dict(one.overrides))
        config.finish(c)
        assert (c.mesh.replica, c.mesh.fsdp, c.mesh.tensor) == one.mesh
        assert c.model.remat == one.remat
        assert c.train.datasets.m3w.batch == 256 * one.factor
        assert c.train.micro_batches == one.parts
        shards = one.parts * one.mesh[0] * one.mesh[1]
        assert all(row.batch % shards == 0 for row in c.train.datasets.values())


def test_there_are_as_many_parts_as_the_rows_of_the_smallest_dataset():
    parts = {one.parts: dict(one.overrides) for one in made(("micro_batches",))}
    assert set(parts) == {1, 2, 4}  # VTP's 64 rows on 16 devices
    assert parts[4] == {"train.micro_batches": "4"}


@pytest.mark.parametrize(
    ("axes", "words"), [(("remat", "colour"), "'colour'"), (("mesh",), "multiples of replica")]
)
def test_sweeps_that_make_no_sense(axes, words):
    with pytest.raises(InputError, match=words):
        made(axes, devices=7 if axes == ("mesh",) else 16)


def test_names_are_told_apart():
    many = made(candidates.AXES)
    assert len({one.name for one in many}) == len(many)


def test_what_keeps_most_and_computes_least_comes_first():
    many = [like(ONE, remat="full"), like(ONE, parts=2), ONE]
    bounds = {many[0]: 0.75, many[1]: 1.0, many[2]: 1.0}
    assert candidates.ordered(many, bounds) == [ONE, many[1], many[0]]


def test_nothing_that_needs_more_than_what_does_not_fit_is_compiled():
    over = [like(ONE, remat="attention", parts=2)]
    for changes, spared in (
        ({"remat": "attention", "parts": 2, "factor": 2.0}, True),
        ({"remat": "dots", "parts": 2}, True),
        ({"remat": "dots", "parts": 1}, True),
        ({"remat": "full", "parts": 2}, False),
        ({"remat": "dots", "parts": 4}, False),
        ({"remat": "dots", "parts": 1, "factor": 0.5}, False),
        ({"remat": "none", "parts": 1, "mesh": (1, 8, 2)}, False),
    ):
        why = candidates.spared(like(ONE, **changes), math.inf, {}, over)
        assert why.startswith("does not fit") == spared, changes


def test_nothing_that_cannot_be_better_than_what_fits_is_compiled():
    fitting = {like(ONE, remat="dots", parts=2): 0.8}
    other = {"remat": "none", "mesh": (1, 8, 2)}
    for changes, bound, spared in (
        ({"remat": "full", "parts": 2}, 1.0, True),
        ({"remat": "dots", "parts": 4}, 1.0, True),
        ({"remat": "none", "parts": 4}, 1.0, False),
        ({"remat": "full", "parts": 2, "factor": 2.0}, 1.0, False),
        (other, 0.79, True),
        (other, 0.81, False),
        (other, math.inf, False),
    ):
        why = candidates.spared(like(ONE, **changes), bound, fitting, [])
        assert why.startswith("no better") == spared, (changes, bound)
