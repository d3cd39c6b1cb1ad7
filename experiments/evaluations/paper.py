"""The sixteen benchmarks of Flamingo's table 2 (v1), as far as their files are there.

Run:  python -m flamingo_jax evaluate --config=experiments/evaluations/paper.py \
          --root=/data/benchmarks --checkpoint=gs://BUCKET/runs/80b --workdir=runs/80b-paper
Look: … evaluate --list --root=/data/benchmarks

Variants: "development" asks the five that decisions were made by, on validation subsets of their
training splits (C.3); "openflamingo" and "idefics" are those models' own benchmarks and protocols.
"""

from flamingo_jax import config
from flamingo_jax.eval.tasks import benchmarks

DEVELOPMENT = ("coco", "okvqa", "vqav2", "msvdqa", "vatex")
OPENFLAMINGO = ("coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz", "hateful_memes")
IDEFICS = ("vqav2", "okvqa", "textvqa", "vizwiz", "textcaps", "coco", "nocaps", "flickr30k")


def get_config(variant: str = "full"):
    """0, 4, 8, 16 and 32 random shots, three beams."""
    config.pick(variant, ("full", "development", "openflamingo", "idefics"))
    c = config.evaluation()
    names = {
        "full": tuple(entry.name for entry in benchmarks.SIXTEEN),
        "development": DEVELOPMENT,
        "openflamingo": OPENFLAMINGO,
        "idefics": (*IDEFICS, "visdial", "hateful_memes"),
    }
    for name in names[variant]:
        c.benchmarks[name] = config.benchmark()
    if variant == "development":
        c.split = "validation"
    elif variant != "full":
        c.protocol = variant
    return c
