"""The demo: all three stages on real pictures that pip brings, in minutes on two CPU cores.

Run:      python -m flamingo_jax train --config=experiments/openmoji.py --workdir=runs/openmoji
Rehearse: python -m flamingo_jax train --config=experiments/openmoji.py:tiny --workdir=runs/tiny

A language model on text, an NFNet by contrast with a text encoder, then both frozen and Flamingo
trained on four datasets a step: pages, short alt texts, descriptions and clips, made from
OpenMoji's pictures (CC BY-SA 4.0) and Unicode's names. README.md has the figures and their command.
"""

from flamingo_jax import config


def get_config(variant: str = "full"):
    """The whole demo; "tiny" runs the same code in seconds and learns nothing."""
    config.pick(variant, ("full", "tiny"))
    c = config.base()
    c.name = "openmoji"
    c.stages = ("language", "contrastive", "flamingo")
    c.tokenizer.update(kind="train", vocab=1_536, source="openmoji:text")

    c.model.update(remat="none", unroll=True)
    c.model.language.update(width=192, blocks=4, heads=3, head_dim=64, hidden=768)
    c.model.vision.update(variant="demo", image_size=64, activated=False, standardise=True)
    # The pictures lie on white: with white at 0 the encoder learns faster than with its mean there.
    c.model.vision.update(mean=(1.0, 1.0, 1.0), std=(0.35, 0.35, 0.35))
    # CPUs convolve in f32 several times faster than in bf16.
    c.model.vision.dtype = c.model.contrastive.dtype = "float32"
    c.model.text.update(width=192, blocks=1, heads=3, hidden=768, max_length=24)
    c.model.contrastive.update(width=192)
    # One layer and 8 latents: deeper resamplers sat on the text-only plateau for longer.
    c.model.resampler.update(
        depth=1, latents=8, width=192, heads=3, head_dim=64, hidden=768, latents_init=0.05
    )
    # Gated layers before blocks 1 and 3: with one before each block the first one's gates stayed at
    # 0, and the others opened later.
    c.model.xattn.update(every=2, offset=1, heads=3, head_dim=64, hidden=768)

    # Mirrored pictures contradict "pointing left", turned hues contradict skin tones and colours.
    c.data.augment.update(flip=0.0, hue=0.0, brightness=0.08, contrast=0.05, saturation=0.05)
    c.data.augment.update(scale=(0.85, 1.2), shift=0.06)
    c.data.update(versions=4, cache_features=True)
    # Rows are made in well under a millisecond: more threads would only wait for the interpreter.
    c.data.update(threads=1, prefetch=2)

    _language(c)
    _contrastive(c)
    _flamingo(c)
    c.checkpoint.update(every=400, keep=2)
    c.eval.update(tasks=("openmoji",), batch=512)
    return _tiny(c) if variant == "tiny" else c


def _language(c):
    stage = c.pretrain.language
    stage.update(steps=650, log_every=20, eval_every=325)
    stage.datasets.text = config.dataset(
        source="openmoji:text", layout="text", batch=16, length=128
    )
    stage.optimizer.update(lr=3e-3, b2=0.98, warmup=60, schedule="cosine", end=0.05)


def _contrastive(c):
    stage = c.pretrain.contrastive
    stage.update(steps=440, log_every=10, eval_every=220)
    stage.datasets.pairs = config.dataset(
        source="openmoji:pairs", layout="contrastive", batch=128, length=16
    )
    stage.optimizer.update(lr=2e-3, b2=0.98, weight_decay=0.1, warmup=40, schedule="cosine")
    stage.optimizer.update(end=0.02, clip=10.0, agc=0.05)
    # A few thousand names teach which words belong to what, not how words change each other: a text
    # starts as the bag of its tokens, and what would mix them moves slowly.
    c.model.text.update(residual_init=0.0, positions_init=0.0)
    stage.optimizer.multipliers = (("^text/(blocks|positions)", 0.1),)


def _flamingo(c):
    stage = c.train
    # Many small steps at a small rate: half the batch and 0.6 of the rate left the plateau sooner.
    stage.update(steps=1_700, log_every=20, eval_every=425, eval_batches=4)
    c.alarm.step = 425  # steps are small
    stage.datasets.m3w = config.dataset(
        source="openmoji:pages", layout="page", batch=5, length=80, images=4, weight=1.0,
        p_next=0.5, next_layout="text_first",
    )  # fmt: skip
    # The paper weighs ALIGN with 0.2. Here short alt texts are what tells pictures apart: with 0.2
    # and fewer of them the model stays blind for most of so short a run.
    stage.datasets.align = config.dataset(
        source="openmoji:alt", batch=48, length=16, weight=1.0, leading_space=0.5
    )
    stage.datasets.ltip = config.dataset(
        source="openmoji:descriptions", batch=4, length=40, weight=0.2, leading_space=0.5
    )
    stage.datasets.vtp = config.dataset(
        source="openmoji:clips", layout="clip", batch=4, length=32, frames=8, weight=0.1,
        leading_space=0.5, versions=1,
    )  # fmt: skip
    stage.optimizer.update(lr=6e-4, b2=0.98, weight_decay=0.1, warmup=50, schedule="cosine")
    # Gates are scalars that start at 0: their own, faster pace shortens the plateau.
    stage.optimizer.update(end=0.05, multipliers=(("gate_", 8.0),))


def _tiny(c):
    c.model.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="tiny", image_size=32)
    c.model.text.update(width=32, blocks=1, heads=2, hidden=64)
    c.model.contrastive.update(width=16)
    c.model.resampler.update(latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.data.update(versions=1)
    for stage in (c.pretrain.language, c.pretrain.contrastive, c.train):
        stage.update(steps=6, log_every=2, eval_every=0, eval_batches=1)
        for row in stage.datasets.values():
            row.batch = 8
    c.checkpoint.update(every=2)
    c.eval.update(queries=8)
    return c
