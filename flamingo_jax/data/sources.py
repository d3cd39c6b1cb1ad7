"""The registry of sources: a name in a config to documents that can be read in any order."""

from __future__ import annotations

from collections.abc import Callable

from flamingo_jax.data.document import Source
from flamingo_jax.errors import InputError

SPLITS = ("train", "validation")
Opener = Callable[[str, str, str, int, int], Source]
"""(part, path, split, seed, image_size) → Source."""


def _openmoji(part: str, path: str, split: str, seed: int, image_size: int) -> Source:
    from flamingo_jax.data import openmoji

    return openmoji.open_part(part, split, seed, image_size)


def _folder(part: str, path: str, split: str, seed: int, image_size: int) -> Source:
    from flamingo_jax.data import folder

    return folder.open_folder(path, split, part or "captions")


REGISTRY: dict[str, Opener] = {
    # Each entry imports its module when it is opened: readers bring packages of their own.
    "folder": _folder,
    "openmoji": _openmoji,
}


def open_source(
    name: str, path: str = "", split: str = "train", seed: int = 0, image_size: int = 64
) -> Source:
    """Opens a source of documents.

    Args:
      name: "NAME" or "NAME:PART", as in `config.dataset(source=…)`.
      path: the folder or shards that it reads, where it reads any.
      split: "train" or "validation".
      seed: of what the source draws itself, such as made-up pages.
      image_size: sides of pictures that the source draws itself.

    Raises:
      InputError: for a name, part, path or split that there is not.
    """
    base, _, part = name.partition(":")
    if base not in REGISTRY:
        raise InputError(
            f"there is no source {base!r}; config.dataset(source=…) takes "
            f"{', '.join(sorted(REGISTRY))}"
        )
    if split not in SPLITS:
        raise InputError(f"source {name!r} has no split {split!r}; {' or '.join(SPLITS)}")
    return REGISTRY[base](part, path, split, seed, image_size)


def attributions(names: set[str]) -> list[str]:
    """The lines that the licences of sources ask to be shown wherever their data is."""
    if not any(name.partition(":")[0] == "openmoji" for name in names):
        return []
    from flamingo_jax.data.openmoji import pictures

    return [pictures.attribution()]
