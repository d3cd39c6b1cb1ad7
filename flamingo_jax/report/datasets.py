"""The page of a mixture of datasets: what each holds, and rows as the model gets them.

It takes rows and statistics as they were measured (see `flamingo_jax.samples`) and reads nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flamingo_jax.report import charts, histograms, laid, wording
from flamingo_jax.report.laid import LaidRow, shown
from flamingo_jax.report.markup import Markup, document, join, section, table, tag


@dataclasses.dataclass(frozen=True)
class Drop:
    """A reason why records are not used.

    Attributes:
      reason: the category.
      count: how many of those measured.
      by_rule: were they left out by a rule of the dataset's, sound as they are?
      example: one of them, and what exactly.
    """

    reason: str
    count: int
    by_rule: bool = False
    example: str = ""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What was measured over the first documents of a dataset's order.

    Attributes:
      documents: how many were read.
      whole: tokens of each used one before a window is cut out.
      used: tokens of each one's row.
      held: media of each used document.
      media: media of each one's row.
      sizes: (width, height) of the used documents' media as they are stored.
      drops: why the others are not used.
    """

    documents: int
    whole: Sequence[int] = ()
    used: Sequence[int] = ()
    held: Sequence[int] = ()
    media: Sequence[int] = ()
    sizes: Sequence[tuple[int, int]] = ()
    drops: Sequence[Drop] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset of a mixture.

    Attributes:
      name: its name.
      source: the name of its source.
      path: what the source reads; "" where it makes its documents itself.
      documents: how many there are.
      layout: page, pair, clip, text or contrastive.
      batch: rows a step.
      length: T, tokens of a row.
      images: M, at most so many media a row.
      frames: F, frames of a medium.
      weight: λ.
      statistics: what was measured.
      rows: the first rows of training.
      facts: further settings, {name: value}.
      problem: why there are no more rows.
    """

    name: str
    source: str
    path: str
    documents: int
    layout: str
    batch: int
    length: int
    images: int
    frames: int
    weight: float
    statistics: Statistics
    rows: Sequence[LaidRow] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def tokens_a_step(self) -> float:
        """Tokens of a step that are not padding, as far as measured."""
        return self.batch * _mean(self.statistics.used)

    @property
    def media_a_step(self) -> float:
        """Media of a step, as far as measured."""
        return self.batch * _mean(self.statistics.media)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The datasets of a stage.

    Attributes:
      name: the experiment's.
      stage: which stage's they are; "" for datasets outside of one.
      steps: of the stage; 0 where there is none.
      datasets: in the order of the config.
      facts: what they share, {name: value}.
      attribution: lines that licences ask to be shown.
      upto: does a token attend to all media up to its own, rather than to its own alone?
    """

    name: str
    datasets: Sequence[Dataset]
    stage: str = ""
    steps: int = 0
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attribution: Sequence[str] = ()
    upto: bool = False


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def render(mixture: Mixture) -> Markup:
    """The whole document; it needs nothing else."""
    stage = tag("span", f"stage {shown(mixture.stage)}", class_="state") if mixture.stage else None
    head = tag(
        "header",
        tag("p", "flamingo_jax datasets", class_="kicker"),
        tag("h1", shown(mixture.name), " ", stage),
        _facts(mixture.facts),
    )
    parts = [("mixture", "Mixture", [_overview(mixture)])]
    parts += [
        (f"dataset-{place}", shown(dataset.name), _dataset(dataset, mixture))
        for place, dataset in enumerate(mixture.datasets)
    ]
    return document(
        f"{shown(mixture.name)}: datasets",
        head,
        tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in parts]),
        [section(key, title, body) for key, title, body in parts],
        tag("footer", [tag("p", shown(line, 1000)) for line in mixture.attribution]),
        styles=("report.css", "datasets.css"),
    )


def _facts(facts: Mapping[str, str]) -> Markup:
    told = [
        tag("div", tag("dt", shown(name)), tag("dd", shown(value))) for name, value in facts.items()
    ]
    return tag("dl", told, class_="facts")


def _overview(mixture: Mixture) -> Markup:
    """A line for each dataset, and their sum."""
    tokens = sum(dataset.tokens_a_step for dataset in mixture.datasets)
    media = sum(dataset.media_a_step for dataset in mixture.datasets)
    rows = [_overview_row(dataset, mixture.steps, tokens, media) for dataset in mixture.datasets]
    batch = sum(dataset.batch for dataset in mixture.datasets)
    head = ["dataset", "source", "documents", "passes", "B", "T", "M", "F", "λ",
            "tokens a step", "images a step"]  # fmt: skip
    if len(rows) > 1:
        sums = (f"{value:,.0f}" for value in (tokens, media))
        rows.append(["together", "", "", "", f"{batch:,}", "", "", "", "", *sums])
    note = (
        "B rows of T tokens a step, at most M media a row, F frames each; the dataset's loss times "
        "λ. Passes: how often the stage sees each document. Tokens (without padding; the share of "
        "all places that they fill) and images or clips a step: as far as measured below, with "
        "the share of the mixture."
    )
    return join(
        table(head, rows, class_="numbers mixture", foot=int(len(rows) > len(mixture.datasets))),
        tag("p", note, class_="note"),
    )


