"""A folder of small sets in the forms of COCO, VQAv2, a classification and clips with captions.

Run: python -m flamingo_jax evaluate --config=experiments/evaluations/shared.py \
         --checkpoint=runs/openmoji --workdir=runs/benchmarks

The folder is FLAMINGO_SHARED's, else ../shared; what lies in it is found by its names. Variant
"sample" asks 40 queries of each.
"""

import os
import pathlib

from flamingo_jax import config

DATA = pathlib.Path(os.environ.get("FLAMINGO_SHARED", "../shared")) / "data"
SPLITS = ("train", "val")


def get_config(variant: str = "full"):
    """0, 4 and 8 shots, random and by similarity, under Flamingo's protocol."""
    config.pick(variant, ("full", "sample"))
    c = config.evaluation()
    c.root = str(DATA / "eval")
    c.update(shots=(0, 4, 8), selections=("random", "rices"), batch=64)
    c.benchmarks.coco = config.benchmark(split="val2014", title="captions", files=_captions())
    c.benchmarks.vqav2 = config.benchmark(split="val", title="questions", files=_questions())
    c.benchmarks.classes = config.benchmark(
        name="custom", title="classes",
        files={
            "queries": "classification/val.jsonl",
            "support": "classification/train.jsonl",
            "all.pictures": ".",
        },
    )  # fmt: skip
    c.benchmarks.clips = config.benchmark(
        name="custom", title="clips", root=str(DATA / "video"),
        files={"queries": "captions_eval.jsonl", "all.pictures": "."},
    )  # fmt: skip
    if variant == "sample":
        c.queries = 40
    return c


def _captions() -> dict[str, str]:
    files = {f"{split}.captions": f"coco/captions_{split}.json" for split in SPLITS}
    return files | {f"{split}.pictures": f"images/{split}" for split in SPLITS}


def _questions() -> dict[str, str]:
    files = {}
    for split in SPLITS:
        files[f"{split}.questions"] = f"vqav2/v2_OpenEnded_questions_{split}.json"
        files[f"{split}.answers"] = f"vqav2/v2_annotations_{split}.json"
        files[f"{split}.pictures"] = f"images/{split}/{split}_{{id:012d}}.jpg"
    return files
