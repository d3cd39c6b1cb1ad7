"""Processes beside libtpu: what it is told, and of those that compile, time and memory."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import subprocess
import time

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # arrays that tracing makes; the topology's devices hold none
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process dies of libtpu's lock file
    "TPU_SKIP_MDS_QUERY": "1",  # else libtpu looks for a cloud's metadata server
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

NO_TPU = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"}
"""What libtpu would complain that nobody has told it, where there is no TPU to tell of."""


def without_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Where no TPU is, tells libtpu (of the extra `plan`) what it would look for, with five lines.

    JAX starts it wherever it is installed, finds no chip and takes what else there is.
    """
    if not (any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*"))):
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def environment(topology: str, devices: int = 0) -> dict[str, str]:
    """A child's environment: this one's, our own package found, the devices asked for.

    Args:
      topology: as `topology.parse` takes it.
      devices: simulated devices of "local"; 0 = this machine's.
    """
    package = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    found = os.environ | {"PYTHONPATH": os.pathsep.join([package, *paths])}
    if topology != "local":
        found |= ENVIRONMENT
        for name in NO_TPU:
            found.pop(name, None)  # the topology says what the chips are
        found.pop("XLA_FLAGS", None)  # a CPU's flags, which libtpu refuses by aborting
        found.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program from there leaves no dump
    elif devices:
        found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return found


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