def _overview_row(dataset: Dataset, steps: int, tokens: float, media: float) -> list:
    passes = steps * dataset.batch / dataset.documents if steps and dataset.documents else None
    places = dataset.batch * dataset.length
    filled = f"{dataset.tokens_a_step / places:.0%} filled"
    source = join(
        shown(dataset.source),
        tag("span", shown(dataset.path, 400), class_="path") if dataset.path else None,
    )
    return [
        tag("b", shown(dataset.name)),
        source,
        f"{dataset.documents:,}",
        wording.number(passes),
        f"{dataset.batch:,}",
        f"{dataset.length:,}",
        f"{dataset.images:,}",
        f"{dataset.frames:,}",
        f"{dataset.weight:g}",
        _part(dataset.tokens_a_step, tokens, filled),
        _part(dataset.media_a_step, media) if media else wording.NOTHING,
    ]


def _part(value: float, total: float, more: str = "") -> Markup:
    """A figure, its share of the whole, and a bar of that."""
    share = value / total if total else 0.0
    told = [f"{share:.0%}", more] if more else [f"{share:.0%}"]
    return tag(
        "div",
        tag("span", f"{value:,.0f} ", tag("span", ", ".join(told), class_="unit")),
        charts.bar(share, None, None, 1.0),
        class_="part",
    )


def _dataset(dataset: Dataset, mixture: Mixture) -> list[Markup | None]:
    """Its settings, histograms, drops and rows."""
    upto = "With attend = upto a token sees the images before its own, too."
    return [
        _facts({"source": dataset.source, "layout": dataset.layout, **dataset.facts}),
        _histograms(dataset),
        drops(dataset.statistics),
        tag("h3", "The first rows of training"),
        laid.key() if dataset.images and dataset.layout != "contrastive" else _plain_key(),
        tag("p", upto, class_="note") if mixture.upto else None,
        tag("p", shown(dataset.problem, 600), class_="problems") if dataset.problem else None,
        tag(
            "div",
            [laid.card(dataset.name, row) for row in dataset.rows],
            class_="rows small"
            if dataset.layout != "page" and laid.small(dataset.rows)
            else "rows",
        ),
    ]


def _plain_key() -> Markup:
    return tag(
        "p",
        tag("span", "underlined", class_="token target"),
        " tokens are targets of the loss, or what the text encoder reads.",
        class_="note",
    )


def _histograms(dataset: Dataset) -> Markup:
    found = dataset.statistics
    longer = sum(length > dataset.length for length in found.whole)
    note = f"{longer:,} of {wording.plural(len(found.whole), 'document')} are cut to T."
    drawn = [
        histograms.histogram(
            "Tokens of a document",
            {"documents": found.whole},
            x_name="tokens, before a window is cut",
            guide=(dataset.length, f"T = {dataset.length:,}"),
            note=note,
        )
    ]
    if dataset.images:
        more = sum(count > dataset.images for count in found.held)
        blind = sum(count == 0 for count in found.media)
        told = f"{wording.plural(more, 'document')} with more than M. "
        if blind:
            told += f"{blind:,} of {wording.plural(len(found.media), 'row')} show no image."
        drawn.append(
            histograms.histogram(
                "Images of a document",
                {"documents": found.held},
                x_name="images or clips of a document",
                guide=(dataset.images, f"M = {dataset.images:,}"),
                note=told,
            )
        )
        widths, heights = [w for w, _ in found.sizes], [h for _, h in found.sizes]
        drawn.append(
            histograms.histogram(
                "Sizes of pictures",
                {"width": widths, "height": heights},
                x_name="pixels, as stored",
                y_name="pictures",
                note=_extremes(found.sizes),
            )
        )
    return tag("div", drawn, class_="charts histograms")


def _extremes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    small = min(sizes, key=lambda size: size[0] * size[1])
    large = max(sizes, key=lambda size: size[0] * size[1])
    return f"Smallest {small[0]:,}×{small[1]:,}, largest {large[0]:,}×{large[1]:,}."


def drops(found: Statistics) -> Markup:
    """How many documents are used, and why the others are not."""
    dropped = sum(drop.count for drop in found.drops)
    head = f"{found.documents - dropped:,} of the first {found.documents:,} documents are used"
    title = tag("h3", "Drops ", tag("span", head if dropped else f"none: {head}", class_="unit"))
    if not found.drops:
        return title
    rows = [
        [
            shown(drop.reason),
            tag("span", "a rule" if drop.by_rule else "a fault", class_="tag"),
            f"{drop.count:,}",
            tag(
                "div",
                tag("span", f"{drop.count / found.documents:.1%}"),
                charts.bar(drop.count / found.documents, None, None, 1.0),
                class_="part",
            ),
            tag("bdi", shown(drop.example, 300), class_="key"),
        ]
        for drop in sorted(found.drops, key=lambda drop: (-drop.count, drop.reason))
    ]
    return join(title, table(["reason", "by", "count", "share", "for example"], rows, "drops"))
