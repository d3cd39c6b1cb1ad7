"""Writing a page as a whole: a reader never sees half of one."""

from __future__ import annotations

import os
import pathlib

from flamingo_jax.errors import InputError


def save(path: pathlib.Path, text: str, what: str = "report") -> pathlib.Path:
    """Writes a page or its data, its folder too if need be, and returns its path.

    Raises:
      InputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise InputError(f"the {what} {str(path)!r} cannot be written: {error.strerror}") from error
    return path
