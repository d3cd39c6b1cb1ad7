"""The verb `evaluate`: a checkpoint, a config of benchmarks, and a folder of results."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax import config as configs
from flamingo_jax import processes, progress, sharding, use
from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign, gallery, judge
from flamingo_jax.eval.asking import Shard
from flamingo_jax.eval.examples import Benchmark
from flamingo_jax.eval.protocol import presets, splits
from flamingo_jax.eval.protocol.presets import Protocol
from flamingo_jax.eval.tasks import benchmarks as tasks
from flamingo_jax.eval.tasks.entries import Files
from flamingo_jax.report import benchmarks as page

LONGEST = 86_400.0
"""Seconds that a process waits for others' answers: one that dies ends all of them sooner."""


def protocol_of(c: Any) -> Protocol:
    """The protocol that a config asks for: a preset with what the config changes.

    Raises:
      InputError: for a preset or a value that there is not.
    """
    changed: dict[str, Any] = {}
    for name in ("shots", "seeds", "sharing"):
        if c[name]:
            changed[name] = tuple(c[name]) if isinstance(c[name], tuple) else c[name]
    for name in ("orders", "support", "beams", "length_penalty", "frames", "fps"):
        if c[name] >= 0:
            changed[name] = c[name]
    return dataclasses.replace(presets.find(c.protocol), **changed)


def request_of(c: Any) -> campaign.Request:
    """What is asked, and how.

    Raises:
      InputError: for a value that there is not.
    """
    if c.split not in (splits.TEST, splits.VALIDATION):
        raise InputError(f"config.split={c.split!r}: {splits.TEST} or {splits.VALIDATION}")
    if c.batch < 1 or c.queries < 0:
        raise InputError("config.batch is at least 1, config.queries 0 (all) or more")
    return campaign.Request(
        protocol_of(c), tuple(c.selections), c.split, c.queries, c.batch, c.keep_prefix
    )


def benchmarks_of(c: Any) -> list[Benchmark]:
    """Reads the config's benchmarks, each under its row's name.

    Raises:
      InputError: if there is none, or for a missing or malformed file.
    """
    if not c.benchmarks:
        raise InputError("the config names no benchmark; give --benchmarks=NAME,… or rows")
    found = []
    for name, row in c.benchmarks.items():
        read = tasks.load(row.name or name, row.root or c.root, row.split, dict(row.files))
        found.append(dataclasses.replace(read, name=name, title=row.title or read.title))
    return found


def config_of(spec: str, overrides: dict[str, str], names: Sequence[str], root: str) -> Any:
    """The config of a file, or of names alone.

    Raises:
      InputError: for a file, a name or a field that there is not.
    """
    if spec:
        c = configs.load(spec)
        if "benchmarks" not in c:
            raise InputError(
                f"{spec} is no evaluation's config; its get_config starts from config.evaluation()"
            )
    else:
        c = configs.evaluation()
    if names:
        rows = {name: c.benchmarks[name] for name in names if name in c.benchmarks}
        for name in names:
            if name not in rows:
                tasks.entry(name)
                rows[name] = configs.benchmark()
        c.benchmarks = type(c.benchmarks)(rows)
    if root:
        c.root = root
    for field, text in overrides.items():
        configs.override(c, field, text)
    return c


def table(c: Any) -> str:
    """What `evaluate --list` prints: the config's benchmarks, or all there are.

    Raises:
      InputError: for a benchmark or a file's key that there is not.
    """
    if not c.benchmarks:
        return tasks.table(c.root or ".")
    lines = []
    for name, row in c.benchmarks.items():
        entry = tasks.entry(row.name or name)
        files = Files(entry, row.root or c.root or ".", row.split, dict(row.files))
        lines += tasks.described(name, entry, files)
    return "\n".join(lines)


def evaluate(c: Any, checkpoint: str, workdir: str) -> None:
    """Evaluates a checkpoint; writes the folder's files and its report.

    The processes of a job ask a part of the queries each, on their own devices; the folder lies
    where all of them see it.

    Raises:
      InputError: for bad input; what was answered before is kept.
    """
    request, folder = request_of(c), pathlib.Path(workdir)
    found = benchmarks_of(c)
    for benchmark in found:
        announce(benchmark, request)
    model = use.load(checkpoint, c.dtype or None, _mesh(c))
    asked = {
        "model": {"digest": model.digest(""), "dtype": c.dtype},
        "request": request.identity(),
        "benchmarks": {b.name: {"split": b.split, "queries": len(b.queries)} for b in found},
    }
    campaign.open_folder(folder, asked)
    shard = Shard(jax.process_index(), jax.process_count())
    campaign.ask_all(model, found, request, folder, shard)
    processes.barrier("answers to all queries", LONGEST)
    if shard.index:
        return
    about = {**model.about, "dtype": c.dtype or model.config.model.dtype}
    results = conclude(found, request, folder, about)
    print(page.summary(results, folder))
    progress.say(f"report: {folder / 'report' / 'index.html'}")


def conclude(
    benchmarks: Sequence[Benchmark],
    request: campaign.Request,
    folder: pathlib.Path,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Judges the answers that are in a folder and writes its other files; the JSON of its results.

    Raises:
      InputError: if a query has no answer.
    """
    results = campaign.conclude(benchmarks, request, folder, about)
    gallery.write(benchmarks, request, folder)
    page.write(folder)
    return results


def announce(benchmark: Benchmark, request: campaign.Request) -> None:
    """Says what will be asked, and refuses early what could not be judged late."""
    settings = len(campaign.pairs(benchmark, request)) * len(request.protocol.seeds)
    asked = min(len(benchmark.queries), request.limit or len(benchmark.queries))
    left_out = f", {benchmark.left_out} left out without their clip" if benchmark.left_out else ""
    scored = "" if benchmark.is_scored else "; its references are not public"
    progress.say(
        f"{benchmark.name}: {asked} queries of {benchmark.title}, split {benchmark.split}, "
        f"{settings} settings, {len(benchmark.support)} training examples{left_out}{scored}"
    )
    judge.check_ready(benchmark)


def _mesh(c: Any) -> Mesh:
    """This process's devices, as many copies of the model as fit."""
    return sharding.make_mesh(-1, c.fsdp, c.tensor, devices=jax.local_devices())
