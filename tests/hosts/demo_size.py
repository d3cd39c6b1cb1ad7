"""The demo's Flamingo stage by its sizes, in f32, for 20 steps on the pictures beside this file."""

import pathlib

from experiments import openmoji
from flamingo_jax import config

PICTURES = str(pathlib.Path(__file__).parent / "pictures")


def get_config():
    """Three heads would be left whole over a tensor axis of 2: here they are four, as wide."""
    c = openmoji.get_config()
    c.name = "demo-size"
    c.stages = ("flamingo",)
    c.tokenizer.update(kind="bytes", source="")
    c.model.dtype = "float32"
    c.model.vision.standardise = False
    for part in (c.model.language, c.model.resampler, c.model.xattn):
        part.update(heads=4, head_dim=48)
    c.data.update(versions=0, cache_features=False, record_rows=True)
    c.train.update(steps=20, log_every=1, eval_every=10, eval_batches=1)
    row = {"path": PICTURES, "batch": 8, "length": 32}
    for name in list(c.train.datasets):
        del c.train.datasets[name]
    c.train.datasets.named = config.dataset(source="folder", **row, leading_space=0.5)
    c.train.datasets.told = config.dataset(source="folder:told", **row, weight=0.5)
    c.checkpoint.update(every=10, keep=2)
    c.eval.tasks = ()
    c.alarm.step = 0
    return c
