"""What is known of a step before it is compiled: its state's bytes, its FLOPs, what stays whole.

`survey_apart` asks it of many requests in one child process (`python -m
flamingo_jax.planning.known REQUESTS RESULT`), so that a sweep need not compile what cannot fit or
cannot be the best.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.planning import child_processes, requests
from flamingo_jax.planning.requests import Asked, Request


def describe(asked: Asked) -> dict[str, Any]:
    """What a stage says of itself.

    Returns:
      devices, device_kind, mesh; steps; remat; attention (as the config has it); micro_batches;
      datasets: {name: {batch, length, media, frames}}; state: {kind: bytes a device}
      (`analytic.state_bytes`, the encoder's weights left out where features are given); offloaded:
      bytes a device of it that lie on the hosts;
      work: {model, without_attention, tokens, images}, a step over all devices; whole: what the
      mesh does not divide, by letter and axis.
    """
    from flamingo_jax import config, sharding
    from flamingo_jax.planning import analytic

    c, stage = asked.config, asked.stage
    read = {part: tree for part, tree in stage.frozen.items() if part != "vision"}
    held = dataclasses.replace(stage, frozen=read) if asked.media else stage
    work = analytic.work(c, stage, asked.vocabulary, cached=asked.media is not None)
    return {
        "devices": stage.mesh.size,
        "device_kind": stage.mesh.devices.flat[0].device_kind,
        "mesh": dict(stage.mesh.shape),
        "steps": stage.steps,
        "remat": c.model.remat,
        "attention": c.model.attention,
        "micro_batches": config.stage_settings(c, stage.name).micro_batches,
        "datasets": {
            name: {
                "batch": spec.batch,
                "length": spec.length,
                "media": spec.media,
                "frames": spec.frames,
            }
            for name, spec in stage.datasets.items()
        },
        "state": analytic.state_bytes(held, asked.media),
        "offloaded": analytic.host_bytes(held.frozen),
        "work": {
            "model": work.total,
            "without_attention": work.without_attention,
            "tokens": work.tokens,
            "images": work.images,
        },
        "whole": _whole(sharding.remarks(stage.abstract, stage.mesh, stage.heads)),
    }


def _whole(remarks: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows {letter, size, axis, ways, bytes, paths}: dims left whole for one reason are one row."""
    alike: dict[Any, list[Any]] = collections.defaultdict(list)
    for remark in remarks:
        alike[remark.letter, remark.size, remark.axis, remark.ways].append(remark)
    return [
        dict(zip(("letter", "size", "axis", "ways"), key, strict=True))
        | {"bytes": sum(one.bytes for one in those), "paths": [one.path for one in those]}
        for key, those in alike.items()
    ]


def hardware(traced: Any, devices: int) -> dict[str, Any]:
    """FLOPs of a traced step, over all devices: {total, again, by_kind, by_kernel} or {error}."""
    from flamingo_jax.planning import flops

    try:
        found = flops.count(traced.jaxpr, devices)
    except ValueError as error:
        return {"error": str(error)}
    kinds = {"by_kind": dict(found.by_kind), "by_kernel": dict(found.by_kernel)}
    return {"total": found.total, "again": found.again, **kinds}


def trace(asked: Asked) -> Any:
    """The stage's step, traced on its abstract arguments."""
    stage = asked.stage
    return stage.update.trace(stage.state, stage.frozen, stage.abstract_batches(asked.media))


def survey(many: Sequence[Request]) -> list[dict[str, Any]]:
    """`describe` of each, with `flops` (`hardware`) of the first of every kind of remat.

    The others of its kind have the same, by the model FLOPs that they have. One that makes no sense
    has an `error` alone.
    """
    found: list[dict[str, Any]] = []
    shares: dict[str, dict[str, Any]] = {}
    before: dict[str, dict[str, Any]] = {}
    devices: Any = None
    for request in many:
        if devices is None:
            devices, _ = requests.devices_of(request.topology)
        try:
            remat = requests.settings(request)[0].model.remat
            key = _but_remat(request)
            if key in before and remat in shares:  # remat changes nothing else
                facts = before[key] | {"remat": remat}
                found.append(_with_flops(facts, shares[remat]))
                continue
            asked = requests.assembled(request, devices)
        except InputError as error:
            found.append({"error": str(error)})
            continue
        facts = before[key] = describe(asked)
        if remat not in shares:
            counted = hardware(trace(asked), facts["devices"])
            shares[remat] = {"of": facts["work"]["model"]} | counted
        found.append(_with_flops(facts, shares[remat]))
    return found


def _but_remat(request: Request) -> str:
    """The same for requests that differ in rematerialisation alone."""
    others = {key: value for key, value in request.overrides.items() if key != "model.remat"}
    return repr(dataclasses.replace(request, remat="", overrides=others))


def _with_flops(facts: dict[str, Any], share: dict[str, Any]) -> dict[str, Any]:
    if "total" not in share:
        return facts
    return facts | {"flops": {"total": share["total"] * facts["work"]["model"] / share["of"]}}


def survey_apart(many: Sequence[Request], seconds: float = 3_600.0) -> list[dict[str, Any]]:
    """`survey` in a child process: this one's devices stay free for the children that compile.

    Raises:
      InputError: for a topology that there is not, or if the child takes longer than `seconds`.
      RuntimeError: if it dies.
    """
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        asked, told = pathlib.Path(folder, "requests.json"), pathlib.Path(folder, "result.json")
        asked.write_text(json.dumps([dataclasses.asdict(one) for one in many]), encoding="utf-8")
        log = pathlib.Path(folder, "log")
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(asked), str(told)],
                env=child_processes.environment(many[0].topology, many[0].devices),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            ended = child_processes.watch(child, seconds, 0.0)
        if ended is not None:
            raise InputError(f"tracing the candidates took more than {seconds:g} s; give --seconds")
        if not told.is_file():
            raise RuntimeError(log.read_text(encoding="utf-8", errors="replace").strip())
        found = json.loads(told.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            raise InputError(found["error"])
        return found


def main(asked: str, told: str) -> None:
    """Reads the file of requests, surveys them, writes the result file."""
    many = [requests.from_json(one) for one in json.loads(pathlib.Path(asked).read_text("utf-8"))]
    try:
        found: Any = survey(many)
    except InputError as error:
        found = {"error": str(error)}
    pathlib.Path(told).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
