"""The paper's mixture filled with public sets, as img2dataset and their authors leave them.

Run:      python -m flamingo_jax train --config=experiments/mixture_web.py:3b,obelics,laion,webvid \
              --config.train.datasets.obelics.path='data/obelics/*.parquet' \
              --config.train.datasets.obelics.files=data/obelics/images \
              --config.train.datasets.laion.path='data/laion/{00000..41407}.tar' \
              --config.train.datasets.webvid.path='data/webvid/*.tar' --workdir=runs/web
Look:     python -m flamingo_jax inspect --config=experiments/mixture_web.py:… (the same flags)
Rehearse: the first command with `tiny` for `3b` and --check: a batch, a step, a save, a restore

| role (λ, rows a step) | sets | what is read |
|---|---|---|
| M3W (1.0, 256) | obelics | Parquet; pictures in it, or by name in `files` |
| | mmc4 | WebDataset with pictures in base64, or JSON lines with `files` |
| ALIGN (0.2, 512) | laion, coyo, datacomp | WebDataset of img2dataset: jpg, txt, json |
| LTIP (0.2, 512) | recap | the same, with its long captions as `re_caption` in the json |
| VTP (0.03, 64) | webvid | WebDataset of video2dataset: mp4, txt, json |

After the colon stand a size and the sets that are used: a set that is not named is left out, with
its whole role if no other fills it; without names they are `DEFAULT`. Sets that fill one role share
its λ equally, and its rows, down to a multiple of 64, so that devices divide them. Each set that is
used needs its `path` (and pictures that lie elsewhere `files`): there is no default, and what has
none is refused before anything is computed. Every rule of a set is one of its `options`:
--config.train.datasets.mmc4.options.min_similarity=0.28.

`3b` is flamingo_3b.py's model, with the tokenizer, encoder and language model that it needs.
`small` needs nothing else: it learns its tokenizer, a language model and an encoder from the same
files first; 128 pixels a picture, a few hundredths of the weights, an eighth of the rows, meant for
one GPU, where neither its memory nor how good it gets has been measured. `tiny` is `small` with
numbers that a laptop takes a few steps of, through the same code and the same files.
"""

import pathlib

from flamingo_jax import config
from flamingo_jax.errors import InputError

SIZES = ("3b", "small", "tiny")
ROLES = {
    "m3w": ("obelics", "mmc4"),
    "align": ("laion", "coyo", "datacomp"),
    "ltip": ("recap",),
    "vtp": ("webvid",),
}
DEFAULT = ("obelics", "mmc4", "laion", "recap", "webvid")
SOURCES = {"obelics": "obelics", "mmc4": "mmc4", "webvid": "clips"}  # the others are "pairs"
RULES = {
    # The published command of OpenFlamingo-3B (`corpora/mmc4.py` OPENFLAMINGO), with the paper's
    # five images a page.
    "mmc4": {
        "assignment": "optimal",
        "min_similarity": 0.24,
        "min_bytes": 11_000,
        "max_images": 5,
        "drop_single": 0.5,
    },
    # Web pages are filtered by their authors; a page without pictures would teach text alone.
    "obelics": {"min_images": 1},
    # LTIP's texts are long: one of its role that is a mere name is not used.
    "recap": {
        "captions": ("json.re_caption", "re_caption", "txt", "text", "caption"),
        "min_characters": 40,
    },
}


def get_config(variant: str = "3b"):
    """SIZE, SIZE,SET,SET,… or SET,SET,…: see the module."""
    size, names = _words(variant)
    c = config.load(str(pathlib.Path(__file__).with_name("flamingo_3b.py")))
    c.name = f"mixture_web-{size}"
    rows = c.train.datasets
    roles = {role: rows[role].to_dict() for role in ROLES}
    for role in ROLES:
        del rows[role]
    for role, fields in roles.items():
        chosen = [name for name in ROLES[role] if name in names]
        for name in chosen:
            rows[name] = config.dataset(**fields)
            rows[name].update(source=SOURCES.get(name, "pairs"), path="", held_out=1_000)
            rows[name].update(weight=fields["weight"] / len(chosen))
            rows[name].update(batch=_share(fields["batch"], len(chosen)))
            rows[name].options.update(RULES.get(name, {}))
    if size == "3b":
        return c
    return _tiny(_small(c)) if size == "tiny" else _small(c)


