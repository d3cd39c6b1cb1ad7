"""The fields of an evaluation's config: which benchmarks, and how they are asked."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def benchmark(**fields: Any) -> Any:
    """One benchmark of an evaluation; `fields` change the defaults below.

    Raises:
      KeyError: for a field that there is not.
    """
    c: Any = ConfigDict()
    c.name = ""  # of eval/tasks/benchmarks.py; "" = the row's own
    c.split = ""  # of the authors' splits; "" = the benchmark's first
    c.title = ""  # as results call it; "" = the benchmark's own
    c.root = ""  # the folder that holds the benchmark's folder; "" = config.root
    c.files = ()  # of files that lie elsewhere: ("train.pictures", "…") and so on
    c.lock()
    if isinstance(fields.get("files"), dict):  # whose keys have dots, which ConfigDicts refuse
        fields["files"] = tuple(fields["files"].items())
    c.update(fields)
    return c


def evaluation() -> Any:
    """An evaluation; a config file starts from it and adds rows to `benchmarks`.

    What is "", () or -1 is as the protocol says (flamingo_jax/eval/protocol/presets.py).
    """
    c: Any = ConfigDict()
    c.root = ""  # the folder that holds the benchmarks' folders
    c.benchmarks = ConfigDict()  # NAME = benchmark(…)
    c.protocol = "flamingo"  # flamingo | openflamingo | idefics
    c.split = "test"  # test | validation (part of the training split, to make decisions by)
    c.queries = 0  # at most so many of each benchmark, drawn by the seed; 0 = all
    c.shots = ()
    c.selections = ("random",)  # of random | rices | rices_text | rices_both
    c.seeds = ()  # one trial each
    c.sharing = ""  # query (each is shown shots of its own) | shared (by all of a trial)
    c.keep_prefix = True  # shots that all queries share are read once
    c.orders = -1  # of a close-ended query's shots: prompt ensembling over so many
    c.support = -1  # examples that shots are taken from; 0 = all
    c.beams = -1
    c.length_penalty = -1.0
    c.frames = -1  # of a clip, at most
    c.fps = -1.0
    c.batch = 64  # sequences run at once
    c.fsdp = 1  # devices that a copy of the model is split over; there are as many as fit
    c.tensor = 1  # devices that a matrix product is split over
    c.dtype = ""  # to compute in: float32 | bfloat16; "" = as the model was trained
    c.lock()
    c.benchmarks.unlock()
    return c
