"""Records that are not used: the errors their readers raise, and the list of them."""

from __future__ import annotations

import collections
import dataclasses
import re
import threading

from flamingo_jax.errors import InputError

LEAST_READS = 200
"""Records of a dataset that are read before its share of bad ones is judged."""


_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
_LONGEST = 500  # characters of a detail


class BadRecord(ValueError):
    """A record that cannot be used; the pipeline replaces it by another and counts it.

    Attributes:
      reason: a short category ("truncated image", "no text"), the same for records alike, so that
        counting by it says what ails a dataset.
      detail: which one, and what exactly.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        # Libraries print objects with their addresses; a log is the same at every reading.
        detail = _ADDRESS.sub("<…>", detail)[:_LONGEST]
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Dropped(BadRecord):
    """A sound record that a rule of the dataset's leaves out; it does not make a dataset bad."""


@dataclasses.dataclass(frozen=True, order=True)
class Reject:
    """A record that was not used.

    Attributes:
      row: the place in the dataset's endless order that it should have filled.
      attempt: 0 for the record that the order names, 1 for the first in its place, and so on.
      index: its index in the source.
      reason: the category.
      detail: which one, and what exactly.
    """

    row: int
    attempt: int
    index: int
    reason: str
    detail: str


class Rejects:
    """What was not used of one dataset; safe to use from many threads."""

    def __init__(self, dataset: str, most: float = 1.0) -> None:
        """`most`: the share of bad records (`Dropped` ones aside) from which on reading stops."""
        self._dataset, self._most = dataset, most
        self._lock = threading.Lock()
        self._reads = 0
        self._bad: collections.Counter[str] = collections.Counter()
        self._waiting: list[Reject] = []

    def used(self) -> None:
        """Counts a record that was used."""
        with self._lock:
            self._reads += 1

    def add(self, row: int, attempt: int, index: int, error: BadRecord) -> None:
        """Lists a record that was not used.

        Raises:
          InputError: if too many of those read so far are bad.
        """
        with self._lock:
            self._waiting.append(Reject(row, attempt, index, error.reason, error.detail))
            self._reads += 1
            if isinstance(error, Dropped):
                return
            self._bad[error.reason] += 1
            bad = sum(self._bad.values())
            if self._reads < LEAST_READS or bad <= self._most * self._reads:
                return
            reasons = ", ".join(
                f"{count} times {name}" for name, count in sorted(self._bad.items())
            )
            raise InputError(
                f"dataset {self._dataset!r}: {bad} of {self._reads} records cannot be used "
                f"({reasons}), more than config.data.max_bad={self._most:g} allows"
            )

    def take(self, before: int) -> list[Reject]:
        """Those listed for rows before `before` and not taken yet, in order."""
        with self._lock:
            taken = sorted(reject for reject in self._waiting if reject.row < before)
            self._waiting = [reject for reject in self._waiting if reject.row >= before]
        return taken
