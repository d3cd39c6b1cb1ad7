"""Reading weights and configs from disk; nothing in a file is ever executed."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from flamingo_jax.errors import InputError


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file, or of all those in a folder, by name.

    Raises:
      InputError: if there is none, one cannot be read, or two hold the same name.
    """
    path = pathlib.Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(
            f"there are no weights in {str(path)!r}; give a .safetensors file or folder"
        )
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    if name in arrays:
                        raise InputError(f"{name!r} is in two files of {str(path)!r}; keep one set")
                    arrays[name] = opened.get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(
                f"{str(file)!r} is not a readable .safetensors file ({error}); fetch it again"
            ) from error
    return arrays


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      InputError: if there is none or it holds something else.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r} holds no JSON object; give the model's config.json")
    return value