def _words(variant: str) -> tuple[str, list[str]]:
    """The size, and the sets that are used."""
    words = [word.strip() for word in variant.split(",")]
    size = words.pop(0) if words[0] in SIZES else SIZES[0]
    known = [name for names in ROLES.values() for name in names]
    for word in words:
        if word not in known:
            raise InputError(
                f"unknown variant {variant!r}: {word!r} is no set; give one of {', '.join(SIZES)}, "
                f"then any of {', '.join(known)}"
            )
    return size, words or list(DEFAULT)


def _share(rows: int, sets: int) -> int:
    return max(rows // sets // 64 * 64, 1)


def _small(c):
    c.train.micro_batches = 1
    c.stages = ("language", "contrastive", "flamingo")
    rows = c.train.datasets
    # In the order of the table above: a ConfigDict has its own.
    names = [name for sets in ROLES.values() for name in sets if name in rows]
    pairs = next((name for name in names if rows[name].layout == "pair"), "")
    if not pairs:
        known = ", ".join((*ROLES["align"], *ROLES["ltip"]))
        raise InputError(f"this size learns its encoder from pairs; name one of {known} as well")
    c.model.language.update(width=512, blocks=8, heads=8, head_dim=64, hidden=2048)
    c.model.language.vocab = 0
    c.model.vision.update(variant="F0", image_size=128)
    c.model.text.update(width=512, blocks=4, heads=8, hidden=2048)
    c.model.contrastive.width = 512
    c.model.resampler.update(depth=2, latents=32, width=512, heads=8, head_dim=64, hidden=2048)
    c.model.xattn.update(every=2, heads=8, head_dim=64, hidden=2048)
    for row in rows.values():
        row.update(batch=row.batch // 8, held_out=100)
    # A set's path is said once: the stages before read the same files.
    first = names[0]
    # Pairs' texts can be read without the pictures' folder.
    c.tokenizer.update(kind="train", vocab=8_192, source=rows[pairs].source, image="new")
    c.tokenizer.path = rows[pairs].get_ref("path")
    language, contrastive = c.pretrain.language, c.pretrain.contrastive
    language.datasets.text = _same(rows[first], layout="text", batch=64, length=256)
    contrastive.datasets.pairs = _same(rows[pairs], layout="contrastive", batch=512, length=32)
    language.update(steps=20_000, log_every=100, eval_every=2_000)
    language.optimizer.update(lr=1e-3, warmup=1_000, schedule="cosine", end=0.1)
    contrastive.update(steps=20_000, log_every=100, eval_every=2_000)
    contrastive.optimizer.update(lr=1e-3, warmup=1_000, schedule="cosine", end=0.1, agc=0.05)
    c.train.update(steps=20_000, log_every=100, eval_every=2_000)
    c.train.optimizer.update(lr=3e-4, warmup=1_000)
    c.alarm.step = 2_000
    return c


def _tiny(c):
    c.model.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=64)
    c.model.vision.update(variant="tiny", image_size=32)
    c.model.text.update(width=32, blocks=1, heads=2, hidden=64)
    c.model.contrastive.width = 16
    c.model.resampler.update(latents=4, width=32, heads=2, head_dim=16, hidden=64)
    c.model.xattn.update(heads=2, head_dim=16, hidden=64)
    c.tokenizer.vocab = 400
    for stage in (c.pretrain.language, c.pretrain.contrastive, c.train):
        stage.update(steps=4, log_every=2, eval_every=0, eval_batches=1)
        stage.optimizer.warmup = 2
        for row in stage.datasets.values():
            row.update(batch=8, length=48)
    c.alarm.step = 0
    return c


def _same(row, **fields):
    """A dataset of another stage that reads what `row` reads, wherever that is set to be."""
    other = config.dataset(source=row.source, held_out=row.held_out, **fields)
    for field in ("path", "files", "validation_path"):
        other[field] = row.get_ref(field)
    other.options.update(row.options)
    return other
