"""Flamingo visual language models in JAX: load a trained one, prompt it with pictures and text.

Importing the package imports nothing else: each name below is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo_jax.use import Video, load, text

__version__ = "0.1.0.dev0"

__all__ = ["Video", "__version__", "load", "text"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from flamingo_jax import use

        return getattr(use, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
