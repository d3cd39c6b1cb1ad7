"""ROUGE-L (Lin 2004), equal to pycocoevalcap's: β = 1.2, best precision and best recall apart."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.eval.metrics import ngrams, ptb, scores
from flamingo_jax.eval.metrics.ngrams import Tokenize
from flamingo_jax.eval.metrics.scores import Score

BETA = 1.2


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for at, other in enumerate(second):
            row.append(before[at] + 1 if word == other else max(before[at + 1], row[at]))
    return row[-1]


def rouge(words: list[str], references: list[list[str]]) -> float:
    """ROUGE-L of one caption."""
    words = words or [""]  # as pycocoevalcap splits an empty text
    theirs = [each or [""] for each in references]
    shared = [common(each, words) for each in theirs]
    precision = max(shared) / len(words)
    recall = max(n / len(each) for n, each in zip(shared, theirs, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: Tokenize = ptb.tokenize,
) -> Score:
    """ROUGE-L, 0 to 1.

    Args:
      predictions: a caption a query.
      references: of each query.
      tokenize: text → words; `str.split` for texts that are tokenized already.

    Raises:
      InputError: for other numbers of predictions and references, or a query without a reference.
    """
    words, theirs = ngrams.tokenized(predictions, references, tokenize)
    return scores.mean([rouge(*pair) for pair in zip(words, theirs, strict=True)])
