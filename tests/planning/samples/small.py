"""A step small enough to be compiled in seconds: one dataset, one resampler layer, no remat."""

import pathlib

from flamingo_jax import config

TINY = pathlib.Path(__file__).resolve().parents[3] / "experiments" / "flamingo_3b.py"


def get_config(variant: str = "one"):
    """`wide`: the frozen language model's feed-forward is twice as wide."""
    config.pick(variant, ("one", "wide"))
    c = config.load(f"{TINY}:tiny")
    c.stages = ("flamingo",)
    for name in ("align", "ltip", "vtp"):
        del c.train.datasets[name]
    c.train.datasets.m3w.update(batch=8, length=16, images=2)
    c.model.remat = "none"
    c.model.resampler.depth = 1
    # Heads that a tensor axis of 2 divides, and no dim that two arrays share by chance.
    c.model.language.update(vocab=264, positions="rotary")
    if variant == "wide":
        c.model.language.hidden = 128
    return c
