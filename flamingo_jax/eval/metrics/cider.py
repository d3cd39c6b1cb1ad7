"""CIDEr-D (Vedantam et al. 2015, §5 and eq. 5), equal to pycocoevalcap's.

Of each length of one to four words, the cosine between tf-idf vectors of prediction and reference,
counts clipped at the reference's, times a Gaussian of the difference in length; the mean over
lengths and references, times 10. As in pycocoevalcap, a caption's length is its number of word
pairs, and document frequencies are those of the references given: a subset of queries has others,
so that a score holds for its set of queries only. With one query alone every weight is 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from flamingo_jax.eval.metrics import ngrams, ptb, scores
from flamingo_jax.eval.metrics.ngrams import LONGEST, Counts, Ngram, Tokenize
from flamingo_jax.eval.metrics.scores import Score

SIGMA = 6.0  # of the Gaussian over differences in length
SCALE = 10.0


class Vector(NamedTuple):
    """A caption's tf-idf weights by length of run, their norms, and its number of word pairs."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    pairs: int


def vector(counts: Counts, frequency: Counter[Ngram], log_queries: float) -> Vector:
    """The weights of a caption.

    Args:
      counts: of its runs of words.
      frequency: in how many queries' references each run occurs.
      log_queries: logarithm of the number of queries.
    """
    weights: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
    for run, times in counts.items():
        weights[len(run) - 1][run] = times * (log_queries - math.log(max(1, frequency[run])))
    norms = [math.sqrt(sum(weight * weight for weight in row.values())) for row in weights]
    return Vector(weights, norms, sum(times for run, times in counts.items() if len(run) == 2))


def similarity(prediction: Vector, reference: Vector) -> float:
    """Mean over lengths of run of the clipped cosine, with the penalty for another length."""
    total = 0.0
    for n in range(LONGEST):
        theirs = reference.weights[n]
        product = sum(
            min(weight, theirs[run]) * theirs[run]
            for run, weight in prediction.weights[n].items()
            if run in theirs
        )
        if norm := prediction.norms[n] * reference.norms[n]:
            product /= norm
        total += product
    longer = prediction.pairs - reference.pairs
    return total / LONGEST * math.exp(-(longer**2) / (2 * SIGMA**2))


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: Tokenize = ptb.tokenize,
) -> Score:
    """CIDEr-D, 0 to 10.

    Args:
      predictions: a caption a query.
      references: of each query.
      tokenize: text → words; `str.split` for texts that are tokenized already.

    Raises:
      InputError: for other numbers of predictions and references, or a query without a reference.
    """
    words, their_words = ngrams.tokenized(predictions, references, tokenize)
    theirs = [[ngrams.count(reference) for reference in each] for each in their_words]
    frequency = Counter(run for each in theirs for run in set().union(*each))
    log_queries = math.log(len(words))
    values = []
    for mine, each in zip(words, theirs, strict=True):
        prediction = vector(ngrams.count(mine), frequency, log_queries)
        near = [similarity(prediction, vector(one, frequency, log_queries)) for one in each]
        values.append(SCALE * sum(near) / len(near))
    return scores.mean(values)
