"""What `plan` does: compiles, or sweeps, and tells.

It writes plan.json and index.html in a folder, and in candidates/ what each layout of a sweep told.
This process never asks JAX for devices: they would be taken from the children that compile.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from flamingo_jax import errors, progress
from flamingo_jax.errors import InputError
from flamingo_jax.planning import candidates, child_processes, compiling, requests, summary, sweep
from flamingo_jax.planning import topology as topologies
from flamingo_jax.planning.requests import Request
from flamingo_jax.planning.summary import Limits
from flamingo_jax.planning.topology import LOCAL

MOST_JSON = 400
"""Candidates that plan.json lists."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """What the command line says.

    Attributes:
      config: FILE.py[:variant].
      overrides: {"a.b": "value"} of the config.
      topology: its name; "" with `chips`.
      chips, kind: of a topology to be proposed; 0 and "" with `topology`.
      stage: its name; "" = flamingo, or the config's last.
      datasets: the stage's only ones; () = all.
      features: batches hold cached features in place of pixels.
      devices: simulated devices of "local"; 0 = this machine's.
      sweep: of `candidates.AXES`; () = the config's layout alone.
      seconds, memory: bounds of each compilation, in seconds and GB (0 = none).
      out: the folder; "" = WORKDIR/plan, or runs/plan/NAME-TOPOLOGY.
      workdir: of a run to which the plan belongs, whose measured steps are read if there are any.
      measured: runs whose measured steps are put beside.
      markdown: print the row of a Markdown table instead of the summary.
    """

    config: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    topology: str = ""
    chips: int = 0
    kind: str = ""
    stage: str = ""
    datasets: tuple[str, ...] = ()
    features: bool = False
    devices: int = 0
    sweep: tuple[str, ...] = ()
    seconds: float = 3_600.0
    memory: float = 0.0
    out: str = ""
    workdir: str = ""
    measured: tuple[str, ...] = ()
    markdown: bool = False

    @property
    def limits(self) -> Limits:
        """Of each compilation."""
        return Limits(self.seconds, self.memory)


def run(ask: Ask) -> int:
    """Makes, writes and prints the plan; returns the exit code: 0 fits, 3 does not fit.

    Raises:
      InputError: for a config, topology, mesh or run that makes no sense, or if compiling was cut
        by its bounds before anything was known.
      RuntimeError: if the compiler failed.
    """
    from flamingo_jax.plan import measured, page, printing
    from flamingo_jax.report.saving import save

    request, name = _request(ask)
    folder = _folder(ask, name, request.topology)
    rows: list[sweep.Result] = []
    if ask.sweep:
        rows = _sweep(request, ask, folder)
        best = next((row for row in rows if row.plan is not None), None)
        if best is None or best.plan is None:
            raise InputError(
                f"no candidate was compiled: {rows[0].candidate.name} {rows[0].spared}"
            )
        plan, request = best.plan, sweep.request_of(request, best.candidate)
    else:
        progress.say(f"compiling {name} for {request.topology}: {_bounds(ask.limits)}")
        facts = compiling.compile_apart(request, ask.limits.seconds, ask.limits.memory)
        plan = summary.summarise(facts, request.topology)
    plan = _about(ask, request, name) | plan | {"measured": []}
    plan["best"] = _best(rows)
    plan["candidates"] = [_row(row) for row in rows[:MOST_JSON]]
    if not rows:
        _refuse(plan)
    runs = list(ask.measured)
    if ask.workdir and (pathlib.Path(ask.workdir) / "speed.jsonl").is_file():
        runs.append(ask.workdir)
    plan["measured"] = [measured.read(one, plan, request.stage) for one in runs]
    save(folder / "plan.json", page.to_json(plan), "plan")
    save(folder / "index.html", page.render(plan, rows), "plan")
    if ask.markdown:
        print(printing.markdown(plan), end="")
    else:
        if rows:
            printing.tell_sweep(rows, plan["best"]["flags"].split() if plan["best"] else ())
        printing.tell(plan)
        print(f"page     {folder / 'index.html'}")
    return errors.EXIT_OK if plan["verdict"] == summary.FITS else errors.EXIT_DOES_NOT_FIT


def _request(ask: Ask) -> tuple[Request, str]:
    """The request without what is swept, and the config's name."""
    from flamingo_jax import config

    c = config.load(ask.config, ask.overrides)
    stage = ask.stage or ("flamingo" if "flamingo" in c.stages else c.stages[-1])
    if bool(ask.topology) == bool(ask.chips) or bool(ask.chips) != bool(ask.kind):
        raise InputError("give either --topology=KIND:SHAPE (or local), or --chips=N and --kind")
    name, overrides = ask.topology, dict(ask.overrides)
    if ask.chips:
        proposed = topologies.propose(ask.kind, ask.chips)
        name = proposed[0].name
        others = f" (also: {', '.join(one.name for one in proposed[1:])})" if proposed[1:] else ""
        progress.say(f"{ask.chips} chips of {ask.kind} are {name}{others}")
    if name != LOCAL:
        if ask.devices:
            raise InputError("--devices simulates devices of --topology=local, of no other")
        slices = topologies.parse(name).slices
        if slices > 1 and c.mesh.slices == 1:
            overrides["mesh.slices"] = str(slices)
    request = Request(
        config=ask.config,
        overrides=overrides,
        stage=stage,
        topology=name,
        features=ask.features,
        datasets=ask.datasets,
        devices=ask.devices,
    )
    requests.settings(request)  # what is wrong with it is told at once
    return request, str(c.name)


