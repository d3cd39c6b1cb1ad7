"""Compiles candidates one after the other; a sweep that was cut goes on from what each has told.

DIR/candidates/NAME.json: {"request", "config" (a digest), "versions", "limits", "facts"}; one of
another request (other overrides, another topology), config or versions is compiled anew, and so is
one that was cut by bounds tighter than today's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax import installed
from flamingo_jax.errors import InputError
from flamingo_jax.planning import candidates, compiling, known, requests, summary
from flamingo_jax.planning.candidates import Candidate
from flamingo_jax.planning.requests import Request
from flamingo_jax.planning.summary import Limits


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a candidate.

    Attributes:
      candidate: the layout.
      plan: of `summary.summarise`; None if it was not compiled.
      spared: why it was not, in words.
      state: bytes of a device's arguments as counted.
      bound: no MFU is above it; infinite = unknown.
    """

    candidate: Candidate
    plan: dict[str, Any] | None
    spared: str
    state: int
    bound: float

    @property
    def score(self) -> float:
        """`summary.score` of one that fits; below all of them otherwise."""
        fits = self.plan is not None and self.plan["verdict"] == summary.FITS
        return summary.score(self.plan) if self.plan is not None and fits else -1.0


def request_of(base: Request, candidate: Candidate) -> Request:
    """The request that compiles a candidate."""
    return dataclasses.replace(base, overrides=base.overrides | dict(candidate.overrides))


def run(
    base: Request,
    many: Sequence[Candidate],
    folder: pathlib.Path,
    limits: Limits,
    say: Callable[[str], None],
) -> list[Result]:
    """Compiles what must be; the best first.

    Args:
      base: the request without what is swept.
      many: the candidates.
      folder: of what is kept.
      limits: of each.
      say: is told a line a candidate.

    Raises:
      InputError: if no candidate makes sense.
    """
    asked = [request_of(base, one) for one in many]
    told = known.survey_apart(asked, limits.seconds * len(many))
    sound = {one: facts for one, facts in zip(many, told, strict=True) if "error" not in facts}
    if not sound:
        raise InputError(f"--sweep finds no layout that can be: {told[0]['error']}")
    bounds = {one: _bound(facts) for one, facts in sound.items()}
    chip = summary.place(base.topology, next(iter(sound.values()))).chip
    fitting: dict[Candidate, float] = {}
    overflowing: list[Candidate] = []
    found = []
    order = candidates.ordered(sound, bounds)
    for index, one in enumerate(order):
        most = summary.capacity(summary.place(base.topology, sound[one]), sound[one])
        state = sum(sound[one]["state"].values())
        # Without a peak there is no MFU that a bound could be held against.
        bound = bounds[one] if chip is not None else math.inf
        spared = candidates.spared(one, bound, fitting, overflowing)
        if most is not None and state > most:
            spared = f"does not fit: its state alone is {summary.gib(state)} a device"
        plan = None
        if not spared:
            facts = kept_or_compiled(request_of(base, one), one.name, folder, limits)
            plan = summary.summarise(facts, base.topology)
        result = Result(one, plan, spared, state, bounds[one])
        found.append(result)
        if plan is not None and plan["verdict"] == summary.FITS:
            fitting[one] = result.score
        elif plan is not None and plan["verdict"] == summary.OVER:
            overflowing.append(one)
        say(f"{index + 1}/{len(order)} {one.name}: {spared or _said(result)}")
    return sorted(found, key=lambda result: (-result.score, _sent(result), -result.bound))


def _bound(facts: dict[str, Any]) -> float:
    """Model FLOPs over hardware FLOPs; infinite where the latter cannot be counted."""
    counted = facts.get("flops", {}).get("total")
    return facts["work"]["model"] / counted if counted else math.inf


def _sent(result: Result) -> int:
    return sum(row["bytes"] for row in result.plan["traffic"]) if result.plan else 0


def _said(result: Result) -> str:
    plan = result.plan
    assert plan is not None  # it was compiled
    peak = plan["memory"]["peak"] or plan["memory"]["required"]
    size = f", {summary.gib(peak)} a device" if peak else ""
    mfu = f", MFU at most {result.score:.3f}" if plan["floor"] and result.score >= 0 else ""
    error = f": {plan['error']}" if plan["verdict"] == summary.UNKNOWN else ""
    return f"{plan['verdict']}{size}{mfu}{error}"


def kept_or_compiled(
    request: Request, name: str, folder: pathlib.Path, limits: Limits
) -> dict[str, Any]:
    """The facts of a request: what an earlier sweep has kept, or compiled now and kept."""
    path, asked = folder / f"{name}.json", dataclasses.asdict(request)
    identity = {
        "request": json.loads(json.dumps(asked)),  # lists, as in a file
        "config": requests.digest(request),
        "versions": installed.versions(),
    }
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    if all(kept.get(key) == value for key, value in identity.items()):
        if not _looser(limits, kept):
            return kept["facts"]
    facts = compiling.compile_apart(request, limits.seconds, limits.memory)
    row = identity | {"limits": dataclasses.asdict(limits), "facts": facts}
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(row) + "\n", encoding="utf-8")
    draft.replace(path)
    return facts


def _looser(limits: Limits, kept: dict[str, Any]) -> bool:
    """Whether a compilation that was cut, or died, may go further now."""
    outcome, before = kept["facts"]["outcome"], kept["limits"]
    if outcome == "time-out":
        return limits.seconds > before["seconds"]
    if outcome == "memory":
        return limits.memory == 0 or limits.memory > before["memory"]
    return outcome == "failed"
