"""The assignment problem, against every permutation and against SciPy's solution."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.corpora.assignment import optimal


def total(similarity: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    return float(sum(similarity[pair] for pair in pairs))


def check(similarity: np.ndarray, pairs: list[tuple[int, int]]) -> None:
    """As many as there can be, by row, and no row or column twice."""
    assert len(pairs) == min(similarity.shape)
    rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
    assert rows == sorted(set(rows)) and len(set(columns)) == len(columns)
    assert set(rows) <= set(range(similarity.shape[0]))
    assert set(columns) <= set(range(similarity.shape[1]))


@given(
    st.integers(0, 4).flatmap(
        lambda rows: st.integers(0, 5).flatmap(
            lambda columns: st.lists(
                st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns
            ).map(lambda values: np.array(values, np.float64).reshape(rows, columns))
        )
    )
)
def test_no_permutation_is_better(similarity: np.ndarray) -> None:
    pairs = optimal(similarity)
    check(similarity, pairs)
    wide = similarity if similarity.shape[0] <= similarity.shape[1] else similarity.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert total(similarity, pairs) == best  # small integers: sums are exact


@pytest.mark.parametrize("shape", [(1, 300), (30, 200), (120, 120), (90, 7)])
def test_scipys_is_no_better(shape: tuple[int, int]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    similarity = np.random.default_rng(shape).normal(size=shape)
    pairs = optimal(similarity)
    check(similarity, pairs)
    theirs = list(zip(*optimize.linear_sum_assignment(-similarity), strict=True))
    assert pairs == theirs  # without ties there is one optimum
