"""NDCG of VisDial's candidate answers, equal to the challenge's starter program.

Das et al. 2017; the measure is of the 2018 challenge: DCG over as many of the best ranked
candidates as people found at all relevant, discounted by log2(rank + 1), over the DCG of the best
order.
"""

from __future__ import annotations

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score, Table


def score(predictions: Table, references: Table) -> Score:
    """NDCG, 0 to 1. Of candidates with the same score the first is ahead.

    Args:
      predictions: score of each candidate of a dialogue's turn (100 in VisDial).
      references: relevance of each, the share of people who found it right.

    Raises:
      InputError: for tables of another shape, or a turn of which no candidate is relevant.
    """
    scores.check_paired(predictions, references)
    mine, relevance = scores.matrix(predictions, "scores"), scores.matrix(references, "relevances")
    if mine.shape != relevance.shape:
        raise InputError(
            f"scores have shape {mine.shape}, relevances {relevance.shape}: as many of both"
        )
    relevant = (relevance != 0).sum(axis=1)
    if not relevant.all():
        turn = int(np.argmin(relevant))
        raise InputError(f"no candidate of turn {turn} is relevant: leave the turn out")
    counted = np.arange(mine.shape[1]) < relevant[:, None]
    discount = np.where(counted, 1 / np.log2(np.arange(mine.shape[1]) + 2), 0)
    order = np.argsort(-mine, axis=1, kind="stable")
    gained = (np.take_along_axis(relevance, order, axis=1) * discount).sum(axis=1)
    best = (-np.sort(-relevance, axis=1) * discount).sum(axis=1)
    return scores.mean(gained / best)
