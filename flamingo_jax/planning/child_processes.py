"""Bounds a child process in time and memory."""

from __future__ import annotations

import contextlib
import pathlib
import resource
import subprocess
import time


def watch(child: subprocess.Popen[bytes], seconds: float, rss_gb: float) -> tuple[str, str] | None:
    """Waits for the child.

    Args:
      child: a compiler's process.
      seconds: after so long it is ended.
      rss_gb: and once it holds so many GB (10⁹ bytes); 0 = no bound.

    Returns:
      None if it ended by itself, else ("time-out" or "memory", a sentence).
    """
    begin = time.monotonic()
    try:
        while True:
            try:
                child.wait(0.2)
                return None
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() - begin > seconds:
                return "time-out", f"compiling took more than {seconds:g} s"
            held = resident(child.pid)
            if rss_gb and held > rss_gb * 1e9:
                text = f"compiling took {held / 1e9:.1f} GB of this machine's memory"
                return "memory", f"{text}, more than the {rss_gb:g} GB allowed"
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * resource.getpagesize()
    return 0
