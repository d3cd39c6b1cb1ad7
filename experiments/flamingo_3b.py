"""Flamingo-3B: a Chinchilla of 1.4B, NFNet-F6, a gated layer before every block (v2 Tables 4, 5).

Pod:      v5e:4x4, 16 chips: 12.5 of 15.75 GiB a chip, a step at least 0.79 s (PLANS.md)
Count:    flamingo_jax.model.counts, without weights or files (tests/test_experiments.py)
Rehearse: python -m flamingo_jax train --config=experiments/flamingo_3b.py:tiny --workdir=runs/3b

The model, weights of the datasets, optimizer and schedule are the paper's; its ablations' batches
stand in for those of the final runs, which it does not tell. DeepMind's weights and its datasets
M3W, LTIP and VTP were never published: `full` needs a SentencePiece model of 32,000 tokens at
`tokenizer.path`, data of the same kind in the folders `data/…` (`path` of each dataset), and an LM
and an encoder for the frozen parts. `tiny` needs nothing: it trains all three stages for a few
steps on the demo's data, through the same code and arrangement of layers, and learns nothing.
"""

from flamingo_jax import config

VARIANTS = ("full", "head96", "tiny")


def get_config(variant: str = "full"):
    """`head96`: the resampler's heads as v2's Table 4 has them, 96 wide, not Table 5's 128."""
    config.pick(variant, VARIANTS)
    c = config.base()
    c.name = "flamingo-3b"
    c.tokenizer.update(kind="sentencepiece", path="data/tokenizer.model", image="text")
    c.model.language.update(vocab=32_000, width=2048, blocks=24, heads=16, hidden=8192)
    c.model.vision.update(variant="F6", image_size=320)
    c.model.resampler.update(depth=6, latents=64, width=1536, heads=16, head_dim=128, hidden=6144)
    c.model.xattn.update(every=1, heads=16, hidden=8192)
    # All products are kept: computing them again would be 23% more work, and would hold back MFU.
    # What the pod of 16 chips has no room for then, two micro-batches take out.
    c.model.remat, c.train.micro_batches = "dots", 2
    c.model.partial_sums = "model"  # half of what a tensor axis moves
    c.mesh.frozen = "replicated"  # 2.4 GiB a chip more, and 16 GiB moved a step, not 25
    _flamingo(c)
    if variant == "head96":
        c.model.resampler.head_dim = 96
    return _tiny(c) if variant == "tiny" else c


def _flamingo(c):
    stage = c.train
    stage.update(steps=500_000, log_every=100, eval_every=5_000)
    stage.datasets.m3w = config.dataset(
        source="folder", path="data/m3w", layout="page", weight=1.0, batch=256, length=256,
        images=5, p_next=0.5,
    )  # fmt: skip
    # "L = 32 or 64" (v1 §4.1.4), not which: LTIP's texts are the longer ones, 20.5 tokens in the
    # mean against ALIGN's 12.4; a clip's text is one sentence.
    stage.datasets.align = config.dataset(
        source="folder", path="data/align", weight=0.2, batch=512, length=32, leading_space=0.5
    )
    stage.datasets.ltip = config.dataset(
        source="folder", path="data/ltip", weight=0.2, batch=512, length=64, leading_space=0.5
    )
    stage.datasets.vtp = config.dataset(
        source="folder", path="data/vtp", layout="clip", weight=0.03, batch=64, length=32, frames=8,
        leading_space=0.5,
    )  # fmt: skip
    stage.optimizer.update(lr=1e-4, weight_decay=0.1, clip=1.0, warmup=5_000, schedule="constant")


def _tiny(c):
    c.train.micro_batches = 1
    c.stages = ("language", "contrastive", "flamingo")
    c.tokenizer.update(kind="bytes", path="", image="new")
    c.model.language.update(vocab=0, width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="tiny", image_size=32)
    c.model.text.update(width=32, blocks=1, heads=2, hidden=64)
    c.model.contrastive.update(width=16)
    c.model.resampler.update(depth=2, latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.pretrain.language.datasets.text = config.dataset(source="openmoji:text", layout="text")
    c.pretrain.contrastive.datasets.pairs = config.dataset(
        source="openmoji:pairs", layout="contrastive"
    )
    parts = {"m3w": "pages", "align": "alt", "ltip": "descriptions", "vtp": "clips"}
    for name, part in parts.items():
        c.train.datasets[name].update(source=f"openmoji:{part}", path="")
    for stage in (c.pretrain.language, c.pretrain.contrastive, c.train):
        stage.update(steps=4, log_every=2, eval_every=0, eval_batches=1)
        stage.optimizer.warmup = 2
        for row in stage.datasets.values():
            row.update(batch=8, length=48)
    c.checkpoint.every = 2
    return c
