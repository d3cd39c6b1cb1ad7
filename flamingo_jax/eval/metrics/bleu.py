"""BLEU-1 to BLEU-4 (Papineni et al. 2002), equal to pycocoevalcap's.

Counts of all queries are pooled, the reference nearest in length counts for the brevity penalty (of
two as near, the shorter), and small numbers keep quotients defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.eval.metrics import ngrams, ptb
from flamingo_jax.eval.metrics.ngrams import LONGEST, Tokenize
from flamingo_jax.eval.metrics.scores import Score

SMALL, TINY = 1e-9, 1e-15


def statistics(words: list[str], references: list[list[str]]) -> list[int]:
    """Of one query: words, the nearest reference's, runs of 1 to 4 that match, and all of them."""
    most = ngrams.count(references[0])
    for reference in references[1:]:
        most |= ngrams.count(reference)
    matches = [0] * LONGEST
    for run, times in ngrams.count(words).items():
        matches[len(run) - 1] += min(times, most[run])
    nearest = min((abs(len(each) - len(words)), len(each)) for each in references)[1]
    runs = [max(0, len(words) - n) for n in range(LONGEST)]
    return [len(words), nearest, *matches, *runs]


def bleu(pooled: np.ndarray) -> np.ndarray:
    """f64[…, 2 + 2 × 4] sums of `statistics` → f64[…, 4] BLEU-1 to BLEU-4."""
    length, nearest = pooled[..., 0], pooled[..., 1]
    matches, runs = pooled[..., 2 : 2 + LONGEST], pooled[..., 2 + LONGEST :]
    precision = (matches + TINY) / (runs + SMALL)
    means = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (length + TINY) / (nearest + SMALL)
    with np.errstate(over="ignore"):
        penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    return means * penalty[..., None]


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: Tokenize = ptb.tokenize,
) -> tuple[Score, ...]:
    """BLEU-1, BLEU-2, BLEU-3 and BLEU-4, 0 to 1 each.

    Args:
      predictions: a caption a query.
      references: of each query.
      tokenize: text → words; `str.split` for texts that are tokenized already.

    Raises:
      InputError: for other numbers of predictions and references, or a query without a reference.
    """
    words, theirs = ngrams.tokenized(predictions, references, tokenize)
    table = np.array([statistics(*pair) for pair in zip(words, theirs, strict=True)], np.float64)
    whole, each = bleu(table.sum(axis=0)), bleu(table)

    def one(n: int) -> Score:
        return Score(
            float(whole[n]), len(words), each[:, n], lambda counts: bleu(counts @ table)[:, n]
        )

    return tuple(one(n) for n in range(LONGEST))
