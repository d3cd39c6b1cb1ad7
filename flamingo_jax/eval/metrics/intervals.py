"""How sure a score is: 95 % intervals over queries, and the spread over trials.

Intervals are percentile bootstrap (Efron 1979): queries are drawn with replacement, as many as
there are, and the metric of each draw is taken; what leaves 2.5 % of the draws on either side is
the interval. Not BCa: its correction needs a jackknife of every metric and moves the ends of
intervals over a thousand queries by less than they are printed with. Corpus statistics that weigh
rather than count (CIDEr's document frequencies, RareAct's weights of a video's clips) are those of
the whole set in every draw: what is asked is how sure the mean over queries is, the measure being
given.

The queries' interval does not hold what other support examples would change: that is the spread
over trials, to be told beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics.scores import Score

ROWS = 64  # draws at a time: bounds the memory at 64 counts a query


@dataclasses.dataclass(frozen=True)
class Interval:
    """Where a score lies with probability `level`.

    Attributes:
      low, high: its ends.
      level: the probability.
      draws: of how many draws the metric had a value (a draw of one class has no AUC).
    """

    low: float
    high: float
    level: float
    draws: int


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values of several trials (other support examples, another order).

    Attributes:
      mean: of the trials.
      std: their standard deviation, n - 1 in the denominator; NaN of one trial.
      trials: how many.
    """

    mean: float
    std: float
    trials: int


def interval(score: Score, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """The percentile bootstrap interval of a score over its queries.

    Args:
      score: of any metric.
      level: probability that the interval holds.
      draws: how many sets of queries are drawn.
      seed: of the draws; the same seed and number of queries draw the same sets, so that two models
        on the same queries are compared on the same draws.

    Raises:
      InputError: for a level outside (0, 1), fewer than 2 draws, or if no draw has a value.
    """
    if not 0 < level < 1 or draws < 2:
        raise InputError(
            f"level {level} is to lie between 0 and 1, and draws {draws} to be 2 or more"
        )
    random = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, ROWS):
        rows = min(ROWS, draws - start)
        drawn = random.integers(score.queries, size=(rows, score.queries))
        offsets = np.arange(rows)[:, None] * score.queries
        counts = np.bincount((drawn + offsets).ravel(), minlength=rows * score.queries)
        found.append(score.resampled(counts.reshape(rows, score.queries)))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if not values.size:
        raise InputError("no draw of the queries has a value: give more queries of each class")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(values))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of a score over trials.

    Raises:
      InputError: without a trial.
    """
    if not len(values):
        raise InputError("the spread of no trials: give each trial's score")
    each = np.asarray(values, np.float64)
    std = float(each.std(ddof=1)) if len(each) > 1 else float("nan")
    return Spread(float(each.mean()), std, len(each))
