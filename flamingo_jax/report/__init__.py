"""The report of a run, and of several over each other, made from a workdir's files alone.

No model code: an unfinished run, or one from another machine, is reported as far as its files go.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from flamingo_jax.errors import InputError
from flamingo_jax.report import comparing, costs, heading, page, reading, tables, wording
from flamingo_jax.report import datasets as mixtures
from flamingo_jax.report.saving import save
from flamingo_jax.report.tables import table

__all__ = ["compare", "summary", "table", "write", "write_datasets"]

Workdir = str | pathlib.Path


def write(workdir: Workdir) -> pathlib.Path:
    """Writes `report/index.html` of a run, one file that needs nothing else, and returns its path.

    Raises:
      InputError: if the folder is missing, holds no run, or cannot be written to.
    """
    run = reading.read(workdir)
    return save(run.workdir / "report" / "index.html", page.render(run))


def compare(workdirs: Sequence[Workdir], out: Workdir | None = None) -> pathlib.Path:
    """Lays runs over each other; writes `report/compare.html` of the first, or `out`.

    Raises:
      InputError: if fewer than two are given, one is given twice, one holds no run, or the page
        cannot be written.
    """
    runs = tables.read_all(workdirs)
    if len(runs) < 2:
        raise InputError(f"{str(workdirs[0])!r} alone cannot be compared; give two runs or more")
    path = pathlib.Path(out) if out is not None else runs[0].workdir / "report" / "compare.html"
    return save(path, comparing.render(runs))


def write_datasets(mixture: mixtures.Mixture, out: Workdir) -> pathlib.Path:
    """Writes `index.html` in the folder `out`: a mixture's datasets, in one file; returns its path.

    Raises:
      InputError: if it cannot be written.
    """
    return save(pathlib.Path(out) / "index.html", mixtures.render(mixture))


def summary(workdir: Workdir) -> None:
    """Prints a run's checks, its alarms, where its report is, and where its time went.

    The report is written if there is none yet.

    Raises:
      InputError: if the folder is missing or holds no run.
    """
    run = reading.read(workdir)
    path = run.workdir / "report" / "index.html"
    print(table([workdir]), end="")
    for line in heading.alarm_lines(run):
        print(tables.printable(f"ALARM    {line}"))
    print(f"report   {path if path.is_file() else write(workdir)}")
    print(f"timings  {timings(run)}")


def timings(run: reading.Run) -> str:
    """One line: seconds of each stage and of evaluation, their sum, and peak memory."""
    seconds = costs.stage_seconds(run)
    told = [f"{name} {wording.duration(value)}" for name, value in seconds.items()]
    told.append(f"together {wording.duration(sum(seconds.values()))}")
    if costs.memory(run) is not None:
        told.append(f"peak memory {wording.gigabytes(costs.memory(run))}")
    return " \u00b7 ".join(told)
