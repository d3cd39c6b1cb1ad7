"""The process's own memory, beside what the devices' arrays take."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Gives what was freed back to the system, where malloc is glibc's; else nothing is done.

    malloc keeps freed memory, and what compiling and encoding pictures freed once is not needed
    again: later, smaller arrays wander through all of it. It takes some ms for 1 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
