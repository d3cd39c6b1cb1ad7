"""Buffers and sizes as a TPU's compiler told them, and its words for what does not fit."""

import pathlib

import pytest

from flamingo_jax.planning import hlo, memory

SAMPLES = pathlib.Path(__file__).parent / "samples"


def read(name: str) -> str:
    return (SAMPLES / name).read_text(encoding="utf-8")


def test_the_largest_buffers_at_the_peak_have_shapes_and_sources():
    module = hlo.parse(read("v4_2x2x4.txt"))
    found = memory.peak_buffers(read("v4_2x2x4-live-range.txt"), module, 7)
    told = [(b.name, b.dtype, b.dims, b.bytes) for b in found[:4]]
    assert told == [
        ("all-gather.15", "bf16", (1, 256, 256), 131072),
        ("param.5", "bf16", (3, 64, 256), 98304),
        ("param.6", "bf16", (3, 256, 64), 98304),
        ("constant_dynamic-slice_fusion.11", "bf16", (1, 64, 256), 32768),
    ]
    # A part of a loop's state is named by its index; the body's own parameter is the same memory.
    assert ("while.36", (3, 16, 256)) in [(b.name, b.dims) for b in found]
    assert not any(b.name.startswith("wide.param") for b in found)
    assert found[1].op_name == "w['up']"
    assert all(b.bytes == hlo.array_bytes(b.dtype, b.dims) for b in found)


def test_the_report_is_read_by_shape_where_nothing_has_a_name():
    found = memory.reported_buffers(read("v4_2x2x4-memory-usage-report.txt"))
    assert (found[0].dtype, found[0].dims, found[0].bytes) == ("bf16", (3, 64, 256), 98304)
    assert len(found) == 13
    assert memory.assigned(read("v4_2x2x4-memory-usage-report.txt")) == 593920
    assert memory.assigned("") == 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("state.params['xattn']['dense']['up']['kernel']", "trainable"),
        ("state.opt[1][0].mu['xattn']['dense']['up']['kernel']", "moments"),
        ("state.step", "other"),
        ("frozen['language']['norm']['scale']", "frozen"),
        ("batches['m3w'].media", "batch"),
        ("", "other"),
    ],
)
def test_kinds_of_arguments(path, kind):
    assert memory.kind_of(path) == kind


def test_what_lies_on_the_hosts_is_told_apart_and_what_a_loop_brings_is_counted():
    """A program of ten layers, by hand, as libtpu 0.0.52 writes: memory space 5 is the hosts'."""
    module = hlo.parse(read("offloaded.txt"))
    layer = 2 * 4 * 8
    assert memory.host_bytes(module) == {"held": 11 * layer, "brought": 2 * 10 * layer + layer}
    assert memory.argument_bytes(module)["frozen"] == layer
    plain = hlo.parse(read("v4_2x2x4.txt"))
    assert memory.host_bytes(plain) == {"held": 0, "brought": 0}


def test_what_does_not_fit_is_read_from_the_compilers_words():
    new = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (483.51G) exceeds available HBM (15.75G). HLO module: "
        "jit_update."
    )
    found = memory.out_of_memory(new)
    assert found == memory.OutOfMemory(int(483.51 * 2**30), int(15.75 * 2**30))
    old = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert memory.out_of_memory(old) == memory.OutOfMemory(int(20.5 * 2**30), int(15.75 * 2**30))
    assert memory.out_of_memory("RESOURCE_EXHAUSTED: of something") == memory.OutOfMemory(0, 0)
    assert memory.out_of_memory("INVALID_ARGUMENT: no such option") is None
