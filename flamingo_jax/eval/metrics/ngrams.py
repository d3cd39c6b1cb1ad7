"""Runs of one to four words, counted: what CIDEr and BLEU are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from flamingo_jax.eval.metrics import scores

LONGEST = 4

Ngram = tuple[str, ...]
Counts = Counter[Ngram]
Tokenize = Callable[[str], list[str]]


def count(words: Sequence[str]) -> Counts:
    """How often each run of one to four words occurs."""
    runs = (words[at : at + n] for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))
    return Counter(map(tuple, runs))


def tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Words of each prediction, and of each query's references.

    Raises:
      InputError: for other numbers of predictions and references, or a query without a reference.
    """
    scores.check_paired(predictions, references)
    scores.check_referenced(references)
    return (
        [tokenize(text) for text in predictions],
        [[tokenize(text) for text in texts] for texts in references],
    )
