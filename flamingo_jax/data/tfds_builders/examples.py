"""The examples of the set flamingo_documents, made in this process or on Beam's workers."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flamingo_jax.data import sources
from flamingo_jax.data.document import Source
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.prepare import beam, begun, filters, writer
from flamingo_jax.data.prepare.job import Job, default_between, make_plan, open_job
from flamingo_jax.data.readers import tfds_documents
from flamingo_jax.errors import InputError

Example = tuple[int, dict[str, Any]]
"""(index of the record in its source, example)."""


class Counts:
    """What became of the records."""

    def __init__(self) -> None:
        self.documents = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.bad: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()

    def told(self, records: int) -> dict[str, Any]:
        """The counts as JSON.

        Raises:
          InputError: if no record was kept.
        """
        if not self.documents:
            raise begun.none_kept(records, self.dropped, self.bad)
        counts = {"records": records, "documents": self.documents}
        return {"counts": counts} | {
            name: dict(vars(self)[name]) for name in ("dropped", "bad", "left_out")
        }


def make_job(config: Any, path: str, split: str) -> Job:
    """What is built of a split.

    Args:
      config: a `DocumentsConfig`.
      path: of the source.
      split: "train" or "validation".

    Raises:
      InputError: if the configuration is wrong.
    """
    spec = sources.SourceSpec(
        config.source,
        path,
        config.files,
        config.validation_path,
        config.held_out,
        dict(config.options),
    )
    chosen = {"between": default_between(spec)} | _checked(config.filters)
    options = dataclasses.replace(filters.PAPER, **chosen)
    folders = tuple(config.evaluation_images)
    return Job(spec, split, options, folders, config.distance, config.shard_size)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the filters, of their types."""
    own = {name: type(value) for name, value in vars(filters.PAPER).items() if name != "language"}
    for name, value in given.items():
        if name not in own:
            raise InputError(f"there is no filter {name!r}; there are {', '.join(own)}")
        if type(value) is not own[name] and (own[name], type(value)) != (float, int):
            raise InputError(f"the filter {name!r} is {value!r}; it takes a {own[name].__name__}")
    return dict(given)


def check_built(job: Job, old: Mapping[str, Any], folder: str) -> None:
    """Compares a set that is there with the one that is asked for: TFDS goes by its name alone.

    Args:
      job: what is asked for.
      old: the plan of the one that is there.
      folder: where it is.

    Raises:
      InputError: if they differ.
    """
    new = make_plan(job, old["records"], None)
    evaluation = old["evaluation"] or {"folders": [], "distance": job.distance}
    told = {"folders": evaluation["folders"], "distance": evaluation["distance"]}
    asked = {"folders": list(job.evaluation_images), "distance": job.distance}
    for field, before, now in begun.changes(
        {**old, "evaluation": told, "shard_size": 0}, {**new, "evaluation": asked, "shard_size": 0}
    ):
        raise InputError(
            f"{folder!r} was built with {field}={json.dumps(before)} and is now to have "
            f"{json.dumps(now)}; give the configuration another name, or --overwrite"
        )


def open_work(job: Job) -> tuple[beam.Work, Source]:
    """What workers know of a job, and its source.

    Raises:
      InputError: if the source is wrong.
    """
    opened = open_job(job, os.cpu_count() or 1)
    layout = writer.Layout(pathlib.Path(), len(opened.source), job.shard_size, opened.digest)
    return beam.Work(job, "", opened.plan, layout, opened.index), opened.source


def make_all(work: beam.Work, source: Source, counts: Counts) -> Iterator[Example]:
    """The examples of all records that are kept, in their order."""
    return _make(work, source, range(work.layout.records), counts)


def make_some(number: int, work: beam.Work) -> Iterator[Example]:
    """The examples of the records that make a shard; the worker opens the source itself."""
    return _make(work, beam.source_of(work), work.layout.range(number), Counts())


def _make(work: beam.Work, source: Source, places: range, counts: Counts) -> Iterator[Example]:
    for place in places:
        try:
            _, kept = writer.make_record(source[place], work.job.options, work.index)
        except BadRecord as error:
            (counts.dropped if isinstance(error, Dropped) else counts.bad)[error.reason] += 1
            continue
        counts.documents += 1
        counts.left_out.update(kept.left_out)
        yield place, tfds_documents.make_example(kept.document)


def on_workers(work: beam.Work) -> Any:
    """A step of Beam that makes the same examples.

    Raises:
      InputError: if Beam is not installed.
    """
    library = beam.import_beam()
    numbers = library.Create(range(work.layout.shards))
    return numbers | library.Reshuffle() | library.FlatMap(make_some, work)
