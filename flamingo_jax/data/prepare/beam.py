"""Preparing on many machines: the job of `prepare.job` as an Apache Beam pipeline.

    python -m flamingo_jax.data.prepare.beam --source=pairs --path=… --out=… --runner=…

An element is a shard's number. Whichever worker gets it makes the shard in the folder, or finds
that it is there, and gives its account; when all accounts are in, one worker writes the manifest.
The folder is byte for byte that of one machine, and either goes on with what the other began.
BEAM.md tells how to run it on Dataflow.

Beam itself sends functions and arguments to its workers pickled. Of ours these are `make` and
`end`, by their names, with a `Work`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import os
import pathlib
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from flamingo_jax.data import sources
from flamingo_jax.data.document import Source
from flamingo_jax.data.prepare import begun, duplicates, flags, places, writer
from flamingo_jax.data.prepare.job import Job, open_job
from flamingo_jax.data.readers import paths
from flamingo_jax.errors import EXIT_BAD_INPUT, EXIT_OK, InputError

PROGRAM = "flamingo_jax.data.prepare.beam"
_SENTENCE = re.compile(r"\bInputError: (.+?)(?: \[while running|\\n|\n|$)")
_RUNNING = re.compile(r" \[while running '[^']*'\]$")


@dataclasses.dataclass(frozen=True)
class Work:
    """What every worker is sent.

    Attributes:
      job: what is prepared.
      out: the folder, a path that all machines see or a URL.
      plan: what stands in plan.json.
      layout: how the source is cut; its folder is not used.
      index: of evaluation images, made once where the pipeline was started: 8 bytes an image.
    """

    job: Job
    out: str
    plan: dict[str, Any]
    layout: writer.Layout
    index: duplicates.Index | None


def run(job: Job, out: str, arguments: Sequence[str] = ()) -> dict[str, Any] | None:
    """Makes a folder of prepared documents on Beam's workers, or goes on with it.

    Args:
      job: what and how.
      out: the folder: a local path, or a URL of gs://, s3:// or memory://.
      arguments: Beam's options, ("--runner=DataflowRunner", …).

    Returns:
      What the manifest holds; None if the runner was only handed the pipeline, as a template.

    Raises:
      InputError: as `job.prepare` does, from workers too; if Beam is not installed.
    """
    beam = import_beam()
    if not paths.is_url(out):
        if any("dataflow" in argument.lower() for argument in arguments if "runner=" in argument):
            raise InputError(f"Dataflow's machines do not see {out!r}; give --out=gs://BUCKET/…")
        out = str(pathlib.Path(out).expanduser().absolute())
    place = places.open_place(out)
    opened = open_job(job, os.cpu_count() or 1)
    layout = writer.Layout(pathlib.Path(), len(opened.source), job.shard_size, opened.digest)
    work = Work(job, out, opened.plan, layout, opened.index)
    source_of.cache.clear()  # a notebook may have made other shards meanwhile
    try:
        options = beam.options.pipeline_options.PipelineOptions(list(arguments))
        pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError) as error:
        raise InputError(f"Beam does not start: {error}; see BEAM.md") from error
    with place.begun(opened.plan):
        try:
            with pipeline:
                connect(pipeline, work)
        except Exception as error:  # runners wrap what workers raise, each in its own way
            sentence = _sentence(error)
            if sentence is None:
                raise
            raise InputError(sentence) from error
    return place.content()


def connect(pipeline: Any, work: Work) -> Any:
    """Adds the steps to a pipeline; the last gives one None when the manifest is written."""
    beam = import_beam()
    numbers = pipeline | "number shards" >> beam.Create(range(work.layout.shards))
    # Without it a runner may fuse the steps and make all shards on the worker that numbered them.
    accounts = numbers | beam.Reshuffle() | "make shards" >> beam.Map(make, work)
    listed = accounts | "gather accounts" >> beam.combiners.ToList()
    return listed | "write manifest" >> beam.Map(end, work)


def make(number: int, work: Work) -> dict[str, Any]:
    """Makes a shard, unless it is there; its account, as far as the manifest needs it.

    Raises:
      InputError: if the source cannot be opened here or is another, or `out` cannot be written.
    """
    beam = import_beam()
    place = places.open_place(work.out)
    source = source_of(work)
    account = place.make(source, work.layout, number, work.job.options, work.index)
    for name, count in account["counts"].items():
        beam.metrics.Metrics.counter("prepare", name).inc(count)
    return {name: value for name, value in account.items() if name != "rejects"}


def end(accounts: list[dict[str, Any]], work: Work) -> None:
    """Writes the manifest of all shards.

    Raises:
      InputError: if no document was kept, or `out` cannot be written.
    """
    accounts = sorted(accounts, key=lambda account: account["name"])
    places.open_place(work.out).end(begun.make_manifest(work.plan, accounts))


class _Sources:
    """The source that this process has open: threads of a worker share it."""

    def __init__(self) -> None:
        self.cache: dict[str, Source] = {}
        self._lock = threading.Lock()

    def __call__(self, work: Work) -> Source:
        with self._lock:
            source = self.cache.get(work.layout.plan)
            if source is None:
                source = sources.open_source(work.job.source, work.job.split)
                if len(source) != work.layout.records:
                    raise InputError(
                        f"a worker finds {len(source)} records at {work.job.source.path!r}, "
                        f"not {work.layout.records}; let all machines see the same files, and run "
                        "the same command again"
                    )
                self.cache = {work.layout.plan: source}
            return source


source_of = _Sources()


@functools.cache
def import_beam() -> Any:
    """Apache Beam.

    Raises:
      InputError: if it is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise InputError(
            "preparing on many machines needs Apache Beam, which is not installed; "
            "pip install 'flamingo_jax[beam]'"
        ) from error
    return apache_beam


