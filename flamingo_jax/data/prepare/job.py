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

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flamingo_jax.data import sources
from flamingo_jax.data.document import Source
from flamingo_jax.data.prepare import duplicates, filters, manifest, writer
from flamingo_jax.data.readers import codec
from flamingo_jax.errors import InputError

LOCK = ".lock"
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
    if job.shard_size < 1 or workers < 1:
        raise InputError(f"shard_size is {job.shard_size}, workers {workers}; both are at least 1")
    source = sources.open_source(job.source, job.split)
    if not len(source):
        raise InputError(f"the source {job.source.name!r} at {job.source.path!r} has no record")
    index = None
    if job.evaluation_images:
        index = duplicates.open_index(job.evaluation_images, job.distance, workers)
    plan = make_plan(job, len(source), index)
    folder = pathlib.Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _begin(folder, plan)
            digest = hashlib.sha256(manifest.canonical(plan)).hexdigest()
            layout = writer.Layout(folder, len(source), job.shard_size, digest)
            made = _shards(_Work(job, layout, index), source, workers, advance)
            _finish(folder, plan, made)
    except OSError as error:
        raise InputError(
            f"{out!r} cannot be written ({error}); make room or mend it, and run the same command "
            "again"
        ) from error
    return manifest.read(folder)


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


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps others from preparing here; the kernel holds the lock, a kill leaves none."""
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process prepares into {str(folder)!r}; wait until it ends, or give "
                "another --out"
            ) from error
        yield


def _begin(folder: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Writes the plan into an empty folder, or compares it with the one there."""
    for path in folder.glob(f"{manifest.TEMPORARY}*"):
        path.unlink(missing_ok=True)
    path = folder / manifest.PLAN
    if not path.exists():
        others = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".")
        if others:
            raise InputError(
                f"{str(folder)!r} holds {others[0]!r}, which prepare did not begin; give an empty "
                "or a new folder"
            )
        manifest.write(path, plan)
        return
    try:
        old = json.loads(path.read_bytes())
        changes = list(_changes(old, plan))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); give a new folder") from error
    for field, before, now in changes:
        raise InputError(
            f"{str(folder)!r} was begun with {field}={json.dumps(before)} and is now to have "
            f"{json.dumps(now)}; set it back, or give another --out"
        )


def _changes(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, before, now) of what differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{field}.{name}" if field else name
            yield from _changes(old.get(name), new.get(name), inner)
    elif old != new:
        yield field or "plan", old, new


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


def _finish(folder: pathlib.Path, plan: Mapping[str, Any], accounts: list[dict[str, Any]]) -> None:
    """Writes the manifest."""
    counts, dropped, bad, left_out = (
        _added(account[name] for account in accounts)
        for name in ("counts", "dropped", "bad", "left_out")
    )
    if not counts["documents"]:
        reasons = _added((dropped, bad)).most_common(3)
        most = ", ".join(f"{count} times {reason}" for reason, count in reasons)
        raise InputError(f"none of {counts['records']} records can be kept: {most}")
    shards = [
        {
            "name": account["name"],
            "documents": account["counts"]["documents"],
            "bytes": account["bytes"],
            "sha256": account["sha256"],
        }
        for account in accounts
    ]
    content = {
        "format": manifest.FORMAT,
        "schema": {
            "container": "ArrayRecord",
            "options": writer.OPTIONS,
            "record": "FLD1",
            "items": ["text", *codec.KINDS],
        },
        "plan": plan,
        "counts": counts,
        "bytes": sum(account["bytes"] for account in accounts),
        "dropped": dropped,
        "bad": bad,
        "left_out": left_out,
        "shards": shards,
    }
    manifest.write(folder / manifest.MANIFEST, content)


def _added(counts: Iterable[Mapping[str, int]]) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for one in counts:
        total.update(one)  # keeps zeros, which a sum of counters does not
    return total
