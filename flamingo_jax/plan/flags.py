"""The flags of `plan`; nothing here is slow to import."""

from __future__ import annotations

import argparse
from typing import Any

from flamingo_jax.data.prepare.flags import number

OWN = (
    *("topology", "chips", "kind", "stage", "datasets", "features", "devices", "sweep"),
    *("seconds", "memory", "measured", "workdir", "out", "markdown"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Adds them to the parser of the verb."""
    add = parser.add_argument
    text = "the experiment: a Python file with get_config(variant), see experiments/"
    add("--config", required=True, metavar="FILE[:VARIANT]", help=text)
    text = "KIND:SHAPE (v4:8x12x16, v5e:4x4, v5p:8x8x8*2 for two slices, h100:4x8), or local"
    add("--topology", default="", metavar="NAME", help=text)
    text = "instead of a topology: the most cubic slice of so many chips"
    add("--chips", type=number(int, 1), default=0, metavar="N", help=text)
    add("--kind", default="", help="of these chips: v4, v5e, v5p, v6e, tpu7x, h100, a100")
    add("--stage", default="", help="which stage (default: flamingo, or the config's last)")
    add("--datasets", default="", metavar="A,B", help="only these of the stage's datasets")
    text = "batches hold cached features of the frozen encoder in place of pixels"
    add("--features", action="store_true", help=text)
    text = "local: so many simulated devices of the CPU"
    add("--devices", type=number(int, 1), default=0, metavar="N", help=text)
    text = "find the best layout that fits: some of batch,remat,mesh,micro_batches"
    add("--sweep", default="", metavar="A,B", help=text)
    text = "bound on each compilation's time in seconds (default 3600)"
    add("--seconds", type=number(float, 0), default=3600.0, metavar="S", help=text)
    text = "bound on each compilation's memory in GB (default 0: none)"
    add("--memory", type=number(float, 0), default=0.0, metavar="GB", help=text)
    text = "a run whose measured steps are put beside the estimate, as often as you like"
    add("--measured", action="append", default=[], metavar="RUN", help=text)
    text = "the run that the plan is for: written to its plan/, with its measured steps"
    add("--workdir", default="", metavar="DIR", help=text)
    text = "the folder of plan.json and index.html (default runs/plan/NAME-TOPOLOGY)"
    add("--out", default="", metavar="DIR", help=text)
    add("--markdown", action="store_true", help="print the plan as a row of a Markdown table")
    text = "sets a field of the config, as often as you like: --config.model.remat=dots"
    add("--config.FIELD", metavar="VALUE", help=text)


def options(flags: argparse.Namespace) -> dict[str, Any]:
    """What was parsed, as keyword arguments of `run.plan`."""
    found = {name: vars(flags)[name] for name in OWN}
    for name in ("datasets", "sweep", "measured"):
        parts = found[name].split(",") if name != "measured" else found[name]
        found[name] = tuple(part for part in parts if part)
    return found
