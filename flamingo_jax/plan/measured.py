"""Steps that were measured, to stand beside a plan: by them its estimate can be calibrated one day.

Any run counts, on a CPU too; what differs from the plan (chip, mesh, batches) is told with it.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from flamingo_jax.errors import InputError
from flamingo_jax.report import reading
from flamingo_jax.report.reading import is_number

HEAD = ("run", "on", "a step", "x floor", "x estimate", "differs in")
NEEDED = (
    *("seconds", "steps_per_second"),
    *("tokens_per_second", "images_per_second"),
)
"""Fields of a row of speed.jsonl."""


def read(run: str | pathlib.Path, plan: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a run's speed.jsonl and run.json tell of a stage.

    Args:
      run: its workdir.
      plan: of `summary.summarise`, to compare with.
      stage: whose steps.

    Returns:
      run, stage, steps (how many were measured), seconds (of a step: the median over the logged
      intervals of the time that is neither waiting for data nor saving), least, most; device_kind,
      devices, mesh; tokens and images of a step; differs: what is not as planned, by name.

    Raises:
      InputError: if there is no such run, or it has no measured step of the stage.
    """
    found = reading.read(run)
    rows = [row for row in found.speed if row.get("stage") == stage]
    known = [row for row in rows if all(is_number(row.get(key)) for key in NEEDED)]
    if not known:
        raise InputError(
            f"{str(run)!r} has no measured steps of stage {stage!r} in its speed.jsonl; give the "
            "--workdir of a run that has trained it"
        )
    lengths = [max(round(row["steps_per_second"] * row["seconds"]), 1) for row in known]
    seconds = [_computing(row) / n for row, n in zip(known, lengths, strict=True)]
    last = known[-1]
    facts = found.facts
    told = {
        "run": str(run),
        "stage": stage,
        "steps": sum(lengths),
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "device_kind": facts.get("device_kind") or facts.get("platform") or "",
        "devices": facts.get("devices"),
        "mesh": facts.get("mesh"),
        "tokens": round(last["tokens_per_second"] / last["steps_per_second"]),
        "images": round(last["images_per_second"] / last["steps_per_second"]),
    }
    return told | {"differs": _differs(told, plan)}


def _computing(row: dict[str, Any]) -> float:
    """Seconds of an interval's steps alone."""
    waited = ("data_wait_seconds", "checkpoint_seconds")
    rest = row["seconds"] - sum(row[key] for key in waited if is_number(row.get(key)))
    told = row.get("compute_seconds")
    return float(told) if is_number(told) else rest


def _differs(told: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    found = []
    if told["device_kind"].lower() != (plan["device_kind"] or "").lower():
        found.append("chip")
    if told["devices"] != plan["devices"]:
        found.append("number of devices")
    if told["mesh"] != plan["mesh"]:
        found.append("mesh")
    if any(told[key] != plan["work"].get(key) for key in ("tokens", "images")):
        found.append("batches")
    return found


def beside(plan: dict[str, Any], told: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows of text under `HEAD`; the factors only where chip and batches are the plan's."""
    floor, span = plan["floor"], plan["estimate"]
    rows = []
    for one in told:
        seconds = one["seconds"]
        alike = "chip" not in one["differs"] and "batches" not in one["differs"]
        of_floor = f"{seconds / floor['seconds']:.2f}" if floor and alike else ""
        of_span = ""
        if span and alike:
            of_span = f"{seconds / span['most']:.2f} to {seconds / span['least']:.2f}"
        where = f"{one['devices']} x {one['device_kind']}"
        rows.append(
            [one["run"], where, f"{seconds:.4g} s", of_floor, of_span, ", ".join(one["differs"])]
        )
    return rows
