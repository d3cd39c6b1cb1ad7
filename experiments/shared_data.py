"""All of a folder of real data at once, at the demo's size: pages, alt texts, descriptions, clips.

Run:      FLAMINGO_SHARED=../shared python -m flamingo_jax train \
              --config=experiments/shared_data.py --workdir=runs/shared_data
Look:     … inspect --config=experiments/shared_data.py
Rehearse: … train --config=experiments/shared_data.py:tiny --workdir=runs/tiny

Variants: "demo" begins with the language model and the encoder of `make demo` (runs/openmoji; give
--config.init.run and --config.tokenizer.path for another), "alone" trains short ones of its own,
and "full" is the first where there is such a run, else the second.

The folder holds `data/pairs/NAME`, `data/interleaved` and `data/video`, in the formats of
img2dataset, OBELICS and WebVid; --config.train.datasets.m3w.source=mmc4 with another path reads the
pages of MMC4. The pairs of `align` are ALIGN's role, all others LTIP's.
"""

import os
import pathlib

from flamingo_jax import config

DATA = pathlib.Path(os.environ.get("FLAMINGO_SHARED", "../shared")) / "data"
DEMO = "runs/openmoji"


def get_config(variant: str = "full"):
    """The mixture of Flamingo §2.4 on what there is: M3W, ALIGN, LTIP and VTP."""
    config.pick(variant, ("full", "demo", "alone", "tiny"))
    if variant == "full":
        variant = "demo" if pathlib.Path(DEMO, "finished").is_file() else "alone"
    openmoji = str(pathlib.Path(__file__).with_name("openmoji.py"))
    c = config.load(f"{openmoji}:{'tiny' if variant == 'tiny' else 'full'}")
    c.name = "shared_data"
    c.eval.tasks = ()
    _flamingo(c)
    if variant == "demo":
        c.stages = ("flamingo",)
        c.tokenizer.update(kind="saved", path=f"{DEMO}/tokenizer")
        c.init.run = DEMO
        c.init.paths = ("^language/", "^embed/table$", "^head/kernel$", "^vision/")
    else:
        _own_models(c)
    return _tiny(c) if variant == "tiny" else c


def _pages(**fields):
    folder = DATA / "interleaved"
    return config.dataset(
        source="obelics", path=f"{folder}/obelics/train-*.parquet", files=str(folder),
        validation_path=f"{folder}/obelics/val-*.parquet", **fields,
    )  # fmt: skip


def _pairs(*names: str, **fields):
    path = ",".join(f"{DATA}/pairs/{name}/*.tar" for name in names)
    return config.dataset(source="pairs", path=path, held_out=20, **fields)


def _others() -> list[str]:
    """The sets of pairs that are not ALIGN's role."""
    found = sorted(path.name for path in (DATA / "pairs").glob("*/") if path.name != "align")
    return found or ["ltip"]  # opening it says what is missing


def _flamingo(c):
    c.train.update(steps=200, log_every=1, eval_every=10, eval_batches=2)
    rows = c.train.datasets
    for name in list(rows):
        del rows[name]
    rows.m3w = _pages(layout="page", batch=6, length=192, images=4, p_next=0.5)
    rows.align = _pairs("align", batch=32, length=24, weight=0.2, leading_space=0.5)
    rows.ltip = _pairs(*_others(), batch=8, length=96, leading_space=0.5)
    rows.vtp = config.dataset(
        source="clips", path=f"{DATA}/video/*.tar", held_out=10, layout="clip", batch=4, length=48,
        frames=8, weight=0.03, leading_space=0.5,
    )  # fmt: skip
    c.alarm.step = 0
    c.data.update(versions=2, threads=2)
    c.data.augment.update(flip=0.5, hue=0.02, scale=(0.9, 1.1))
    c.train.optimizer.update(lr=6e-4, warmup=20, schedule="constant")


def _own_models(c):
    c.tokenizer.update(kind="train", vocab=1_024, source="pairs", path=f"{DATA}/pairs/align/*.tar")
    for stage in (c.pretrain.language, c.pretrain.contrastive):
        stage.update(steps=60, log_every=10, eval_every=0)
        stage.optimizer.warmup = 10
        for name in list(stage.datasets):
            del stage.datasets[name]
    c.pretrain.language.datasets.text = _pages(layout="text", batch=16, length=128)
    c.pretrain.contrastive.datasets.pairs = _pairs(
        "align", *_others(), layout="contrastive", batch=64, length=24
    )


def _tiny(c):
    for stage in (c.pretrain.language, c.pretrain.contrastive, c.train):
        stage.update(steps=4, log_every=1, eval_every=2, eval_batches=1)
        for row in stage.datasets.values():
            row.batch = 4
    c.data.update(versions=0, cache_features=False)  # few pictures are looked at
    c.checkpoint.every = 2
    return c
