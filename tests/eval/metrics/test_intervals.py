"""Intervals hold what they should as often as they should, for means and for pooled metrics."""

import math

import numpy as np
import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import auc, bleu, intervals, rareact, scores
from flamingo_jax.eval.metrics.rareact import Clip


def test_a_mean_like_the_normal_law():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = intervals.interval(scores.mean(values), draws=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        found = intervals.interval(scores.mean(random.random(100) < 0.3), draws=300, seed=seed)
        held += found.low <= 0.3 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_the_same_seed_draws_the_same():
    score = scores.mean(np.random.default_rng(4).random(50))
    assert intervals.interval(score) == intervals.interval(score)
    assert intervals.interval(score, seed=1, draws=99) != intervals.interval(score, draws=99)


def repeated(rows: list, counts: np.ndarray) -> list:
    """The rows, each as often as it was drawn."""
    return [row for row, times in zip(rows, counts, strict=True) for _ in range(times)]


def test_draws_are_scored_as_if_they_were_the_queries():
    """The vectorised value of a draw is the metric of the drawn rows themselves."""
    random = np.random.default_rng(2)
    counts = random.multinomial(12, [1 / 12] * 12, size=5)
    texts = [" ".join(random.choice(list("abcd"), 5)) for _ in range(24)]
    predictions, references = texts[:12], [[text] for text in texts[12:]]
    numbers, labels = random.random(12).round(1).tolist(), ([0, 1] * 6)
    for name in ("bleu", "auc"):
        score = (
            bleu.score(predictions, references, str.split)[1]
            if name == "bleu"
            else auc.score(numbers, labels)
        )
        for row, value in zip(counts, score.resampled(counts), strict=True):
            if name == "bleu":
                drawn = bleu.score(
                    repeated(predictions, row), repeated(references, row), str.split
                )[1]
            else:
                drawn = auc.score(repeated(numbers, row), repeated(labels, row))
            assert value == pytest.approx(drawn.value)


def test_draws_without_a_value_are_left_out():
    found = intervals.interval(auc.score([1, 2], [0, 1]), draws=200)
    assert (found.low, found.high) == (1, 1)
    assert 60 < found.draws < 140  # half of the draws have one class only


def test_rareact_has_intervals():
    clips = [Clip(str(n), "cut", "phone", 0, n % 2) for n in range(40)]
    found = rareact.score(np.random.default_rng(3).random((40, 1)), clips)
    ends = intervals.interval(found, draws=200)
    assert ends.low < found.value < ends.high


def test_spread():
    found = intervals.spread([0.4, 0.5, 0.6])
    assert (found.mean, found.std, found.trials) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert math.isnan(intervals.spread([0.4]).std)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: intervals.interval(scores.mean([1]), level=95), "between 0 and 1"),
        (lambda: intervals.interval(scores.mean([1]), draws=1), "2 or more"),
        (lambda: intervals.spread([]), "no trials"),
        (lambda: scores.mean([]), "no queries"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()
