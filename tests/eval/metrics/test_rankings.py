"""NDCG, AUC and mWAP: small cases that can be done by hand, and bad input."""

import math

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import auc, ndcg, rareact
from flamingo_jax.eval.metrics.rareact import Clip


def test_ndcg():
    relevance = [[1, 0.5, 0, 0]]
    assert ndcg.score([[4, 3, 2, 1]], relevance).value == pytest.approx(1)
    best = 1 + 0.5 / math.log2(3)
    assert ndcg.score([[1, 3, 4, 2]], relevance).value == pytest.approx(0.5 / math.log2(3) / best)
    assert ndcg.score([[1, 2, 4, 3]], relevance).value == 0  # only as many as are relevant count


def test_auc():
    assert auc.score([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).value == 0.75
    assert auc.score([1, 1, 1], [0, 1, 1]).value == 0.5
    assert auc.score([3, 2, 1], [0, 1, 1]).value == 0


def test_rareact():
    """Two actions share a verb, so that one's positives are the other's hard negatives."""
    clips = [
        Clip("u", "cut", "phone", 0, 1),
        Clip("v", "cut", "phone", 0, 0),
        Clip("v", "cut", "phone", 0, 0),  # the same video: half a clip each
        Clip("w", "cut", "shoe", 1, 1),
        Clip("x", "cut", "hat", 2, 2),  # no positive: the action counts for nothing
    ]
    scores = [[0.5, 0, 0], [0.9, 0, 0], [0.1, 0, 0], [0.4, 1, 0], [0.99, 0, 0]]
    assert rareact.score(scores, clips).value == pytest.approx((1 / 1.5 + 1) / 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ndcg.score([[1, 2]], [[0, 0]]), "no candidate of turn 0"),
        (lambda: ndcg.score([[1, 2]], [[1]]), "as many of both"),
        (lambda: ndcg.score([[1, 2], [1]], [[1, 0], [1, 0]]), "not a table of numbers"),
        (lambda: auc.score([1, 2], [1, 1]), "both classes"),
        (lambda: auc.score([1, 2], [1, 2]), "0 or 1"),
        (lambda: rareact.score([[1.0]], [Clip("u", "a", "b", 1, 1)]), "no column"),
        (lambda: rareact.score([[1.0]], [Clip("u", "a", "b", 0, 0)]), "no clip is positive"),
        (
            lambda: rareact.score(
                [[1.0, 2.0]] * 2, [Clip("u", "a", "b", 0, 1), Clip("u", "a", "b", 1, 1)]
            ),
            "two numbers",
        ),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()
