"""A metric's value over a set of queries, and what it would be over others drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamingo_jax.errors import InputError

Table = Sequence[Sequence[float]] | np.ndarray  # numbers of queries × options


@dataclasses.dataclass(frozen=True)
class Score:
    """What a metric says of a set of predictions.

    Attributes:
      value: the metric, of all queries.
      queries: how many.
      values: f64[queries] of each query, empty where one query alone has none (AUC, mWAP). Their
        mean is `value` unless the metric pools queries (BLEU).
      resampled: counts i64[R, queries], how often each query was drawn, → f64[R] the metric of
        those draws; NaN where a draw has none.
    """

    value: float
    queries: int
    values: np.ndarray
    resampled: Callable[[np.ndarray], np.ndarray]


def mean(values: Sequence[float] | np.ndarray) -> Score:
    """The score of a metric that is a mean over queries.

    Raises:
      InputError: without any query.
    """
    each = np.asarray(values, np.float64)
    if not each.size:
        raise InputError("a metric of no queries: give at least one prediction")
    return Score(float(each.mean()), len(each), each, lambda n: n @ each / n.sum(axis=1))


def check_paired(
    predictions: Sequence[Any] | np.ndarray, references: Sequence[Any] | np.ndarray
) -> None:
    """Raises unless there are as many predictions as references, and any.

    Raises:
      InputError: if not.
    """
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions but references for {len(references)} queries: give one"
            " prediction a query, in the same order"
        )
    if not len(predictions):
        raise InputError("a metric of no queries: give at least one prediction")


def check_referenced(references: Sequence[Sequence[Any]]) -> None:
    """Raises if a query has no reference, or a text where a list of texts belongs.

    Raises:
      InputError: naming the query.
    """
    for query, given in enumerate(references):
        if isinstance(given, str):
            raise InputError(f"the references of query {query} are a text: give a list of texts")
        if not len(given):
            raise InputError(
                f"query {query} has no reference: leave it out, or give its references"
            )


def matrix(values: Table, what: str) -> np.ndarray:
    """Numbers of queries × options, checked: f64[queries, options].

    Raises:
      InputError: for another shape, no query, no option, or a number that is not finite.
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not a table of numbers, one row a query: {error}") from error
    if array.ndim != 2 or not array.size:
        raise InputError(
            f"{what} have shape {array.shape}: give [queries, options], none of them 0"
        )
    if not np.isfinite(array).all():
        query = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise InputError(f"{what} of query {query} are not all finite: mend the model's scores")
    return array
