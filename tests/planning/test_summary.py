"""What a plan says of the facts of a compiled step: verdict, memory, floor, rates, warnings.

The program is a real one for v4:2x2x4; what surrounds it is made up in round numbers.
"""

import json
import pathlib

import pytest

from flamingo_jax.plan import printing
from flamingo_jax.planning import compiling, summary

SAMPLES = pathlib.Path(__file__).parent / "samples"
GIB = 2**30


@pytest.fixture
def facts(tmp_path):
    """Of a compilation that was cut when its traffic and memory were known."""
    for name, ending in {
        "v4_2x2x4.txt": "after_optimizations.txt",
        "v4_2x2x4-live-range.txt": "after_optimizations-live-range.txt",
        "v4_2x2x4-memory-usage-report.txt": "after_optimizations-memory-usage-report.txt",
    }.items():
        (tmp_path / f"module_0000.{ending}").write_bytes((SAMPLES / name).read_bytes())
    known = {
        "versions": {"jax": "1", "libtpu": "2"}, "trace_seconds": 1.0, "weights": [], "steps": 1000,
        "mesh": {"replica": 2, "fsdp": 4, "tensor": 2}, "devices": 16, "device_kind": "TPU v4",
        "remat": "full", "micro_batches": 1,
        "datasets": {
            "m3w": {"batch": 8, "length": 16, "media": 3, "frames": 1},
        },
        "state": {"trainable": 10, "moments": 20, "frozen": 30, "batch": 5, "counters": 4},
        "work": {"model": 8e15, "without_attention": 7e15, "tokens": 4096, "images": 256},
        "flops": {"total": 10e15, "again": 2e15, "by_kind": {}},
        "whole": [
            {"letter": "N", "size": 6, "axis": "tensor", "ways": 4, "bytes": 2**20,
             "paths": ["a", "b", "c"]},
        ],
    }  # fmt: skip
    asked = tmp_path / "request.json"
    asked.with_suffix(".begun").write_text(json.dumps(known))
    return {"outcome": "time-out", "error": "too long"} | compiling._unfinished(asked, tmp_path)


def test_of_what_was_cut_all_that_is_known_is_told(facts):
    plan = summary.summarise(facts, "v4:2x2x4")
    assert plan["verdict"] == summary.FITS  # by the memory that the compiler had assigned
    assert plan["memory"]["peak"] == 593_920
    assert plan["memory"]["capacity"] == int(30.75 * GIB)
    assert sum(plan["memory"]["by_kind"].values()) == 593_920
    assert plan["estimate"] is None and plan["rates"].keys() == {"floor"}
    assert {row["axis"] for row in plan["traffic"]} == {"replica", "fsdp", "tensor"}
    kinds = {warning["kind"] for warning in plan["warnings"]}
    assert {"cut", "left-whole", "idle", "cycles"} <= kinds
    assert json.loads(json.dumps(plan)) == plan


def test_the_floor_and_what_follows_from_it(facts):
    plan = summary.summarise(facts, "v4:2x2x4")
    seconds = 10e15 / 16 / 275e12
    rate = plan["rates"]["floor"]
    assert plan["floor"]["bound"] == "compute"
    assert rate["seconds"] == pytest.approx(seconds)
    assert rate["mfu"] == pytest.approx(0.8) == summary.score(plan)
    assert rate["mfu_without_attention"] == pytest.approx(0.7)
    assert rate["tokens"] == pytest.approx(4096 / seconds)
    assert rate["days"] == pytest.approx(seconds * 1000 / 86_400)
    told = summary.summarise(facts | {"cycles": 3 * 1.05e9}, "v4:2x2x4")
    span = told["estimate"]
    assert span["label"] == "compiler model, uncalibrated"
    assert 3.0 < span["least"] <= span["most"]
    assert told["rates"]["estimate, most"]["mfu"] < 0.8


def test_fused_kernels_are_in_the_estimate_and_marked(facts):
    """The compiler has no cycles for them: 2.75e15 FLOPs on 16 chips of 275e12 are 0.625 s."""
    facts |= {"cycles": 3 * 1.05e9, "attention": "fused"}
    plain = summary.summarise(facts, "v4:2x2x4")
    told = facts | {"flops": facts["flops"] | {"by_kernel": {"splash_mha_fwd": 2.75e15}}}
    plan = summary.summarise(told, "v4:2x2x4")
    for end in ("least", "most"):
        assert plan["estimate"][end] == pytest.approx(plain["estimate"][end] + 0.625)
    assert "kernels" in {warning["kind"] for warning in plan["warnings"]}
    assert "kernels" not in {warning["kind"] for warning in plain["warnings"]}
    assert any("splash_mha_fwd 2.75 PFLOP" in line for line in printing.flops_lines(plan))
    assert any("all plain" in line for line in printing.flops_lines(plain))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"outcome": "compiled"}, summary.FITS),
        ({"memory": {"peak": 31 * GIB}}, summary.OVER),
        ({"memory": {}}, summary.UNKNOWN),
        ({"outcome": "failed"}, summary.UNKNOWN),
        ({"outcome": "does not fit", "required": 40 * GIB, "available": 30 * GIB}, summary.OVER),
    ],
)
def test_the_verdict(facts, change, verdict):
    plan = summary.summarise(facts | change, "v4:2x2x4")
    assert plan["verdict"] == verdict
    assert (plan["floor"] is None) == (verdict == summary.OVER)
    if "available" in change:
        assert plan["memory"]["capacity"] == 30 * GIB
        assert plan["memory"]["required"] == 40 * GIB


def test_what_collectives_move(facts):
    one = facts["collectives"][0]

    def row(**changes):
        return one | {"weight": "", "op": "all-gather", "total": 8} | changes

    facts["collectives"] = [
        row(weight="xattn/a"),
        row(weight="language/b", total=16),
        row(weight="xattn/a", op="reduce-scatter", total=32),
        row(total=64),
    ]
    moves = summary.summarise(facts, "v4:2x2x4")["moves"]
    assert moves == dict(zip(summary.TRAFFIC, (24, 32, 64), strict=True))


def test_devices_of_a_cpu_share_its_memory(facts):
    facts |= {"device_kind": "cpu", "outcome": "compiled"}
    plan = summary.summarise(facts, "local")
    assert plan["floor"] is None and not plan["rates"]
    assert 0 < plan["memory"]["capacity"] < 2**44
    assert summary.score(plan) == pytest.approx(0.8)  # the share that is not computed again
    whole = summary.capacity(summary.place("local", facts | {"devices": 1}), facts)
    assert whole is not None and plan["memory"]["capacity"] == whole // 16


def test_the_hosts_are_told_of_and_bound_the_step(facts):
    facts["host"] = {"held": 2 * GIB, "brought": 32 * 10**9}
    plan = summary.summarise(facts, "v4:2x2x4")
    assert plan["host"] == {"device": 2 * GIB, "host": 8 * GIB, "brought": 32 * 10**9}
    assert plan["floor"]["host"] == 2
    assert plan["floor"]["bound"] == "compute" and plan["floor"]["seconds"] > 2
    (line,) = printing.host_lines(plan)
    assert "8 GiB a host, 2 GiB of each device" in line and "2 s at the least" in line
    nowhere = summary.summarise(facts, "v5p:2x2x4")
    assert "host" not in nowhere["floor"]
    assert "host" in {warning["kind"] for warning in nowhere["warnings"]}
    facts["host"] = {"held": 0, "brought": 0}
    assert summary.summarise(facts, "v4:2x2x4")["host"] is None
