"""A Flamingo so small that a stage takes seconds; its pictures lie in `pictures` beside this file.

Variants: "flamingo" is that stage alone, on random frozen weights; "asked" is asked in between what
colours.jsonl holds; "stages" are all three, with cached features. DIE=NAME:COUNT[:SIGNAL] in the
environment makes the process kill itself.
"""

import functools
import os
import pathlib
import signal

from flamingo_jax import config
from flamingo_jax.checkpoint import StageCheckpoints
from flamingo_jax.eval.predictions import Predictions
from flamingo_jax.logs import MetricsLog

PICTURES = str(pathlib.Path(__file__).parent / "pictures")
COLOURS = str(pathlib.Path(__file__).parent / "colours.jsonl")


def get_config(variant: str = "flamingo"):
    config.pick(variant, ("flamingo", "asked", "stages"))
    if "DIE" in os.environ:
        _die(*os.environ["DIE"].split(":"))
    c = config.base()
    c.name = "tests"
    c.model.update(dtype="float32", remat="none")
    c.model.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="demo", image_size=32, dtype="float32")
    c.model.text.update(width=32, blocks=1, heads=2, hidden=64, max_length=24)
    c.model.contrastive.update(width=16, dtype="float32")
    c.model.resampler.update(depth=1, latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.data.update(threads=2, prefetch=2, record_rows=True)

    pairs = {"source": "folder", "path": PICTURES, "batch": 8, "length": 24}
    c.train.update(steps=12, log_every=2, eval_every=5, eval_batches=1)
    c.train.datasets.named = config.dataset(**pairs, leading_space=0.5)
    c.train.datasets.told = config.dataset(**pairs | {"source": "folder:told", "weight": 0.5})
    c.train.optimizer.update(lr=3e-3, warmup=4, multipliers=(("gate_", 5.0),))
    c.checkpoint.update(every=3, keep=3)
    c.alarm.step = 0
    if variant == "asked":
        c.eval.every = 5
        c.eval.during.benchmarks.colours = config.benchmark(
            name="custom", files={"queries": COLOURS, "all.pictures": PICTURES}
        )
        c.eval.during.update(shots=(0, 2), selections=("rices",), seeds=(0,), batch=1)
    return _stages(c, pairs) if variant == "stages" else c


def _stages(c, pairs):
    c.stages = ("language", "contrastive", "flamingo")
    c.tokenizer.update(kind="train", vocab=300, source="folder:told", path=PICTURES)
    c.pretrain.language.update(steps=4, log_every=2, eval_batches=1)
    c.pretrain.language.datasets.text = config.dataset(**pairs | {"layout": "text"})
    c.pretrain.contrastive.update(steps=4, log_every=1, eval_batches=1)
    c.pretrain.contrastive.datasets.pairs = config.dataset(**pairs | {"layout": "contrastive"})
    c.model.vision.standardise = True
    c.data.update(cache_features=True, versions=2)
    c.train.update(steps=6)
    c.checkpoint.update(every=2)
    return c


def _die(name: str, count: str, number: str = "SIGKILL") -> None:
    """Sends this process a signal right after so many writes of a kind.

    Args:
      name: NAME.jsonl, a log's appends; "save", saves of steps, which go on in the background;
        "add", answers of benchmarks.
      count: this one; of a log it leaves a torn line, as a kill may.
      number: the signal.
    """
    left = int(count)
    verbs = {"save": StageCheckpoints, "add": Predictions}
    where, verb = verbs.get(name, MetricsLog), name if name in verbs else "append"
    write = getattr(where, verb)

    @functools.wraps(write)
    def write_and_die(self, *args, **options):
        nonlocal left
        done = write(self, *args, **options)
        if name == "add" or (done if name == "save" else self.path.name == name):
            left -= 1
            if left == 0:
                if name not in verbs and number == "SIGKILL":
                    with open(self.path, "a", encoding="utf-8") as file:
                        file.write('{"stage": "fl')
                os.kill(os.getpid(), getattr(signal, number))
        return done

    setattr(where, verb, write_and_die)
