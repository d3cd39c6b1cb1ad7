"""The endless order of documents: every one once an epoch, torn apart, another each time."""

from typing import cast

import grain
import numpy as np
import pytest

from flamingo_jax.data.order import endless


@pytest.mark.parametrize("count", [1, 2, 500, 16_500])
def test_orders_of_any_length(count: int) -> None:
    order = endless(count, 1, "a", shuffled=True)
    first, second = (listed(order, epoch * count, count) for epoch in (0, 7))
    assert sorted(first) == sorted(second) == list(range(count))
    if count > 2:
        other = endless(count, 1, "b", shuffled=True)
        assert first != second and first != list(range(count))
        assert first != listed(other, 0, count)
        # neighbours are torn apart
        steps = np.abs(np.diff(first))
        assert abs(steps.mean() - count / 3) < 0.1 * count
    plain = endless(count, 1, "a", shuffled=False)
    assert listed(plain, 0, 2 * count) == [*range(count)] * 2


def listed(order: grain.MapDataset, first: int, count: int) -> list[int]:
    return [cast(int, order[place]) for place in range(first, first + count)]
