"""Area under the ROC curve (HatefulMemes, Kiela et al. 2020), by ranks.

The share of (positive, negative) pairs in which the positive has the higher score, a tie counting
half: Mann and Whitney's U over the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score


def score(predictions: Sequence[float], references: Sequence[int]) -> Score:
    """ROC AUC, 0 to 1.

    Args:
      predictions: how sure each query's positive answer is, on any scale.
      references: 1 where it is right, else 0.

    Raises:
      InputError: for other numbers of predictions and references, labels but 0 and 1, or one class.
    """
    scores.check_paired(predictions, references)
    mine = scores.matrix([list(predictions)], "scores")[0]
    labels = np.asarray(references)
    if not np.isin(labels, (0, 1)).all():
        raise InputError("labels of an ROC curve are 0 or 1")
    if labels.min() == labels.max():
        raise InputError(f"all labels are {labels[0]}: an ROC curve needs queries of both classes")
    _, level = np.unique(mine, return_inverse=True)  # of each query, among scores that differ
    order = np.argsort(level, kind="stable")
    first = np.flatnonzero(np.diff(level[order], prepend=-1))

    def resampled(counts: np.ndarray) -> np.ndarray:
        """i64[R, n] → f64[R]."""
        here = counts[:, order].astype(np.float64)
        positive = np.add.reduceat(here * labels[order], first, axis=1)  # f64[R, levels]
        negative = np.add.reduceat(here * (1 - labels[order]), first, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (positive * (below + negative / 2)).sum(axis=1) / pairs

    whole = resampled(np.ones((1, len(mine)), np.int64))
    return Score(float(whole[0]), len(mine), np.empty(0), resampled)
