"""What is installed: versions of Python and of the packages that results depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys

PACKAGES: tuple[str, ...] = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin"),
    *("flax", "optax", "orbax-checkpoint", "grain", "ml-collections", "numpy", "flamingo_jax"),
)


def versions() -> dict[str, str]:
    """{"python" or a package: its version}; what is not installed is left out."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
