"""A sweep keeps what each candidate told, and goes on where it was."""

import json
import pathlib

import pytest

from flamingo_jax import installed
from flamingo_jax.planning import known, requests, summary, sweep
from flamingo_jax.planning.candidates import Candidate
from flamingo_jax.planning.requests import Request
from flamingo_jax.planning.summary import Limits

SMALL = str(pathlib.Path(__file__).parent / "samples" / "small.py")
LOCAL = Request(f"{SMALL}:one", features=True, devices=2)


def keep(folder: pathlib.Path, outcome: str, limits: dict, **changes) -> None:
    row = {
        "request": json.loads(json.dumps(vars(LOCAL))),
        "config": requests.digest(LOCAL),
        "versions": installed.versions(),
        "limits": limits,
        "facts": {"outcome": outcome, "error": "kept"},
    }
    (folder / "one.json").write_text(json.dumps(row | changes))


def facts(folder: pathlib.Path, request: Request = LOCAL, seconds: float = 0.1) -> dict:
    return sweep.kept_or_compiled(request, "one", folder, Limits(seconds))


def test_what_was_compiled_is_not_compiled_again(tmp_path):
    keep(tmp_path, "compiled", {"seconds": 1, "memory": 0})
    assert facts(tmp_path)["error"] == "kept"


@pytest.mark.parametrize(
    ("outcome", "before", "now", "again"),
    [
        ("time-out", {"seconds": 0.05, "memory": 0}, Limits(0.1), True),
        ("time-out", {"seconds": 100, "memory": 0}, Limits(0.1), False),
        ("memory", {"seconds": 1, "memory": 2}, Limits(0.1, 3), True),
        ("memory", {"seconds": 1, "memory": 2}, Limits(0.1, 1), False),
        ("does not fit", {"seconds": 1, "memory": 0}, Limits(9), False),
    ],
)
def test_what_was_cut_is_compiled_again_with_looser_bounds(tmp_path, outcome, before, now, again):
    keep(tmp_path, outcome, before)
    found = sweep.kept_or_compiled(LOCAL, "one", tmp_path, now)
    assert (found["error"] != "kept") == again


def test_another_request_config_or_half_a_file_is_compiled(tmp_path):
    for changes in ({"config": "other"}, {"versions": {}}, {"request": {}}):
        keep(tmp_path, "compiled", {"seconds": 1, "memory": 0}, **changes)
        assert facts(tmp_path)["outcome"] == "time-out", changes
    (tmp_path / "one.json").write_text('{"request"')
    assert facts(tmp_path)["outcome"] == "time-out"
    kept = json.loads((tmp_path / "one.json").read_text())
    assert kept["limits"] == {"seconds": 0.1, "memory": 0.0}


@pytest.mark.slow
def test_a_sweep_on_this_machine(tmp_path):
    """Two meshes and two kinds of remat: what recomputes more is not compiled, the rest is kept."""
    many = [
        Candidate(mesh, remat, 1, 1.0, (
            ("mesh.replica", str(mesh[0])), ("mesh.fsdp", str(mesh[1])), ("model.remat", remat),
        ))
        for mesh in ((1, 2, 1), (2, 1, 1)) for remat in ("full", "none")
    ]  # fmt: skip
    said: list[str] = []
    found = sweep.run(LOCAL, many, tmp_path, Limits(600), said.append)
    assert len(said) == len(found) == 4
    assert [one.candidate.remat for one in found if one.plan is not None] == ["none", "none"]
    assert all("no better" in one.spared for one in found if one.candidate.remat == "full")
    assert {one.bound == 1 for one in found if one.candidate.remat == "none"} == {True}
    assert all(one.bound < 1 for one in found if one.candidate.remat == "full")
    for one in found[:2]:
        assert one.plan is not None and one.plan["verdict"] == summary.FITS
        assert sum(one.plan["memory"]["analytic"].values()) == one.state
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [one.score for one in sweep.run(LOCAL, many, tmp_path, Limits(600), said.append)] == [
        one.score for one in found
    ]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_what_is_known_without_compiling():
    """Bytes of a device by mesh, FLOPs by rematerialisation; what makes no sense says so."""
    changes = ({"model.remat": "full"}, {"model.remat": "none"}, {"mesh.fsdp": "3"})
    meshes = ({"mesh.replica": "2"}, {"mesh.replica": "2", "model.remat": "full"})
    many = [Request(f"{SMALL}:one", one, features=True) for one in (*changes, *meshes)]
    full, none, wrong, copies, same = known.survey(many)
    assert full["state"] == none["state"] and full["flops"]["total"] > none["flops"]["total"]
    assert none["flops"]["total"] == none["work"]["model"]
    assert "not the number of devices" in wrong["error"]
    assert copies["state"]["trainable"] > full["state"]["trainable"]
    assert same == copies | {"remat": "full", "flops": full["flops"]}