def _folder(ask: Ask, name: str, topology: str) -> pathlib.Path:
    place = f"{name}-{topology}".replace(":", "-").replace("*", "-by-")
    own = pathlib.Path(ask.workdir) / "plan" if ask.workdir else pathlib.Path("runs/plan") / place
    return pathlib.Path(ask.out) if ask.out else own


def _sweep(request: Request, ask: Ask, folder: pathlib.Path) -> list[sweep.Result]:
    c, settings = requests.settings(request)
    if request.topology == LOCAL:
        devices = ask.devices or _local_devices()
    else:
        devices = topologies.parse(request.topology).devices
    where = "train" if request.stage == "flamingo" else f"pretrain.{request.stage}"
    many = candidates.make(c, settings, where, ask.sweep, devices, c.mesh.slices)
    progress.say(
        f"{len(many)} candidates for {devices} devices, {_bounds(ask.limits)} each; what they "
        f"tell is kept in {folder / 'candidates'}"
    )
    return sweep.run(request, many, folder / "candidates", ask.limits, progress.say)


def _local_devices() -> int:
    """How many JAX shows here, asked in a process of its own."""
    program = "import jax; print(len(jax.devices()))"
    environment = child_processes.environment(LOCAL)
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return int(told.stdout.split()[-1])


def _bounds(limits: Limits) -> str:
    memory = f", {limits.memory:g} GB" if limits.memory else ""
    return f"at most {limits.seconds:g} s{memory}"


def _about(ask: Ask, request: Request, name: str) -> dict[str, Any]:
    words = sys.argv[1:] if sys.argv[1:2] == ["plan"] else []
    return {
        "name": name,
        "command": " ".join(["python -m flamingo_jax", *words]) if words else "plan.run",
        "config": ask.config,
        "stage": request.stage,
        "features": request.features,
        "only": list(request.datasets),
        "overrides": request.overrides,
    }


def _best(rows: Sequence[sweep.Result]) -> dict[str, Any] | None:
    """The candidate that fits and has the highest MFU at the floor, as flags of `train`."""
    if not rows or rows[0].score < 0:
        return None
    changed = rows[0].candidate.overrides
    flags = " ".join(f"--config.{field}={value}" for field, value in changed)
    return {"name": rows[0].candidate.name, "overrides": dict(changed), "flags": flags}


def _row(result: sweep.Result) -> dict[str, Any]:
    """A candidate in plan.json."""
    plan = result.plan
    memory = plan["memory"] if plan else {}
    return {
        "name": result.candidate.name,
        "overrides": dict(result.candidate.overrides),
        "verdict": plan["verdict"] if plan else "",
        "spared": result.spared,
        "state": result.state,
        "peak": memory.get("peak") or memory.get("required"),
        "mfu_bound": result.bound if result.bound < 1e9 else None,
        "floor": plan["floor"] and plan["floor"]["seconds"] if plan else None,
        "score": result.score if result.score >= 0 else None,
        "compile_seconds": plan["compiling"]["compile_seconds"] if plan else None,
    }


def _refuse(plan: dict[str, Any]) -> None:
    """Ends a plan of which nothing is known."""
    if plan["verdict"] != summary.UNKNOWN:
        return
    if plan["outcome"] in summary.CUT:
        flag = "--seconds" if plan["outcome"] == "time-out" else "--memory"
        raise InputError(f"{plan['error']} before the compiler told anything; give more {flag}")
    raise RuntimeError(f"the step of {plan['config']} was not compiled: {plan['error']}")
