"""A Flamingo so small that a stage takes a second; the pictures lie beside this file.

Variants: "flamingo" (that stage alone, with random frozen weights), "stages" (all three).
"""

import pathlib

from flamingo_jax import config

PICTURES = str(pathlib.Path(__file__).parent / "pictures")


def get_config(variant: str = "flamingo"):
    config.pick(variant, ("flamingo", "stages"))
    c = config.base()
    c.name = "tests"
    c.stages = ("language", "contrastive", "flamingo") if variant == "stages" else ("flamingo",)
    c.model.update(dtype="float32", remat="none")
    c.model.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="tiny", image_size=32, dtype="float32")
    c.model.vision.standardise = variant == "stages"
    c.model.text.update(width=32, blocks=1, heads=2, hidden=64, max_length=24)
    c.model.contrastive.update(width=16, dtype="float32")
    c.model.resampler.update(depth=1, latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.data.update(threads=2, prefetch=2)

    pairs = {"source": "folder", "path": PICTURES, "batch": 8, "length": 24}
    c.train.update(steps=12, log_every=2, eval_every=5, eval_batches=2)
    c.train.datasets.named = config.dataset(**pairs, leading_space=0.5)
    c.train.datasets.told = config.dataset(**pairs | {"source": "folder:told", "weight": 0.5})
    c.train.optimizer.update(lr=3e-3, warmup=4, multipliers=(("gate_", 5.0),))

    c.pretrain.language.update(steps=4, log_every=2, eval_every=0, eval_batches=1)
    c.pretrain.language.datasets.text = config.dataset(**pairs | {"layout": "text"})
    c.pretrain.contrastive.update(steps=4, log_every=2, eval_every=0, eval_batches=1)
    c.pretrain.contrastive.datasets.pairs = config.dataset(**pairs | {"layout": "contrastive"})
    c.checkpoint.update(every=3, keep=3)
    c.alarm.step = 0
    return c
