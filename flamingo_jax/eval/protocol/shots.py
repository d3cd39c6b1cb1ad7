"""Which examples a query is shown, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flamingo_jax.data.randomness import generator
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import Example

_SPARE = 8  # drawn beside what is shown, as the query itself may be among them
_LEAST = 64  # drawn at once: 4 shots are then the first of 8, 16 and 32


class Shots:
    """Shots for the queries of one trial.

    A draw depends on the name, seed and trial, and on the query's key unless all share theirs.
    """

    def __init__(
        self,
        support: Sequence[Example],
        name: str,
        seed: int,
        trial: int = 0,
        shared_by: Sequence[Example] | None = None,
    ) -> None:
        """Takes what shots are drawn from.

        Args:
          support: the examples.
          name: of the benchmark.
          seed: of the draws.
          trial: its number, from 0.
          shared_by: all queries, if all are shown the same shots: none of them is ever drawn.
        """
        self._all, self._drawn_by, self._is_shared = support, (name, seed, trial), False
        self._places = range(len(support))
        if shared_by is not None:
            self._is_shared = True
            keys = {query.key for query in shared_by}
            media = {query.medium for query in shared_by} - {None}
            self._places = [
                place
                for place, example in enumerate(support)
                if example.key not in keys and example.medium not in media
            ]

    def draw(self, query: Example, count: int) -> list[Example]:
        """Random shots, never the query itself or another example of its medium.

        Raises:
          InputError: if the support is too small.
        """
        if count == 0:
            return []
        size = min(max(count + _SPARE, _LEAST), len(self._places))
        order = generator("shots", *self._key(query))
        while True:
            places = order.choice(len(self._places), size, replace=False) if size else ()
            found = [self._all[self._places[int(place)]] for place in places]
            fair = [example for example in found if not example.is_of(query)]
            if len(fair) >= count:
                return fair[:count]
            if size == len(self._places):
                raise InputError(
                    f"{self._drawn_by[0]}: {count} shots are asked for, and the support has "
                    f"{len(fair)} examples beside the query {query.key!r}"
                )
            size = len(self._places)

    def nearest(self, query: Example, neighbours: Sequence[int], count: int) -> list[Example]:
        """The nearest examples, the most similar one last.

        Args:
          query: what is asked; it is skipped among the neighbours.
          neighbours: places in the support, the most similar first.
          count: how many.

        Raises:
          InputError: if there are fewer neighbours.
        """
        found = [self._all[place] for place in neighbours]
        fair = [example for example in found if not example.is_of(query)][:count]
        if len(fair) < count:
            raise InputError(
                f"{self._drawn_by[0]}: {count} shots are asked for, and the query {query.key!r} "
                f"has {len(fair)} neighbours"
            )
        return fair[::-1]

    def orders(self, query: Example, shots: Sequence[Example], count: int) -> list[list[Example]]:
        """The same shots in `count` different orders, the given one first; in all there are."""
        found = [tuple(range(len(shots)))]
        draw = generator("orders", *self._key(query), len(shots))
        while len(found) < min(count, math.factorial(len(shots))):
            order = tuple(draw.permutation(len(shots)).tolist())
            if order not in found:
                found.append(order)
        return [[shots[place] for place in order] for order in found]

    def _key(self, query: Example) -> tuple[int | str, ...]:
        """What the draws of a query depend on."""
        return self._drawn_by if self._is_shared else (*self._drawn_by, query.key)
