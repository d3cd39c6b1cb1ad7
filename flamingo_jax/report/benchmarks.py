"""The page of an evaluation on benchmarks: figures, prompts, and each query with its answer.

`report/index.html` of the evaluation's folder needs no network. It holds all but the pictures,
which it looks for where `queries.json` says that they lie, below the same folder.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flamingo_jax.report import benchmark_figures as figures
from flamingo_jax.report import benchmark_files as files
from flamingo_jax.report import benchmark_queries as queries
from flamingo_jax.report import tables, wording
from flamingo_jax.report.benchmark_files import Entry, Figure, Results, Setting
from flamingo_jax.report.laid import shown
from flamingo_jax.report.markup import BESIDE, Markup, data, document, join, left_out, section, tag
from flamingo_jax.report.saving import save

MOST_FILES = 100  # of submissions, that are named


def write(folder: str | pathlib.Path) -> pathlib.Path:
    """Writes `report/index.html` of an evaluation from its files, and returns its path.

    Files and forms: `benchmark_files`. Whatever but `results.json` is missing is left out.

    Raises:
      InputError: if there is no `results.json`, it is not what an evaluation writes, or the page
        cannot be written.
    """
    folder = pathlib.Path(folder)
    return save(folder / "report" / "index.html", render(folder))


def summary(results: Mapping[str, Any], folder: pathlib.Path | None = None) -> str:
    """A line for each benchmark and setting, as a terminal shows it.

    Args:
      results: the JSON of `results.json`.
      folder: of the evaluation, for the times that lie in it; without, none are told.

    Raises:
      InputError: if it is not what an evaluation writes.
    """
    head = ["benchmark", "shots", "selection", "metric", "figure", "95% over queries",
            "over trials", "queries", "time"]  # fmt: skip
    body, reasons = [], []
    times = files.seconds(folder, []) if folder is not None else {}
    for entry in files.parse(results, times).entries:
        for setting in entry.settings:
            figure = setting.figures.get(entry.metric)
            cells = [entry.name, str(setting.shots), files.selection_title(setting.selection)]
            cells += [files.figure_title(entry.metric), files.points(figure and figure.mean)]
            cells += [(figure and figure.interval) or wording.NOTHING, _over_trials(figure)]
            cells += [f"{setting.scored:,}", wording.duration(setting.seconds)]
            reasons += [f"{entry.name} is not scored: {reason}" for reason in setting.unscored]
            body.append([tables.printable(cell) for cell in cells])
    if not body:
        return "No benchmark has been evaluated."
    told = [tables.printable(reason) for reason in dict.fromkeys(reasons)]
    return "\n".join([tables.plain(head, body).rstrip("\n"), *told])


def _over_trials(figure: Figure | None) -> str:
    if figure is None or not figure.spread:
        return wording.NOTHING
    return f"{figure.spread} ({wording.plural(figure.trials, 'trial')})"


def render(folder: pathlib.Path) -> Markup:
    """The whole document.

    Raises:
      InputError: if there is no `results.json`, or it is not what an evaluation writes.
    """
    problems: list[str] = []
    results = files.read(folder, problems)
    asked = queries.collect(folder, results.entries, problems)
    parts = [("overview", "All benchmarks", figures.overview(results))]
    parts += [
        (f"benchmark-{entry.name}", shown(entry.title), _benchmark(entry, results, asked))
        for entry in results.entries
    ]
    if submitted := _submissions(folder):
        parts.append(("submissions", "Files for EvalAI", submitted))
    return document(
        f"{shown(results.name)}: benchmarks",
        _header(results, (folder / files.RESULTS).stat().st_mtime),
        tag("div", tag("ul", [tag("li", shown(line, 400)) for line in problems]), class_="problems")
        if problems
        else None,
        tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in parts]),
        [section(key, title, body) for key, title, body in parts],
        styles=("report.css", "benchmarks.css"),
        scripts=("report.js", "benchmarks.js"),
        pictures=BESIDE,
    )


def _header(results: Results, written: float) -> Markup:
    """Whom, how, which queries, when."""
    limit, seeds = results.request.get("limit"), results.protocol.get("seeds")
    told = {
        **results.model,
        "protocol": results.protocol.get("name"),
        "seeds": ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds,
        "queries": f"{results.request.get('split', 'test')}, "
        + (f"at most {limit:,} a benchmark" if limit else "all of them"),
        "written": wording.moment(written),
    }
    return tag(
        "header",
        tag("p", "flamingo_jax benchmarks", class_="kicker"),
        tag("h1", shown(results.name)),
        tag(
            "dl",
            [
                tag("div", tag("dt", shown(str(name))), tag("dd", shown(str(value), 300)))
                for name, value in told.items()
                if value not in (None, "") and not isinstance(value, dict | list)
            ],
            class_="facts",
        ),
        _folded("The protocol, whole", [tag("pre", _json(results.protocol))]),
    )


def _json(value: Any) -> str:
    return shown(json.dumps(value, indent=1, ensure_ascii=False), 20_000)


def _folded(title: str, body: list[Markup], open_: bool = False) -> Markup:
    return tag("details", tag("summary", title), body, open=open_)


def _benchmark(entry: Entry, results: Results, asked: Mapping[str, Any]) -> Markup:
    """All of one benchmark."""
    told = [
        f"split {entry.split}",
        f"{entry.queries:,} {'query' if entry.queries == 1 else 'queries'}",
        f"support of {entry.support:,}",
    ]
    notes = figures.notes(entry, results.request)
    return join(
        tag("p", ", ".join(told), class_="note"),
        tag("div", [tag("p", note) for note in notes], class_="problems") if notes else None,
        figures.by_shots(entry, results.name),
        figures.curve(entry, results.name),
        _folded("All figures", [figures.every_figure(entry)]),
        _folded("The first prompts, exactly", [_prompts(one) for one in entry.settings]),
        _folded("Files that were read", [tag("pre", shown("\n".join(entry.files), 4_000))])
        if entry.files
        else None,
        _queries(entry, asked.get(entry.name)),
    )


def _prompts(setting: Setting) -> Markup:
    """A setting's first prompts, as the model got them."""
    if not setting.prompts:
        return left_out(f"{setting.name}: no prompt was kept.")
    told = []
    for prompt in setting.prompts:
        shots = f"; shots {', '.join(prompt.shots)}" if prompt.shots else ""
        told.append(tag("p", shown(f"Query {prompt.key}{shots}", 1_000), class_="note"))
        told.append(tag("pre", shown(prompt.text, 20_000), class_="prompt"))
        if prompt.choices:
            choices = "\n".join(prompt.choices)
            told.append(tag("p", "The first choices, each after the prompt:", class_="note"))
            told.append(tag("pre", shown(choices, 4_000), class_="prompt"))
    return _folded(setting.name, told)


