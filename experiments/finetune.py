"""A trained model taught one's own pictures: a folder with captions.csv or captions.jsonl.

Run:  python -m flamingo_jax train --config=experiments/finetune.py:runs/openmoji \
          --config.train.datasets.own.path=my/pictures --workdir=runs/mine

What follows the colon is the run to begin from, or a step in it; its model, tokenizer and image
size are read from its config.json and need not be said again. The folder's file has the columns
image and text, or image, question and answer, and if you like split (train, validation); else one
picture in twenty is held out (`held_out`). Rows of 64 tokens see one picture each; for clips add
--config.train.datasets.own.layout=clip --config.train.datasets.own.frames=8.

Trained are the resampler, the gated layers and the new tokens; encoder and language model stay as
they are, so pictures are encoded once, before the first step, in two augmented versions. To train
more, give all patterns (they are searched in the paths that `inspect RUN` prints):
--config.trainable="('^resampler/','^xattn/','^project/','^embed/new$','^vision/')" with
--config.data.cache_features=False. The paper's own fine-tuning trains the encoder too, at 480
pixels, and freezes the language model.
"""

import pathlib

from flamingo_jax import config
from flamingo_jax.errors import InputError

KEPT = ("image_size", "resize", "augment")  # of `data`: how the run was shown its pictures


def get_config(variant: str = ""):
    """`variant` is the run to begin from: a workdir, or in it checkpoints/flamingo[/STEP]."""
    workdir = _workdir(variant)
    try:
        run = config.from_json((workdir / "config.json").read_text(encoding="utf-8"))
        c = tuned(run)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"cannot begin from {variant!r}: its config.json is not that of a run ({error})"
        ) from error
    c.init.run = variant
    c.tokenizer.update(kind="saved", path=str(workdir / "tokenizer"), image=run.tokenizer.image)
    return c


def tuned(run):
    """The fine-tuning of a model whose run had this config."""
    c = config.base()
    c.name = f"{run.name}-tuned"
    c.model.update(run.model.to_dict())
    c.data.update({name: run.data.to_dict()[name] for name in KEPT})
    c.data.update(cache_features=True, versions=2)
    c.train.update(steps=200, log_every=10, eval_every=50)
    c.train.datasets.own = config.dataset(source="folder", batch=16, length=64, held_out=20)
    # A tenth of the run's rate, which falls by ten once more; the rest of its optimizer is kept.
    c.train.optimizer.update(run.train.optimizer.to_dict())
    c.train.optimizer.update(lr=run.train.optimizer.lr / 10, warmup=10, schedule="cosine", end=0.1)
    c.alarm.step = 0  # a few rows held out may well show the same picture
    c.checkpoint.every = 50
    return c


def _workdir(run: str) -> pathlib.Path:
    """The run's folder, once it is clear that it holds a Flamingo to begin from."""
    how = "give the folder of a run, as in --config=experiments/finetune.py:runs/openmoji"
    path = pathlib.Path(run).absolute()
    if not run:
        raise InputError(f"there is no model to begin from; {how}")
    if not path.is_dir():
        raise InputError(f"there is no folder {run!r} to begin from; {how}")
    for workdir in (path, *path.parents[1:3]):
        if (workdir / "config.json").is_file():
            break
    else:
        raise InputError(f"cannot begin from {run!r}: it holds no config.json; {how}")
    inside = path.relative_to(workdir).parts  # none, or checkpoints/STAGE[/STEP]
    stage = inside[1] if inside else "flamingo"
    steps = workdir / "checkpoints" / "flamingo"
    if stage != "flamingo" or not any(steps.glob("[0-9]*")):
        raise InputError(f"cannot begin from {run!r}: it holds no step of a Flamingo stage; {how}")
    return pathlib.Path(run) if workdir == path else workdir
