"""The step that is compiled is train's: its bytes are those of its state, its sums its gradients'.

Without libtpu on eight simulated devices; with it for TPUs that are not there.
"""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from flamingo_jax import assemble, config, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.planning import child_processes, compiling, hlo
from flamingo_jax.planning.compiling import Request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = str(pathlib.Path(__file__).parent / "samples" / "small.py")
TINY = str(ROOT / "experiments" / "flamingo_3b.py")
LOCAL = Request(f"{SMALL}:one", mesh=(2, 2, 2), features=True, devices=8)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`: libtpu"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs JAX's CUDA plugin"
)


@pytest.fixture(scope="module")
def one():
    """Compiled in a child process."""
    return compiling.compile_apart(LOCAL, seconds=300)


@pytest.fixture(scope="module")
def wide():
    """The same with a larger frozen part, compiled here."""
    return compiling.compile_here(Request(f"{SMALL}:wide", mesh=(2, 2, 2), features=True))


def stage_of(variant: str) -> assemble.Stage:
    c = config.finish(config.load(f"{SMALL}:{variant}"))
    mesh = sharding.make_mesh(2, 2, 2)
    return assemble.stage(c, "flamingo", assemble.Vocabulary(264, 2), mesh)


def held(tree) -> int:
    """Bytes of a tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def gradients(found: dict) -> list[tuple[str, int]]:
    """(parameter, bytes) of the sums of gradients over rows' devices."""
    return sorted(
        (c["weight"], c["total"])
        for c in found["collectives"]
        if c["backward"] and c["weight"] and c["axis"] != "tensor"
        if c["op"] in ("all-reduce", "reduce-scatter")
    )


@pytest.mark.parametrize("variant", ["one", pytest.param("wide", marks=pytest.mark.slow)])
def test_arguments_are_the_state_the_frozen_weights_and_the_batch(variant, request):
    found, stage = request.getfixturevalue(variant), stage_of(variant)
    assert found["outcome"] == "compiled", found["error"]
    read = {key: value for key, value in stage.frozen.items() if key != "vision"}
    expected = {
        "trainable": held(stage.state.params),
        "moments": held(stage.state.opt),
        "frozen": held(read),  # with features given the encoder is not run
        "batch": held(stage.abstract_batches((1, 64))),
        "other": held(stage.state.step),
    }
    assert found["arguments"] == expected
    assert found["memory"]["argument"] == sum(expected.values())
    assert found["memory"]["alias"] == held(stage.state)
    assert found["memory"]["peak"] >= found["memory"]["argument"] + found["memory"]["temp"]


def test_moments_are_of_trained_parameters_alone(one):
    stage = stage_of("one")
    counters = 4 * sum(leaf.ndim == 0 for leaf in jax.tree.leaves(stage.state.opt))
    gates = 2 * 4 * sum(leaf.ndim == 0 for leaf in jax.tree.leaves(stage.state.params))
    assert one["arguments"]["moments"] - counters == 2 * one["arguments"]["trainable"] - gates
    names = [b["op_name"] for b in one["buffers"] if b["kind"] == "moments"]
    assert names
    assert not [name for name in names if "language" in name or "vision" in name or "table" in name]


@pytest.mark.parametrize("variant", ["one", pytest.param("wide", marks=pytest.mark.slow)])
def test_gradients_that_are_summed_are_those_of_what_is_trained(variant, request):
    found = request.getfixturevalue(variant)
    assert gradients(found)
    trained = ("resampler/", "xattn/", "project/", "embed/new")
    assert all(weight.startswith(trained) for weight, _ in gradients(found))
    kinds = {remark["kind"] for remark in found["remarks"]}
    assert not kinds & {"frozen-gradient", "unknown-loop", "windowed-einsum"}


@pytest.mark.slow
def test_what_is_frozen_adds_no_sums(one, wide):
    assert one["arguments"]["frozen"] < wide["arguments"]["frozen"]
    assert gradients(one) == gradients(wide)


def test_traffic_sums_up_the_collectives(one):
    assert sum(row["bytes"] for row in one["traffic"]) == sum(
        c["total"] for c in one["collectives"]
    )
    assert {"xattn", "resampler", "language"} <= {c["room"] for c in one["collectives"]}
    assert {c["axis"] for c in one["collectives"]} >= {"fsdp", "tensor", "replica"}
    assert one["rss_gb"] > 0
    assert one["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 0.3}, "no whole number of rows"),
        ({"stage": "language"}, "has no stage 'language'"),
        ({"config": "no.py"}, "no config file"),
        ({"mesh": (3, 1, 1)}, "not the number of devices"),
        ({"batch": 0.125}, "not a multiple of replica x fsdp"),
    ],
)
def test_a_bad_request_is_told_in_one_sentence(change, words):
    with pytest.raises(InputError, match=words):
        compiling.compile_here(Request(**({**vars(LOCAL)} | change)))


def test_what_the_child_refuses_its_parent_raises(tmp_path):
    with pytest.raises(InputError, match="no config file"):
        compiling.compile_apart(Request(str(tmp_path / "none.py")))


def test_dumps_of_two_programs_are_not_mixed(tmp_path):
    (tmp_path / "module_0000.after_codegen.txt").write_text("HloModule jit_other\n")
    with pytest.raises(InputError, match="another program"):
        compiling.compile_apart(Request(f"{SMALL}:one", dump=str(tmp_path)))


def test_of_a_child_that_was_ended_the_dumps_are_read(tmp_path):
    """What a TPU's compiler had told when its time was up."""
    samples = pathlib.Path(__file__).parent / "samples"
    for name, ending in {
        "v4_2x2x4.txt": "after_optimizations.txt",
        "v4_2x2x4-live-range.txt": "after_optimizations-live-range.txt",
        "v4_2x2x4-memory-usage-report.txt": "after_optimizations-memory-usage-report.txt",
    }.items():
        (tmp_path / f"module_0000.{ending}").write_bytes((samples / name).read_bytes())
    asked = tmp_path / "request.json"
    assert compiling._unfinished(asked, tmp_path) == {}
    known = {"versions": {}, "devices": 16, "trace_seconds": 1.0, "weights": []}
    known["mesh"] = {"replica": 2, "fsdp": 4, "tensor": 2}
    asked.with_suffix(".begun").write_text(json.dumps(known))
    found = compiling._unfinished(asked, tmp_path)
    assert found["memory"] == {"peak": 593920}
    assert found["buffers"][0]["name"] == "all-gather.15"
    assert {row["axis"] for row in found["traffic"]} == {"replica", "fsdp", "tensor"}


def test_a_child_that_aborts_takes_nobody_along(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import os, sys\n\ndef get_config():\n"
        "  print('the compiler says why', file=sys.stderr, flush=True)\n  os.abort()\n"
    )
    found = compiling.compile_apart(Request(str(bad)))
    assert found["outcome"] == "failed"
    assert "-6" in found["error"]


@pytest.mark.parametrize(
    ("bounds", "outcome", "words"),
    [
        ({"seconds": 0.5}, "time-out", "more than 0.5 s"),
        ({"rss_gb": 0.02}, "memory", "more than the 0.02 GB"),
    ],
)
def test_bounds_of_time_and_memory_end_the_child(bounds, outcome, words):
    found = compiling.compile_apart(LOCAL, **bounds)
    assert found["outcome"] == outcome
    assert words in found["error"]


def test_options_of_a_tpu_have_a_dump_only_where_they_are_looked_at():
    plain = compiling.compiler_options("tpu")
    assert plain == sharding.COMPILER_OPTIONS["tpu"]  # as a run's own steps
    assert compiling.compiler_options("tpu", "d") == plain | {
        "xla_dump_to": "d", "xla_dump_hlo_as_text": True,
    }  # fmt: skip
    assert not compiling.compiler_options("cpu")


@needs_libtpu
def test_a_chip_of_v4_is_one_device():
    program = (
        "from flamingo_jax.planning import requests\n"
        "devices, platform = requests.devices_of('v4:2x2x4')\n"
        "print(platform, len(devices))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | child_processes.ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["tpu", "16"]


@needs_libtpu
@pytest.mark.slow
def test_a_tpu_program_brings_its_cycles_and_its_buffers_names(tmp_path):
    asked = Request(
        f"{SMALL}:one", topology="v5e:4x4", mesh=(2, 4, 2), features=True, dump=str(tmp_path)
    )
    found = compiling.compile_apart(asked)
    assert found["outcome"] == "compiled", found["error"]
    assert found["devices"] == 16
    assert found["cycles"] > 0
    assert found["versions"]["libtpu"]
    assert found["memory"]["argument"] >= sum(found["arguments"].values())  # tiles are padded
    assert found["buffers"][0]["dims"]
    assert list(tmp_path.glob("*.after_codegen.txt"))
    assert "windowed-einsum" not in {remark["kind"] for remark in found["remarks"]}


@needs_libtpu
@pytest.mark.slow
def test_fused_attention_compiles_for_a_tpu(tmp_path):
    """In a step with a mesh and rematerialisation: its kernels are there, and priced.

    Self-attention of 64 tokens, the gated layers' of 64 tokens and 64 latents, the resampler's of
    these and the features.
    """
    overrides = {
        "model.attention": "fused",
        "model.remat": "dots",
        "model.resampler.latents": "64",
        "train.datasets.m3w.length": "64",
    }
    where: dict[str, Any] = {"topology": "v5e:2x2", "mesh": (1, 2, 2)}
    asked = Request(f"{SMALL}:one", overrides, **where, features=True, dump=str(tmp_path))
    found = compiling.compile_apart(asked)
    assert found["outcome"] == "compiled", found["error"]
    assert found["attention"] == "fused"
    assert found["flops"]["by_kernel"].keys() == {
        "splash_mha_fwd_segmented_residuals",
        "splash_mha_dkv_segmented_no_residuals",
    }
    text = max(tmp_path.glob("*.after_codegen.txt"), key=lambda path: path.stat().st_size)
    module = hlo.parse(text.read_text(encoding="utf-8"))
    calls = [
        (module.times[computation], instruction.rest)
        for computation, instruction in module.instructions()
        if 'custom_call_target="tpu_custom_call"' in instruction.rest
    ]
    # Three attentions: forwards, again, and backwards. None is lost, nor is what comes after it.
    assert len(calls) == 9 and all(times >= 1 for times, _ in calls)
    # Which is why the estimate adds their FLOPs: a version that tells cycles would count twice.
    assert not any("estimated_cycles" in rest for _, rest in calls)


@needs_libtpu
@pytest.mark.slow
def test_what_is_offloaded_is_no_memory_of_a_tpu_and_brought_twice():
    asked = Request(f"{SMALL}:one", topology="v5e:4x4", mesh=(2, 4, 2), features=True)
    lent = dataclasses.replace(asked, overrides={"mesh.offload": "frozen"})
    here, there = compiling.compile_apart(asked), compiling.compile_apart(lent)
    assert there["outcome"] == "compiled", there["error"]
    held = there["host"]["held"]
    assert held == there["offloaded"] > 0 == here["host"]["held"]
    assert here["arguments"]["frozen"] - there["arguments"]["frozen"] == held
    assert here["memory"]["argument"] - there["memory"]["argument"] >= held
    assert there["host"]["brought"] == 2 * held  # forward and backward


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_told_with_the_largest_buffers():
    """3B without remat at 256 rows a chip."""
    asked = Request(
        f"{TINY}:full", topology="v5e:4x4", mesh=(1, 16, 1), features=True, remat="none", batch=16
    )
    found = compiling.compile_apart(asked)
    assert found["outcome"] == "does not fit"
    assert found["required"] > found["available"] == int(15.75 * 2**30)
    assert "E1000" in found["error"]
    assert found["buffers"][0]["bytes"] > 2**30
    assert found["buffers"][0]["dims"]


@needs_cuda
@pytest.mark.slow
def test_gpus_need_not_be_there_either():
    asked = Request(f"{SMALL}:one", topology="h100:2x4", mesh=(2, 4, 1), features=True)
    found = compiling.compile_apart(asked)
    assert found["outcome"] == "compiled", found["error"]
    assert found["devices"] == 8
    assert found["memory"]["argument"] >= sum(found["arguments"].values())
    moved = {(one["op"], one["axis"]) for one in found["collectives"]}
    assert ("all-gather", "fsdp") in moved
