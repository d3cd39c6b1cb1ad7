"""What is known of a run beside its numbers: run.json, and what every checkpoint records."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time
from typing import Any

import jax

from flamingo_jax import assemble, inputs, installed
from flamingo_jax import config as configs
from flamingo_jax.pace import peak_rss_gb
from flamingo_jax.processes import is_primary
from flamingo_jax.workdir import Workdir, write_atomically


def meta(c: Any, command: str) -> dict[str, Any]:
    """What a checkpoint records of its run."""
    return {
        "config": json.loads(configs.to_json(c)),
        "versions": installed.versions(),
        "git": git_state(),
        "command": command,
    }


def git_state() -> dict[str, Any]:
    """The commit of the checkout this package is in, and whether it has uncommitted changes."""
    folder = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        call = ["git", "-C", str(folder), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}


def describe(run: inputs.Run, command: str) -> dict[str, Any]:
    """The facts of run.json; those of an earlier start are kept."""
    before = _read_json(run.workdir.path / "run.json")
    facts = {
        "command": command,
        "versions": installed.versions(),
        "git": git_state(),
        "devices": jax.device_count(),
        "platform": jax.devices()[0].platform,
        "device_kind": jax.devices()[0].device_kind,
        "mesh": dict(run.mesh.shape),
        "seed": run.config.seed,
        "parameters": [
            row for name in run.config.stages for row in _parameters(run.assemble(name))
        ],
        "probe": {"matmul_gflops": matmul_gflops()},
        "stages": before.get("stages", []),
        "peak_rss_gb": before.get("peak_rss_gb", 0.0),
        "attribution": inputs.attributions(run.config),
    }
    write(run.workdir, facts)
    return facts


def _parameters(stage: assemble.Stage) -> list[dict[str, Any]]:
    """A row for each part of the canonical tree."""
    rows = []
    for trainable, tree in ((True, stage.trainable), (False, stage.frozen)):
        for part in sorted(tree):
            count = sum(a.size for a in jax.tree.leaves(tree[part]))
            row = {"part": part, "count": count, "trainable": trainable, "stage": stage.name}
            rows.append(row)
    return rows


def matmul_gflops(size: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of f32 matrix products here: the scale that times on other machines go by."""
    a = jax.numpy.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        product(a).block_until_ready()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - begin) / 1e9


def record_stage(workdir: Workdir, facts: dict[str, Any], name: str, c: Any, outcome: Any) -> None:
    """Adds a stage's times; a resumed stage's add up."""
    if outcome.finished_before:
        return
    before = {row["stage"]: row for row in facts["stages"]}
    row = before.get(name, {"seconds": 0.0, "compile_seconds": 0.0})
    before[name] = {
        "stage": name,
        "steps": configs.stage_settings(c, name).steps,
        "seconds": row["seconds"] + outcome.seconds,
        "compile_seconds": row["compile_seconds"] + outcome.compile_seconds,
    }
    facts["stages"] = list(before.values())
    record_memory(workdir, facts)


def record_memory(workdir: Workdir, facts: dict[str, Any]) -> None:
    """Writes run.json with the most memory that this or an earlier start has used."""
    facts["peak_rss_gb"] = max(peak_rss_gb(), facts.get("peak_rss_gb", 0.0))
    write(workdir, facts)


def write(workdir: Workdir, facts: dict[str, Any]) -> None:
    """Replaces run.json; the first process's business."""
    if is_primary():
        write_atomically(workdir.path / "run.json", json.dumps(facts, indent=1) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