def _queries(entry: Entry, found: Mapping[str, Any] | None) -> Markup:
    """What the page's script fills with queries and classes."""
    title = tag("h3", "Queries")
    if found is None:
        return join(title, left_out("No queries: predictions.jsonl answers none that is known."))
    few = found["answered"] > found["kept"]
    of = f"The first {found['kept']:,} of {found['answered']:,} queries are here; " if few else ""
    note = of + "predictions.jsonl holds every answer, scores.jsonl its score."
    return tag(
        "div",
        title,
        tag("div", class_="query-controls controls"),
        tag("div", class_="confusion"),
        tag("p", "The page's script draws the queries.", class_="query-count left-out"),
        tag("div", class_="query-cards"),
        tag("p", note, class_="note"),
        data(found, class_="query-data"),
        class_="queries",
        aria_label=f"Queries of {shown(entry.title)}",
    )


def _submissions(folder: pathlib.Path) -> Markup | None:
    """The files that can be sent to EvalAI, where there are any."""
    names = sorted(path.name for path in folder.glob("submissions/*") if path.is_file())
    if not names:
        return None
    more = (
        f" The first {MOST_FILES} of {len(names):,} are named." if len(names) > MOST_FILES else ""
    )
    return join(
        tag("p", f"In the folder submissions.{more}", class_="note"),
        tag("ul", [tag("li", tag("code", shown(name))) for name in names[:MOST_FILES]]),
    )
