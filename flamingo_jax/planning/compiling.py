"""Compiles the very step that `train` runs, for devices that need not be there, in a child process.

A compiler that aborts or takes all memory must not take the planner with it: `compile_apart`
starts this module as a program (`python -m flamingo_jax.planning.compiling REQUEST RESULT`),
watches its memory and time, and returns what it wrote: one JSON object, see `compile_here`.

TPU programs need the extra `plan` (libtpu); nothing is asked of a TPU or of its metadata server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from flamingo_jax import installed
from flamingo_jax.errors import InputError
from flamingo_jax.planning import child_processes, known, requests
from flamingo_jax.planning.requests import Request

COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    # Without a GPU nothing can be timed, and without timing Triton finds no tile sizes.
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0},
}
"""Options by platform beside those that steps are trained with (`sharding.COMPILER_OPTIONS`)."""

PLANNING_OPTIONS: dict[str, dict[str, Any]] = {
    # The program is not run: LLVM's work comes after all that is read here.
    "cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
}
"""Options that spare time where the compiled step is only looked at."""

LARGEST = 20
"""Buffers that are told by name."""


def compile_apart(
    request: Request, seconds: float = 3_600.0, rss_gb: float = 0.0
) -> dict[str, Any]:
    """Compiles in a child process and returns what it found.

    Args:
      request: what to compile.
      seconds: after so long the child is ended.
      rss_gb: and once it holds so many GB (10⁹ bytes; 0 = no bound). Looked up in /proc, as a limit
        on addresses would stop libtpu from starting; where there is no /proc there is no bound.

    Returns:
      The object of `compile_here`; its outcome may also be "time-out", "memory" (of this machine)
      or "failed" with the child's last line. Of these three it has what the compiler had told by
      then: for TPUs memory and traffic are known long before the last code is made, cycles not.

    Raises:
      InputError: what the child says of the request.
    """
    if request.dump and _dumped(pathlib.Path(request.dump), "*.txt"):
        raise InputError(f"the folder {request.dump!r} holds another program's dumps; empty it")
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        asked, told = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "result.json")
        dump = request.dump or str(pathlib.Path(folder, "dump"))
        fields = dataclasses.asdict(request) | {"dump": dump}
        asked.write_text(json.dumps(fields), encoding="utf-8")
        log = pathlib.Path(folder, "log")
        command = [sys.executable, "-m", __name__, str(asked), str(told)]
        with log.open("wb") as stream:
            child = subprocess.Popen(
                command,
                env=child_processes.environment(request.topology, request.devices),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            ended = child_processes.watch(child, seconds, rss_gb)
        if told.is_file():
            found = json.loads(told.read_text(encoding="utf-8"))
            if found["outcome"] == "input":
                raise InputError(found["error"])
            return found
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = words[-1] if words else "it said nothing"
        crashed = ("failed", f"the compiler ended with {child.returncode}: {last}")
        outcome, error = ended or crashed
        return {"outcome": outcome, "error": error} | _unfinished(asked, pathlib.Path(dump))


def _unfinished(asked: pathlib.Path, dump: pathlib.Path) -> dict[str, Any]:
    """What is known of a program whose compilation was ended, from its dumps."""
    from flamingo_jax.planning import memory

    begun = asked.with_suffix(".begun")
    if not begun.is_file():
        return {}
    found = json.loads(begun.read_text(encoding="utf-8"))
    told = found.pop("weights")
    found = {key: value for key, value in found.items() if key not in ("outcome", "error")}
    weights = [(path, tuple(dims), trained) for path, dims, trained in told]
    if assigned := memory.assigned(_dumped(dump, "*memory-usage-report.txt")):
        found["memory"] = {"peak": assigned}
    with contextlib.suppress(InputError):  # a text cut off
        found |= _facts(found["mesh"], weights, dump, None)
    return json.loads(json.dumps(found))  # lists, as in a result that was written


def compile_here(request: Request, begun: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles in this process, whose devices and environment are as they are.

    Args:
      request: what to compile.
      begun: a file for what is known before the compiler is called.

    Returns:
      outcome: "compiled", "does not fit" or "failed"; error: a sentence, "" if compiled;
      required, available: bytes of HBM, where it does not fit; versions; all of `known.describe`
      and, as `flops`, of `known.hardware`; trace_seconds,
      compile_seconds, rss_gb (the process's peak); memory: {argument, output, alias, temp, code,
      peak} bytes a device, with layouts' padding;
      arguments: {kind: bytes a device} of what the program reads, without; host: {held, brought},
      bytes a device that lie on the hosts, and that a step brings from there;
      collectives, traffic (their summary), remarks; cycles; unknown_loops; buffers (the largest).

    Raises:
      InputError: for a config, topology or mesh that makes no sense.
    """
    from flamingo_jax.planning import memory

    with contextlib.ExitStack() as stack:
        dump = request.dump or stack.enter_context(tempfile.TemporaryDirectory(prefix="plan-"))
        devices, platform = requests.devices_of(request.topology)
        begin = time.monotonic()
        asked = requests.assembled(request, devices)
        traced = known.trace(asked)
        found: dict[str, Any] = {
            "outcome": "compiled",
            "error": "",
            "versions": installed.versions(),
        }
        found |= known.describe(asked) | {"flops": known.hardware(traced, len(devices))}
        lowered = traced.lower()
        found["trace_seconds"] = time.monotonic() - begin
        weights = _weights(asked.stage)
        if begun is not None:
            begun.write_text(json.dumps(found | {"weights": weights}), encoding="utf-8")
        begin, compiled = time.monotonic(), None
        options = compiler_options(platform, dump)
        try:
            compiled = lowered.compile(compiler_options=options)
        except Exception as error:  # the compiler's, whatever their types are
            text = str(error)
            over = memory.out_of_memory(text)
            found["error"] = text.splitlines()[0] if text else type(error).__name__
            found["outcome"] = "failed" if over is None else "does not fit"
            found |= {} if over is None else dataclasses.asdict(over)
        found["compile_seconds"] = time.monotonic() - begin
        if compiled is not None:
            found["memory"] = _sizes(compiled.memory_analysis())
        found |= _facts(found["mesh"], weights, pathlib.Path(dump), compiled)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return found | {"rss_gb": peak * (1 if sys.platform == "darwin" else 1024) / 1e9}


