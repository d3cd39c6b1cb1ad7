"""Whether memory stays flat: what the benchmarks of the data and of the loop have in common."""

from __future__ import annotations

import ctypes
import os
import pathlib

import numpy as np

MOST_GROWTH = 2.0  # MB a thousand steps


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

    Arrays of the CPU backend and NumPy's are part of it, Python's small objects are not. Resident
    memory has those, code, and what malloc keeps for later, which depends on the moment.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33 and later
    if mallinfo2 is None:
        return resident_mb()
    mallinfo2.restype = _Mallinfo2
    told = mallinfo2()
    return (told.uordblks + told.hblkhd) / 1e6


def growth(seen: list[tuple[int, float]], what: str = "resident") -> list[str]:
    """Prints the slope of memory after the warm-up; returns what is amiss.

    Args:
      seen: (step, MB), of which the first two fifths are warm-up.
      what: whose slope, as the line tells it.
    """
    late = np.array(seen[len(seen) * 2 // 5 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1e3 if len(late) > 1 else 0.0
    told = f"{what}: {slope:+.2f} MB a thousand steps after the warm-up"
    line = f"{told}, at most {MOST_GROWTH} is allowed"
    print(line)
    return [line] if slope > MOST_GROWTH else []
