"""Preparing a source on one machine: shards by several processes, a manifest when all are there.

    DIR/plan.json                          what is made, before anything is made
    DIR/shard-00000-of-00012.array_record  documents, as `readers.codec` writes them
    DIR/shard-00000-of-00012.json          the shard's account
    DIR/manifest.json                      the sum, last

The same command goes on after a kill: it keeps shards whose sha256 is that of their account and
makes the others. Bytes depend on the plan and the source's records alone. A source of as many
records is taken for the same source: whoever changes its files prepares into another folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flamingo_jax.data import sources
from flamingo_jax.data.document import Source
from flamingo_jax.data.prepare import begun, duplicates, filters, manifest, writer
from flamingo_jax.errors import InputError

BETWEEN = {"mmc4": " "}
"""What a corpus's texts are joined by, where it is no blank line."""

Advance = Callable[[int, int, str], None]
"""(records done, records in all, a note)."""
Made = Generator[tuple[int, dict[str, Any]], None, None]
"""Shards as they are finished: (number, account)."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is prepared, and how.

    Attributes:
      source: of the documents.
      split: "train" or "validation".
      options: what is kept. `language`, if any, is a function that can be imported by its name.
      evaluation_images: folders; images near one of theirs are left out.
      distance: bits of their hashes by which such images differ at most.
      shard_size: records of the source a shard.
    """

    source: sources.SourceSpec
    split: str = "train"
    options: filters.FilterOptions = filters.PAPER
    evaluation_images: tuple[str, ...] = ()
    distance: int = duplicates.DISTANCE
    shard_size: int = 1000


@dataclasses.dataclass(frozen=True)
class _Work:
    """What every worker knows."""

    job: Job
    layout: writer.Layout
    index: duplicates.Index | None


def prepare(
    job: Job, out: str, workers: int = 1, advance: Advance = lambda done, total, note: None
) -> manifest.Manifest:
    """Makes a folder of prepared documents, or goes on with it.

    Args:
      job: what and how.
      out: the folder; made if absent.
      workers: processes; 1 = this one.
      advance: told of progress, after each shard.

    Raises:
      InputError: if the source or the options are wrong, `out` is in use, was made from others,
        holds other files or cannot be written, or no document is kept.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; it is at least 1")
    opened = open_job(job, workers)
    folder = pathlib.Path(out).expanduser()
    with begun.writable(out):
        folder.mkdir(parents=True, exist_ok=True)
        with begun.locked(folder):
            begun.begin(folder, opened.plan)
            layout = writer.Layout(folder, len(opened.source), job.shard_size, opened.digest)
            work = _Work(job, layout, opened.index)
            made = _shards(work, opened.source, workers, advance)
            manifest.write(folder / manifest.MANIFEST, begun.make_manifest(opened.plan, made))
    return manifest.read(folder)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A job whose source is there.

    Attributes:
      source: of the documents.
      index: of the evaluation images, if there are any.
      plan: what a folder of it is made of.
      digest: the plan's sha256.
    """

    source: Source
    index: duplicates.Index | None
    plan: dict[str, Any]
    digest: str


def open_job(job: Job, threads: int = 1) -> Opened:
    """Opens what a job needs, which says at once what is wrong with it.

    Args:
      job: what and how.
      threads: that decode evaluation images at once.

    Raises:
      InputError: if the source or the options are wrong, or the source is empty.
    """
    if job.shard_size < 1:
        raise InputError(f"shard_size is {job.shard_size}; it is at least 1")
    source = sources.open_source(job.source, job.split)
    if not len(source):
        raise InputError(f"the source {job.source.name!r} at {job.source.path!r} has no record")
    index = None
    if job.evaluation_images:
        index = duplicates.open_index(job.evaluation_images, job.distance, threads)
    plan = make_plan(job, len(source), index)
    return Opened(source, index, plan, hashlib.sha256(manifest.canonical(plan)).hexdigest())


def make_plan(job: Job, records: int, index: duplicates.Index | None) -> dict[str, Any]:
    """What a folder is made of, as JSON: two folders of one plan are the same.

    Raises:
      InputError: if the language filter has no name that it can be imported by.
    """
    kept = dataclasses.asdict(dataclasses.replace(job.options, language=None))
    evaluation = None
    if index is not None:
        evaluation = {
            "folders": list(job.evaluation_images),
            "distance": index.most,
            "images": index.images,
            "unreadable": index.unreadable,
            "sha256": index.sha256,
        }
    plan = {
        "format": manifest.FORMAT,
        "source": vars(job.source) | {"options": dict(job.source.options)},
        "split": job.split,
        "filters": kept | {"language": _named(job.options.language)},
        "evaluation": evaluation,
        "shard_size": job.shard_size,
        "records": records,
    }
    try:
        return json.loads(manifest.canonical(plan))  # tuples are lists, as they will be read
    except (TypeError, ValueError) as error:
        raise InputError(f"the source's options cannot be written as JSON ({error})") from error


def _named(function: Callable[[str], bool] | None) -> str:
    if function is None:
        return ""
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    if "<" in name or "None" in name.split(":"):
        raise InputError(
            f"the language filter {name!r} cannot be imported by its name; define it in a module"
        )
    return name


def default_between(source: sources.SourceSpec) -> str:
    """What is put between texts of this source that come to follow each other."""
    return source.options.get("between", BETWEEN.get(source.name, filters.PAPER.between))


def _shards(work: _Work, source: Source, workers: int, advance: Advance) -> list[dict[str, Any]]:
    """The accounts of all shards, in their order."""
    layout = work.layout
    accounts: dict[int, dict[str, Any]] = {}
    done = documents = 0
    advance(0, layout.records, "")
    workers = min(workers, layout.shards)
    made = _in_processes(work, workers) if workers > 1 else _here(work, source)
    with contextlib.closing(made):
        for number, account in made:
            accounts[number] = account
            done += account["counts"]["records"]
            documents += account["counts"]["documents"]
            advance(done, layout.records, f"{documents} kept")
    return [accounts[number] for number in range(layout.shards)]


def _here(work: _Work, source: Source) -> Made:
    for number in range(work.layout.shards):
        options = work.job.options
        yield number, writer.make_shard(source, work.layout, number, options, work.index)


def _in_processes(work: _Work, workers: int) -> Made:
    context = multiprocessing.get_context("spawn")  # threads of the parent's do not survive a fork
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start, initargs=(work, stop)
    )
    try:
        waiting = {pool.submit(_make, number): number for number in range(work.layout.shards)}
        for future in concurrent.futures.as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; run the same command again, "
            "with fewer --workers or a smaller --shard-size"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """The parent does not wait for this shard any more."""


@dataclasses.dataclass
class _Worker:
    """What a worker process holds: one process, one job."""

    work: _Work
    stop: Any
    source: Source | None = None


_workers: list[_Worker] = []


def _start(work: _Work, stop: Any) -> None:
    """Sets a worker process up; its first shard opens the source and can say what is wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops what it started
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _workers[:] = [_Worker(work, stop)]


def _die_with_parent() -> None:
    # A pool's process waits for its next task for ever, even if nobody is left to give one.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(number: int) -> dict[str, Any]:
    worker = _workers[0]
    work = worker.work
    if worker.source is None:
        worker.source = sources.open_source(work.job.source, work.job.split)
        if len(worker.source) != work.layout.records:
            raise InputError("the source changed while it was prepared; run the same command again")

    def check() -> None:
        if worker.stop.is_set():
            raise _Stopped

    options = work.job.options
    return writer.make_shard(worker.source, work.layout, number, options, work.index, check)
