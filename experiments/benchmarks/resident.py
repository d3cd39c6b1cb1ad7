"""Whether memory stays flat: what the benchmarks of the data and of the loop have in common."""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Sequence

import numpy as np

MOST_GROWTH = 2.0  # MB a thousand steps
MOST_RISE = (
    0.02  # of the highest resident memory, from the first half of what is judged to its second
)
WARM_UP = 2 / 5  # of what was seen


def resident_mb() -> float:
    """Resident memory of this process, in MB (10⁶ bytes)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`, in its order."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def used_mb() -> float:
    """What malloc has given out and not got back, in MB; resident memory where that is not told.

    Arrays of the CPU backend, NumPy's and Python's are all of it. Resident memory has what malloc
    keeps for later, too, which in the demo is more than half, and depends on the moment.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33 and later
    if mallinfo2 is None:
        return resident_mb()
    mallinfo2.restype = _Mallinfo2
    told = mallinfo2()
    return (told.uordblks + told.hblkhd) / 1e6


def growth(seen: list[tuple[int, float]]) -> list[str]:
    """Prints the slope of memory after the warm-up; returns what is amiss.

    The median of the slopes between all pairs (Sen 1968, Estimates of the Regression Coefficient
    Based on Kendall's Tau): a batch more or less in the queue at some moments does not sway it.

    Args:
      seen: (step, MB).
    """
    late = np.array(seen[int(len(seen) * WARM_UP) :])
    first, second = np.triu_indices(len(late), k=1)
    slopes = np.diff(late[np.stack([first, second])], axis=0)[0]
    slope = float(np.median(slopes[:, 1] / slopes[:, 0])) * 1e3 if len(slopes) else 0.0
    line = f"{slope:+.2f} MB a thousand steps after the warm-up, at most {MOST_GROWTH} is allowed"
    print(line)
    return [line] if slope > MOST_GROWTH else []


def rise(seen: Sequence[float]) -> list[str]:
    """Prints by how much the highest memory rises after the warm-up; returns what is amiss."""
    late = seen[int(len(seen) * WARM_UP) :]
    if len(late) < 2:
        return []
    before, after = max(late[: len(late) // 2]), max(late[len(late) // 2 :])
    line = f"resident at most {before:.1f}, then {after:.1f} MB; {MOST_RISE:.0%} more is allowed"
    print(line)
    return [line] if after > before * (1 + MOST_RISE) else []
