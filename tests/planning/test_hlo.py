"""Loops, cycles and arguments of a program's text: worked out by hand, and of real TPU programs."""

import pathlib

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.planning import hlo

SAMPLES = pathlib.Path(__file__).parent / "samples"

# A loop of 5 trips that holds one of 3, and a loop whose end is computed.
NESTED = """HloModule jit_step, is_scheduled=true

%inner_condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%inner_body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[], /*index=1*/f32[4]{0:T(128)S(1)}) parameter(0)
  %new = f32[4]{0} a-new-instruction(%p.1), backend_config={"estimated_cycles":"7"}
  ROOT %t.1 = (s32[], f32[4]) tuple(%p.1, %new)
}

%outer_condition (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %m = s32[] constant(5)
  %m.copy = s32[] copy(%m)
  ROOT %lt.1 = pred[] fusion(%j, %m.copy), kind=kLoop, calls=%compared
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = pred[] compare(%a, %b), direction=LT
}

%outer_body (q.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %q.1 = (s32[], f32[4]) parameter(0)
  %cost = f32[4] fusion(%q.1), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"11"}
  ROOT %w = (s32[], f32[4]) while(%q.1), condition=%inner_condition, body=%inner_body
}

%fused (f: f32[4]) -> f32[4] {
  %f = f32[4] parameter(0)
  ROOT %g = f32[4] negate(%f), backend_config={"estimated_cycles":"1000"}
}

%odd_condition (r: (s32[], s32[])) -> pred[] {
  %r = (s32[], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %l = s32[] get-tuple-element(%r), index=1
  ROOT %lt.2 = pred[] compare(%k, %l), direction=LT
}

%odd_body (r.1: (s32[], s32[])) -> (s32[], s32[]) {
  %r.1 = (s32[], s32[]) parameter(0)
  ROOT %same = (s32[], s32[]) copy(%r.1)
}

ENTRY %main (x: f32[4], y: bf16[2,3]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="state.params[\\'xattn\\'][\\'gate\\']"}
  %y = bf16[2,3]{1,0:T(2,128)(2,1)} parameter(1), metadata={op_name="frozen[\\'embed\\']"}
  %one = s32[] constant(1)
  %start = (s32[], f32[4]) tuple(%one, %x)
  %loop = (s32[], f32[4]) while(%start), condition=%outer_condition, body=%outer_body
  %both = (s32[], s32[]) tuple(%one, %one)
  %odd = (s32[], s32[]) while(%both), condition=%odd_condition, body=%odd_body
  %known = (s32[], f32[4]) while(%start), condition=%odd_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"10"}}
  this line is nothing at all
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_nested_loops_multiply():
    module = hlo.parse(NESTED)
    # From 1 to 5, in each of them 3; and 10 of the inner body on its own.
    assert module.times["outer_body"] == 4
    assert module.times["inner_body"] == 4 * 3 + 10
    assert module.unknown_loops == ["odd"]
    assert module.times["odd_body"] == 1


def test_cycles_are_those_of_what_runs_and_not_of_what_is_fused():
    assert hlo.estimated_cycles(hlo.parse(NESTED)) == 4 * 11 + 22 * 7


def test_a_kernels_broken_lines_end_no_computation():
    """As libtpu prints a Pallas call with metadata; what follows it runs as well."""
    call = """  %kernel = f32[4] custom-call(%q.1), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="pallas_call" stack_frame_id=3}, backend_config={"estimated_cycles":"5"}
"""
    place = NESTED.index("  %cost")
    module = hlo.parse(NESTED[:place] + call + NESTED[place:])
    assert module.times == hlo.parse(NESTED).times
    assert hlo.estimated_cycles(module) == 4 * (11 + 5) + 22 * 7
    kernel = next(i for _, i in module.instructions() if i.name == "kernel")
    assert (kernel.opcode, kernel.op_name) == ("custom-call", "pallas_call")


def test_arguments_have_their_paths_and_bytes():
    module = hlo.parse(NESTED)
    found = [(a.op_name, a.bytes, module.room(a)) for a in hlo.arguments(module)]
    assert found == [
        ("state.params['xattn']['gate']", 16, "xattn"),
        ("frozen['embed']", 12, "embed"),
    ]


@pytest.mark.parametrize("text", ["", "HloModule jit_step\n", NESTED[: NESTED.index("ENTRY")]])
def test_a_text_without_an_entry_is_refused(text):
    with pytest.raises(InputError, match="ENTRY"):
        hlo.parse(text)


@pytest.mark.parametrize(
    ("dtype", "dims", "expected"),
    [
        ("bf16", (3, 5), 30),
        ("s4", (3,), 2),
        ("f8e4m3fn", (7,), 7),
        ("pred", (), 1),
        ("token", (), 0),
    ],
)
def test_bytes_of_an_array(dtype, dims, expected):
    assert hlo.array_bytes(dtype, dims) == expected


def test_a_types_layout_is_no_array():
    kind = "(bf16[1,64]{1,0:T(2,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)})"
    assert hlo.arrays_of(kind) == (("bf16", (1, 64)), ("u32", ()))


STACK = """HloModule jit_step

FileNames
1 "somewhere/flamingo_jax/train/step.py"
2 "somewhere/flamingo_jax/model/resampler.py"
3 "somewhere/flamingo_jax/model/layers.py"
4 "somewhere/else/library.py"

FunctionNames
1 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
4 {file_name_id=4 function_name_id=1 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}
5 {file_location_id=3 parent_frame_id=2}

ENTRY %main (x: f32[]) -> f32[] {
  ROOT %x = f32[] parameter(0), metadata={op_name="x" stack_frame_id=4}
}
"""


def test_the_stack_tells_the_module_that_asked_for_an_operation():
    module = hlo.parse(STACK)
    # step → resampler → layers → a library; and layers called by step alone.
    assert [module.frames[n] for n in range(1, 6)] == [
        "step", "resampler", "resampler", "resampler", "layers",
    ]  # fmt: skip
    assert module.room(hlo.arguments(module)[0]) == "resampler"


@pytest.mark.parametrize(("name", "trips"), [("v4_2x2x4", 3), ("v5e_4x4", 3)])
def test_real_tpu_programs_run_their_scans_as_often_as_they_are_long(name, trips):
    module = hlo.parse((SAMPLES / f"{name}.txt").read_text(encoding="utf-8"))
    loops = [(at, i) for at, i in module.instructions() if i.opcode == "while"]
    assert [hlo.trip_count(module, at, loop) for at, loop in loops] == [trips, trips]
    assert not module.unknown_loops
    assert hlo.estimated_cycles(module) > 0
    assert not hlo.windowed_loops(module)


def test_a_loop_that_permutes_and_multiplies_is_windowed():
    text = NESTED.replace(
        "  %new = f32[4]{0} a-new-instruction(%p.1)",
        "  %sent = f32[4] collective-permute(%p.1), channel_id=1, "
        "source_target_pairs={{0,1},{1,0}}\n  %new = f32[4]{0} dot(%sent, %sent)",
    )
    assert hlo.windowed_loops(hlo.parse(text)) == ["w", "known"]
