"""Which examples are the support and which are asked, decided by a seed.

`flamingo` (Flamingo v1, C.3): the training examples are put in an order drawn by (seed, benchmark).
The first 2,048 are the test's support. The next 2,048 and those after them are the support and the
queries of the validation, for decisions: 5,000 of COCO, 1,024 of others (`Benchmark.development`).
Classifications have 32 examples of each class instead. The test's queries are the official split.

`openflamingo`: NumPy's legacy generator is seeded, draws the queries (all, in another order, if no
number is given), then 2,048 training examples: its own choice, given the same files. It has no
validation: that of `flamingo` is taken.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from flamingo_jax.data.randomness import generator
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CHOICE, Benchmark, Example
from flamingo_jax.eval.protocol.presets import Protocol

TEST, VALIDATION = "test", "validation"
DEVELOPMENT = 1024
"""Queries of the validation of a benchmark that the paper has none of."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The examples that are used.

    Attributes:
      support: those that shots are taken from.
      queries: those that are asked.
    """

    support: tuple[Example, ...]
    queries: tuple[Example, ...]


def choose(
    benchmark: Benchmark, protocol: Protocol, split: str = TEST, seed: int = 0, limit: int = 0
) -> Chosen:
    """Picks support and queries.

    Args:
      benchmark: all examples.
      protocol: the rule, and the support's size.
      split: "test", or "validation" to make decisions by.
      seed: of the draws.
      limit: at most so many queries, drawn by the seed; 0 = all.

    Raises:
      InputError: for another split, or too few training examples for a validation.
    """
    if split not in (TEST, VALIDATION):
        raise InputError(f"there is no split {split!r} to choose; {TEST} or {VALIDATION}")
    if limit < 0:
        raise InputError(f"{limit} queries; give 0 for all of them, or how many")
    if split == TEST and protocol.split == "openflamingo":
        return _openflamingo(benchmark, protocol, seed, limit)
    order = generator("support", seed, benchmark.name).permutation(len(benchmark.support))
    test, rest = _support(benchmark, protocol, [int(place) for place in order])
    if split == TEST:
        queries = benchmark.queries
        if 0 < limit < len(queries):
            places = generator("queries", seed, benchmark.name).permutation(len(queries))[:limit]
            queries = [queries[place] for place in sorted(places.tolist())]
        return Chosen(_at(benchmark, test), tuple(queries))
    wanted = benchmark.development or DEVELOPMENT
    support, left = _support(benchmark, protocol, rest)
    queries = left[: min(wanted, limit or wanted)]
    if not queries:
        raise InputError(
            f"{benchmark.title} has {len(benchmark.support)} training examples, which leave none "
            f"to validate by after two supports of {len(test)} and {len(support)}; ask for less "
            "support, or the test split"
        )
    chosen = Chosen(_at(benchmark, support), _at(benchmark, queries))
    if benchmark.kind == CHOICE and not all(query.choices for query in chosen.queries):
        raise InputError(
            f"{benchmark.title}: its training examples have nothing to choose from; ask the test"
        )
    return chosen


def _support(
    benchmark: Benchmark, protocol: Protocol, order: list[int]
) -> tuple[list[int], list[int]]:
    """The first of an order that make up a support, and the others."""
    if not (benchmark.classes and protocol.support_per_class):
        size = protocol.support or len(order)
        return order[:size], order[size:]
    counts: collections.Counter[str] = collections.Counter()
    chosen, rest = [], []
    for place in order:
        label = benchmark.support[place].label
        counts[label] += 1
        (chosen if counts[label] <= protocol.support_per_class else rest).append(place)
    return chosen, rest


def _openflamingo(benchmark: Benchmark, protocol: Protocol, seed: int, limit: int) -> Chosen:
    drawn = np.random.RandomState(seed)
    queries, support = benchmark.queries, benchmark.support
    count = min(limit or len(queries), len(queries))
    asked = drawn.choice(len(queries), count, replace=False)
    size = min(protocol.support or len(support), len(support))
    shown = drawn.choice(len(support), size, replace=False) if size else []
    return Chosen(
        _at(benchmark, [int(place) for place in shown]),
        tuple(queries[int(place)] for place in asked),
    )


def _at(benchmark: Benchmark, places: Sequence[int]) -> tuple[Example, ...]:
    return tuple(benchmark.support[place] for place in places)
