"""Accuracies of answers that are right or wrong, and of classes and choices that are ranked.

- `exact`: MSVDQA and MSRVTTQA (Xu et al. 2017): the answer is the reference's text. The papers
  choose among a vocabulary; for texts that are generated, both sides go through `plain` first.
- `ivqa`: iVQA (Yang et al. 2021, §4.3 and its program): five people each, right as far as two of
  them gave the answer: min(those who did / 2, 1).
- `top`: classes or choices by score: ImageNet top-1, STAR and NExT-QA's multiple choice.
- `kinetics`: mean of top-1 and top-5, as Flamingo tells Kinetics-700 (v1, table 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score, Table


def plain(answer: str) -> str:
    """An answer in small letters, blanks made single, without a full stop at its end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


def exact(predictions: Sequence[str], references: Sequence[str]) -> Score:
    """Share of answers that are the reference's, 0 to 1.

    Raises:
      InputError: for other numbers of predictions and references.
    """
    scores.check_paired(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return scores.mean([float(plain(mine) == plain(theirs)) for mine, theirs in pairs])


def ivqa(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """iVQA accuracy, 0 to 1.

    Args:
      predictions: an answer a question.
      references: the (five) people's answers to each.

    Raises:
      InputError: for other numbers of predictions and references, or a question without answers.
    """
    scores.check_paired(predictions, references)
    scores.check_referenced(references)
    values = []
    for mine, theirs in zip(predictions, references, strict=True):
        values.append(min(1.0, [plain(each) for each in theirs].count(plain(mine)) / 2))
    return scores.mean(values)


def top(predictions: Table, references: Sequence[int], k: int = 1) -> Score:
    """Share of queries whose right option is among the k best, 0 to 1.

    Of options with the same score the first is ahead, so that scores that are all the same are no
    right answer to everything.

    Args:
      predictions: scores of each query's options, which may be of another number in each.
      references: index of the right option.
      k: how many.

    Raises:
      InputError: for other numbers of predictions and references, an index out of range, k < 1, or
        scores that are not finite.
    """
    scores.check_paired(predictions, references)
    if k < 1:
        raise InputError(f"top-{k} accuracy: k is 1 or more")
    values = []
    for query, (row, right) in enumerate(zip(predictions, references, strict=True)):
        mine = scores.matrix([row], f"scores (query {query})")[0]
        if not 0 <= right < len(mine):
            raise InputError(f"query {query} has {len(mine)} options, the right one is no. {right}")
        ahead = (mine > mine[right]).sum() + (mine[:right] == mine[right]).sum()
        values.append(float(ahead < k))
    return scores.mean(values)


def kinetics(predictions: Table, references: Sequence[int]) -> Score:
    """Mean of top-1 and top-5 accuracy, 0 to 1.

    Raises:
      InputError: as `top`.
    """
    both = [top(predictions, references, k).values for k in (1, 5)]
    return scores.mean(np.mean(both, axis=0))
