"""Whether memory stays flat: what the benchmarks of the data and of the loop have in common."""

from __future__ import annotations

import os
import pathlib

import numpy as np

MOST_GROWTH = 2.0  # MB a thousand steps


def resident_mb() -> float:
    """Resident memory of this process, in MB (10⁶ bytes)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(seen: list[tuple[int, float]]) -> list[str]:
    """Prints the slope of resident memory after the warm-up; returns what is amiss.

    Args:
      seen: (step, MB), of which the first two fifths are warm-up.
    """
    late = np.array(seen[len(seen) * 2 // 5 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1e3 if len(late) > 1 else 0.0
    line = f"{slope:+.2f} MB a thousand steps after the warm-up, at most {MOST_GROWTH} is allowed"
    print(line)
    return [line] if slope > MOST_GROWTH else []
