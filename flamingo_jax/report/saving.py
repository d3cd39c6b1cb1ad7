"""Writing a page as a whole: a reader never sees half of one."""

from __future__ import annotations

import os
import pathlib

from flamingo_jax.errors import InputError


def save(path: pathlib.Path, html: str) -> pathlib.Path:
    """Writes a page, its folder too if need be, and returns its path.

    Raises:
      InputError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(html, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise InputError(f"the report {str(path)!r} cannot be written: {error.strerror}") from error
    return path
