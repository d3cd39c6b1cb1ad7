"""Flamingo-80B: Chinchilla-70B, a gated layer before every seventh block (v2 Tables 4 and 5).

Pod:      v4:8x12x16, 1,536 chips: 10.1 of 30.75 GiB a chip, a step at least 0.55 s (PLANS.md)
Rehearse: python -m flamingo_jax train --config=experiments/flamingo_80b.py:tiny --workdir=runs/80b

The pod is the paper's (v1 §4.1.4). A copy of the weights lies on 128 chips, 16 x 8 ways over `fsdp`
and `tensor`; the paper's Megatron sharding, 16 ways over `tensor` alone, holds eight times the
weights. Batches are six times those of the ablations: 8, 16, 16 and 2 rows of M3W, ALIGN, LTIP and
VTP for each of 192 groups of eight chips. All else is as in flamingo_3b.py, and what it needs.
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
    c.mesh.update(replica=-1, fsdp=16, tensor=8, frozen="sharded")
    c.train.micro_batches = 1  # a chip holds 42 rows' products in 10 of its 30.75 GiB
    for row in c.train.datasets.values():
        row.batch *= 6
    return c
