"""Flamingo-80B: Chinchilla-70B, a gated layer before every seventh block (v2 Tables 4 and 5).

Rehearse: python -m flamingo_jax train --config=experiments/flamingo_80b.py:tiny --workdir=runs/80b

Weights are split 16 ways over `tensor`, as the paper's Megatron sharding does (v1 §4.1.4), and over
the rest of the pod by `fsdp`. All else is as in flamingo_3b.py; see there what it needs.
"""

import pathlib

from flamingo_jax import config

VARIANTS = ("full", "head96", "tiny")


def get_config(variant: str = "full"):
    """`head96` and `tiny` as in flamingo_3b.py; `tiny` has a short last group as well."""
    config.pick(variant, VARIANTS)
    base = pathlib.Path(__file__).with_name("flamingo_3b.py")
    c = config.load(f"{base}:{variant}")
    c.name = "flamingo-80b"
    c.model.xattn.every = 7
    if variant == "tiny":
        c.model.language.blocks = 10
        return c
    c.model.language.update(width=8192, blocks=80, heads=64, hidden=32_768)
    c.model.xattn.update(heads=64, hidden=32_768)
    c.mesh.tensor = 16
    return c