def compiler_options(platform: str, dump: str = "") -> dict[str, Any]:
    """The options that a step is compiled with; with a dump folder, to be looked at only."""
    from flamingo_jax import sharding  # brings JAX in, which reads the environment

    options = sharding.COMPILER_OPTIONS.get(platform, {}) | COMPILER_OPTIONS.get(platform, {})
    if dump:
        options |= PLANNING_OPTIONS.get(platform, {})
    if dump and platform != "cpu":  # there it writes thousands of files of LLVM's
        options |= {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
    return options


def _sizes(analysis: Any) -> dict[str, int]:
    """Bytes a device of `memory_analysis()`; the peak as the compiler tells it, or the sum.

    libtpu's peak (0.0.52) has in it what lies on the hosts all the time, its arguments have not.
    """
    names = {"argument": "argument_size", "output": "output_size", "alias": "alias_size"}
    names |= {"temp": "temp_size", "code": "generated_code_size"}
    found = {key: int(getattr(analysis, f"{name}_in_bytes")) for key, name in names.items()}
    whole = found["argument"] + found["output"] - found["alias"] + found["temp"]
    peak = int(getattr(analysis, "peak_memory_in_bytes", 0))
    peak -= int(getattr(analysis, "host_argument_size_in_bytes", 0))
    # A peak of the CPU's leaves out what lies between buffers; one of a TPU has the code in it.
    return found | {"peak": max(peak, whole)}


def _facts(
    mesh: dict[str, int],
    parameters: list[tuple[str, tuple[int, ...], bool]],
    dump: pathlib.Path,
    compiled: Any,
) -> dict[str, Any]:
    """What the program's text and dumps say."""
    from flamingo_jax.planning import collectives, hlo, memory

    # TPUs: a dump has the cycles, and as_text() crashes on programs with async-update.
    text = _dumped(dump, "*.after_codegen.txt") or _dumped(dump, "*after_optimizations.txt")
    if not text and compiled is not None:
        text = compiled.as_text()
    if not text:
        return {"buffers": []}
    module = hlo.parse(text)
    weights = [collectives.Weight(*parameter) for parameter in parameters]
    found = collectives.read(module, mesh, weights)
    live, report = _dumped(dump, "*live-range.txt"), _dumped(dump, "*memory-usage-report.txt")
    buffers = memory.peak_buffers(live, module, LARGEST)
    if not buffers:
        buffers = memory.reported_buffers(report, LARGEST)
    if not buffers:
        buffers = memory.argument_buffers(module, LARGEST)
    remarks = collectives.remarks(module, found, weights)
    return {
        "arguments": memory.argument_bytes(module),
        "host": memory.host_bytes(module),
        "collectives": [dataclasses.asdict(one) | {"total": one.total} for one in found],
        "traffic": collectives.summary(found),
        "remarks": [dataclasses.asdict(remark) for remark in remarks],
        "cycles": hlo.estimated_cycles(module),
        "unknown_loops": module.unknown_loops,
        "buffers": [dataclasses.asdict(buffer) for buffer in buffers],
    }


def _weights(stage: Any) -> list[tuple[str, tuple[int, ...], bool]]:
    """(path, dims, trained?) of the stage's parameters."""
    from flamingo_jax.shapes import flatten_paths

    return [
        (path, tuple(leaf.shape), trained)
        for tree, trained in ((stage.trainable, True), (stage.frozen, False))
        for path, leaf in flatten_paths(tree).items()
    ]


def _dumped(folder: pathlib.Path, pattern: str) -> str:
    """The text of the largest dump of a kind: the step's, not a small helper's."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    return files[-1].read_text(encoding="utf-8", errors="replace") if files else ""


def main(asked: str, told: str) -> None:
    """Reads the request file, compiles, writes the result file."""
    request = requests.from_json(json.loads(pathlib.Path(asked).read_text(encoding="utf-8")))
    try:
        found = compile_here(request, pathlib.Path(asked).with_suffix(".begun"))
    except InputError as error:
        found = {"outcome": "input", "error": str(error)}
    draft = pathlib.Path(told + ".draft")
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.rename(told)


if __name__ == "__main__":
    main(*sys.argv[1:])
