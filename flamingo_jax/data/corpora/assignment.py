"""The assignment problem: each row to a column of its own, with the greatest sum."""

from __future__ import annotations

import numpy as np


def optimal(similarity: np.ndarray) -> list[tuple[int, int]]:
    """One column for each row, or one row for each column where there are fewer of them.

    Shortest augmenting paths with potentials (Jonker and Volgenant, 1987; Crouse, 2016, is what
    SciPy has): exact, at most rows² × columns.

    Args:
      similarity: f[R, C], finite.

    Returns:
      min(R, C) pairs (row, column), by row, with the greatest sum of similarities.
    """
    rows, columns = similarity.shape
    if rows > columns:
        return sorted((row, column) for column, row in optimal(similarity.T))
    cost = -np.asarray(similarity, np.float64)
    of_row, of_column = np.zeros(rows), np.zeros(columns)  # potentials
    owner = np.full(columns, -1)
    for row in range(rows):
        distance = np.full(columns, np.inf)
        before = np.full(columns, -1)
        done = np.zeros(columns, bool)
        current, last, length = row, -1, 0.0
        while True:
            reached = length + cost[current] - of_row[current] - of_column
            nearer = ~done & (reached < distance)
            distance[nearer], before[nearer] = reached[nearer], last
            last = int(np.where(done, np.inf, distance).argmin())
            length = distance[last]
            if owner[last] < 0:
                break
            done[last] = True
            current = owner[last]
        slack = length - distance[done]
        of_row[owner[done]] += slack
        of_column[done] -= slack
        of_row[row] += length
        while last >= 0:  # each column on the path goes to the row of the one before it
            owner[last] = row if before[last] < 0 else owner[before[last]]
            last = before[last]
    return sorted((int(owner[column]), column) for column in range(columns) if owner[column] >= 0)
