"""Asks a model a benchmark's queries under one setting, some at a time, from where it stopped.

Queries are asked in blocks of the same queries whatever came before: a block whose answers are not
all there is asked again as a whole, so that answers do not depend on where a run was killed.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

import numpy as np

from flamingo_jax.eval import rices
from flamingo_jax.eval.examples import CHOICE, Benchmark, Example
from flamingo_jax.eval.predictions import Prediction, Predictions, Setting
from flamingo_jax.eval.protocol import splits
from flamingo_jax.eval.protocol.presets import SHARED, Protocol
from flamingo_jax.eval.protocol.prompts import Asker, Prompt

BLOCKS = 4
"""Batches of a block: prompts of like length can stand together."""


class Model(rices.Encoder, Interface):
    """What is asked: `use.LoadedFlamingo`, or anything that can do as much."""

    def generate(
        self,
        prompts: Sequence[Sequence[Any]],
        max_new_tokens: int = 32,
        *,
        beams: int = 1,
        length_penalty: float = 0.0,
        stop: Sequence[str] = (),
        batch: int | None = None,
        shared: Sequence[Any] = (),
    ) -> list[str]:
        """The text after each prompt."""
        ...

    def score(
        self,
        prompts: Sequence[Sequence[Any]],
        choices: Sequence[Sequence[str]],
        *,
        reduce: str = "sum",
        closing: bool | None = None,
        batch: int | None = None,
        shared: Sequence[Any] = (),
    ) -> np.ndarray:
        """f32[prompts, choices], log-likelihoods; -inf where a prompt has fewer choices."""
        ...


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which blocks are this process's: every `count`th from `index` on."""

    index: int = 0
    count: int = 1


ALL = Shard()


class Trial:
    """A benchmark under a protocol, with the examples that one seed chooses."""

    def __init__(
        self,
        benchmark: Benchmark,
        protocol: Protocol,
        trial: int,
        split: str = splits.TEST,
        limit: int = 0,
    ):
        """Chooses support and queries.

        Args:
          benchmark: all examples.
          protocol: how they are asked.
          trial: its number; the protocol has a seed for each.
          split: see `splits.choose`.
          limit: at most so many queries; 0 = all.
        """
        seed = protocol.seeds[trial]
        self.benchmark, self.protocol, self.number = benchmark, protocol, trial
        self.chosen = splits.choose(benchmark, protocol, split, seed, limit)
        self.asker = Asker(protocol, benchmark, self.chosen, seed, trial)

    def setting(self, shots: int, selection: str) -> Setting:
        """The setting's name; without shots nothing is selected."""
        return Setting(
            self.benchmark.name, shots, selection if shots else rices.RANDOM, self.number
        )

    def neighbours(self, finder: rices.Finder, setting: Setting) -> np.ndarray | None:
        """i32[queries, …], places in the support, the most similar first; None for random shots."""
        if setting.selection == rices.RANDOM:
            return None
        queries, support = self.chosen.queries, self.chosen.support
        # The query itself and all examples of its medium may be the nearest, and are not shown.
        media = collections.Counter(example.medium for example in support)
        del media[None]
        spare = 1 + max(media.values(), default=0)
        return finder.neighbours(setting.selection, queries, support, setting.shots + spare)

    def blocks(self, shard: Shard, batch: int) -> list[range]:
        """The places of the queries that are asked together, of a process's part."""
        size, total = BLOCKS * batch, len(self.chosen.queries)
        starts = range(0, total, size)[shard.index :: shard.count]
        return [range(start, min(start + size, total)) for start in starts]

    def prompts(self, query: int, shots: int, neighbours: np.ndarray | None = None) -> list[Prompt]:
        """The prompts of the query of that number."""
        near = None if neighbours is None else neighbours[query].tolist()
        return self.asker.prompts(self.chosen.queries[query], shots, near)


class Asking:
    """A model, asked a trial's queries under a setting."""

    def __init__(
        self,
        model: Model,
        trial: Trial,
        setting: Setting,
        predictions: Predictions,
        finder: rices.Finder,
        batch: int = 32,
    ):
        """Asks nothing yet.

        Args:
          model: what is asked.
          trial: the queries and their support.
          setting: of `trial.setting`.
          predictions: where answers are kept.
          finder: of neighbours, where the setting wants them.
          batch: sequences run at once.
        """
        self._model, self._trial, self._setting = model, trial, setting
        self._predictions, self._finder, self._batch = predictions, finder, batch

    @functools.cached_property
    def _neighbours(self) -> np.ndarray | None:
        return self._trial.neighbours(self._finder, self._setting)

    def block(self, places: Sequence[int], keep_prefix: bool = True) -> None:
        """Asks the queries of these places unless all of them are answered.

        Args:
          places: of `Trial.blocks`.
          keep_prefix: shots that all queries share (`Protocol.sharing`) are read once; else with
            each.

        Raises:
          InputError: for media that cannot be read, or too few shots.
        """
        trial, setting = self._trial, self._setting
        queries = [trial.chosen.queries[place] for place in places]
        known = self._predictions.of(setting)
        if all(query.key in known for query in queries):
            return
        near = self._neighbours
        shares = keep_prefix and trial.protocol.sharing == SHARED and near is None
        prompts = [trial.prompts(place, setting.shots, near) for place in places]
        answer = _choose if trial.benchmark.kind == CHOICE else _write
        found = answer(self._model, trial, queries, prompts, self._batch, shares)
        self._predictions.add(setting, found)


def _write(
    model: Model,
    trial: Trial,
    queries: Sequence[Example],
    prompts: Sequence[Sequence[Prompt]],
    batch: int,
    shares: bool,
) -> Iterator[Prediction]:
    protocol, benchmark = trial.protocol, trial.benchmark
    clean = protocol.cleaner(benchmark).clean
    how: Mapping[str, Any] = dataclasses.asdict(protocol.generation(benchmark))
    firsts = [own[0] for own in prompts]
    shared, parts = _parted(firsts, shares)
    texts = model.generate(parts, batch=batch, shared=shared, **how)
    for query, prompt, text in zip(queries, firsts, texts, strict=True):
        yield Prediction(query.key, clean(text), text, shots=prompt.shots)


def _choose(
    model: Model,
    trial: Trial,
    queries: Sequence[Example],
    prompts: Sequence[Sequence[Prompt]],
    batch: int,
    shares: bool,
) -> Iterator[Prediction]:
    protocol = trial.protocol
    totals: np.ndarray | None = None
    orders = max(len(own) for own in prompts)
    for order in range(orders):
        ordered = [own[order % len(own)] for own in prompts]
        shared, parts = _parted(ordered, shares)
        found = model.score(
            parts,
            [prompt.choices for prompt in ordered],
            reduce=protocol.reduce,
            closing=protocol.closing,
            batch=batch,
            shared=shared,
        )
        totals = found if totals is None else totals + found
    assert totals is not None
    for query, own, row in zip(queries, prompts, totals / orders, strict=True):
        scores = tuple(float(score) for score in row[: len(query.choices)])
        likeliest = query.choices[int(np.argmax(scores))]
        yield Prediction(query.key, likeliest, scores=scores, shots=own[0].shots)


def _parted(prompts: Sequence[Prompt], shares: bool) -> tuple[Sequence[Any], list[list[Any]]]:
    """(what all share, the rest of each)."""
    if not shares or len({prompt.shots for prompt in prompts}) > 1:
        return (), [prompt.parts for prompt in prompts]
    return prompts[0].support, [list(prompt.own) for prompt in prompts]
