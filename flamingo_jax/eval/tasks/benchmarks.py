"""The benchmarks by name: which there are, what each needs, and reading one.

    benchmark = benchmarks.load("vqav2", "/data/benchmarks")
    print(benchmarks.table("/data/benchmarks"))

Each lies in a folder of its name, laid out as experiments/EVALUATION.md says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import Benchmark, Example
from flamingo_jax.eval.tasks.captions import COCO, FLICKR30K, NOCAPS
from flamingo_jax.eval.tasks.custom import CUSTOM
from flamingo_jax.eval.tasks.entries import Entry, Files
from flamingo_jax.eval.tasks.hateful_memes import HATEFUL_MEMES
from flamingo_jax.eval.tasks.imagenet import IMAGENET
from flamingo_jax.eval.tasks.ivqa import IVQA
from flamingo_jax.eval.tasks.kinetics import KINETICS700
from flamingo_jax.eval.tasks.nextqa import NEXTQA, NEXTQA_CHOICE
from flamingo_jax.eval.tasks.rareact import RAREACT
from flamingo_jax.eval.tasks.scienceqa import SCIENCEQA
from flamingo_jax.eval.tasks.star import STAR
from flamingo_jax.eval.tasks.textvqa import TEXTCAPS, TEXTVQA
from flamingo_jax.eval.tasks.tfds_sets import COCO_TFDS
from flamingo_jax.eval.tasks.vatex import VATEX
from flamingo_jax.eval.tasks.video_qa import MSRVTTQA, MSVDQA
from flamingo_jax.eval.tasks.visdial import VISDIAL
from flamingo_jax.eval.tasks.vizwiz import VIZWIZ
from flamingo_jax.eval.tasks.vqa import OKVQA, VQAV2
from flamingo_jax.eval.tasks.youcook2 import YOUCOOK2

SIXTEEN = (
    *(COCO, OKVQA, VQAV2, MSVDQA, VATEX),  # those that decisions were made by
    *(VIZWIZ, FLICKR30K, MSRVTTQA, IVQA, YOUCOOK2, STAR, VISDIAL, TEXTVQA, NEXTQA),
    *(HATEFUL_MEMES, RAREACT),
)
"""The paper's (Flamingo v1, table 2)."""
MORE = (IMAGENET, KINETICS700, NOCAPS, TEXTCAPS, SCIENCEQA, NEXTQA_CHOICE, COCO_TFDS, CUSTOM)
ENTRIES = {entry.name: entry for entry in (*SIXTEEN, *MORE)}


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
      InputError: if there is none.
    """
    if name not in ENTRIES:
        raise InputError(f"there is no benchmark {name!r}; there are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def load(
    name: str,
    root: str | os.PathLike[str],
    split: str = "",
    elsewhere: Mapping[str, str] | None = None,
) -> Benchmark:
    """Reads a benchmark's annotations; its pictures and clips are not opened.

    Args:
      name: one of `ENTRIES`.
      root: the folder that holds the benchmarks' folders.
      split: which split is asked; "" = the entry's first.
      elsewhere: paths of files that lie elsewhere, by their keys, below `root` or absolute.

    Raises:
      InputError: for a missing or malformed file: one sentence that names file, place and field.
    """
    of = entry(name)
    files = Files(of, root, split, elsewhere)
    pools = of.read(files)
    if not pools.queries:
        raise InputError(f"{of.title}: {files.used[0]} has nothing in its split {files.split!r}")
    for examples in (pools.support, pools.queries):
        if isinstance(examples, list):  # others are read when they are asked for
            _check_keys(examples, of)
    return Benchmark(
        name=of.name,
        title=of.title,
        kind=pools.kind or of.kind,
        metric=pools.metric or of.metric,
        support=pools.support,
        queries=pools.queries,
        split=files.split,
        development=of.development,
        classes=pools.classes,
        left_out=pools.left_out,
        files=tuple(dict.fromkeys(files.used)),
    )


def _check_keys(examples: Sequence[Example], of: Entry) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.key in seen:
            raise InputError(f"{of.title}: two records have the id {example.key!r}")
        seen.add(example.key)


def table(root: str | os.PathLike[str]) -> str:
    """What `evaluate --list` prints: a line for each benchmark, and one for each of its files."""
    lines = []
    for of in ENTRIES.values():
        lines += described(of.name, of, Files(of, root))
    return "\n".join(lines)


def described(name: str, of: Entry, files: Files) -> list[str]:
    """A benchmark's lines of the table: + a file that is there, - one that is not, ? an optional.

    Args:
      name: as it is called there.
      of: what it is.
      files: where its files are looked for, and for which split.
    """
    needs = [(need, files.find(need.key)) for need in of.needed(files.split)]
    missing = any(path is None and not need.optional for need, path in needs)
    state = "not found" if missing else "found"
    lines = [f"{name:<14} {of.title:<22} {of.kind:<8} {of.metric:<14} {state}"]
    for need, path in needs:
        mark = "+" if path else "?" if need.optional else "-"
        where = path or files.candidates(need.key)[0]
        lines.append(f"  {mark} {where}  ({need.what}; {need.source})")
    return lines
