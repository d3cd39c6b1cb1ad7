"""Records that cannot be used: the error their readers raise, and the tally of them."""

from __future__ import annotations

import collections
import threading


class BadRecord(ValueError):
    """A record that cannot be used; the pipeline replaces it by another and counts it.

    Attributes:
      reason: a short category ("truncated image", "no text"), the same for records alike, so that
        counting by it says what ails a dataset.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class FaultTally:
    """Counts bad records by dataset and reason; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def add(self, dataset: str, reason: str) -> None:
        """Counts one bad record of `dataset`."""
        with self._lock:
            self._counts[dataset, reason] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """{dataset: {reason: how many reads met it}}, in alphabetical order."""
        with self._lock:
            items = sorted(self._counts.items())
        tally: dict[str, dict[str, int]] = {}
        for (dataset, reason), count in items:
            tally.setdefault(dataset, {})[reason] = count
        return tally