def _sentence(error: BaseException | None) -> str | None:
    """What an InputError of ours says that is somewhere in a runner's error."""
    text = str(error)
    while error is not None:
        if isinstance(error, InputError):
            return _RUNNING.sub("", str(error))
        error = error.__cause__ or error.__context__
    found = _SENTENCE.findall(text)
    return found[-1] if found else None


def read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of `prepare`, and what is left for Beam.

    Raises:
      InputError: for a flag that is wrong, or nearly one of these.
    """
    parser = flags.Parser(
        prog=f"python -m {PROGRAM}",
        description="Filters a dataset and stores it in shards, on the workers of Apache Beam.",
        epilog="All other flags are Beam's own: --runner, --project, --region, …; see BEAM.md.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--source", required=True, help="pairs, clips, obelics, mmc4, texts, folder, prepared, …")
    flags.add_source(parser)
    flags.add_filters(parser)
    known, rest = parser.parse_known_args(argv)
    own = [name for action in parser._actions for name in action.option_strings]
    for argument in rest:
        name = argument.partition("=")[0]
        # Beam takes any flag without a word.
        if near := difflib.get_close_matches(name, own, n=1, cutoff=0.85):
            parser.error(f"there is no flag {name}; did you mean {near[0]}?")
        if not name.startswith("-"):
            parser.error(f"{name!r} belongs to no flag; write Beam's as --NAME=VALUE")
    return known, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pipeline that `argv` (the process's own arguments when None) describes."""
    try:
        known, rest = read_flags(sys.argv[1:] if argv is None else argv)
        content = run(flags.make_job(known), known.out, rest)
    except InputError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    if content is None:
        print(f"{known.out}: the runner has the pipeline; the manifest is written when it ends")
    else:
        counts = content["counts"]
        print(
            f"{known.out}: {counts['documents']:,} documents of {counts['records']:,} records in "
            f"{len(content['shards']):,} shards"
        )
    return EXIT_OK


if __name__ == "__main__":
    # Workers find functions by the names of their modules; this one is called __main__.
    from flamingo_jax.data.prepare import beam

    sys.exit(beam.main())
