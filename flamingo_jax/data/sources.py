"""The registry of sources: a name in a config to documents that can be read in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flamingo_jax.data.document import Source
from flamingo_jax.errors import InputError

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Where a dataset's documents come from; fields as in `config.dataset`.

    Attributes:
      name: "NAME" or "NAME:PART".
      path: the folder or shards that are read, where any are.
      files: the folder or tars that hold the files which records name.
      validation_path: shards of the validation split.
      held_out: where there are none, one record in so many is held out for it; 0 = none.
      options: the corpus's own.
    """

    name: str
    path: str = ""
    files: str = ""
    validation_path: str = ""
    held_out: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Opener = Callable[[SourceSpec, str, str, int, int], Source]
"""(spec, part, split, seed, image_size) → Source."""


def _openmoji(spec: SourceSpec, part: str, split: str, seed: int, image_size: int) -> Source:
    from flamingo_jax.data import openmoji

    return openmoji.open_part(part, split, seed, image_size)


def _folder(spec: SourceSpec, part: str, split: str, seed: int, image_size: int) -> Source:
    from flamingo_jax.data import folder

    for field in ("files", "options", "validation_path"):
        if value := getattr(spec, field):
            raise InputError(
                f"the source 'folder' has no use for {field}={value!r}; its captions file lies "
                "beside its pictures, and a field 'split' in it marks the rows for validation"
            )
    return folder.open_folder(spec.path, split, part or "captions", spec.held_out)


def _corpus(spec: SourceSpec, part: str, split: str, seed: int, image_size: int) -> Source:
    from flamingo_jax.data.corpora import source

    if part:
        raise InputError(f"the source {spec.name.partition(':')[0]!r} has no part {part!r}")
    return source.open_corpus(
        spec.name,
        spec.path,
        split,
        files=spec.files,
        validation_path=spec.validation_path,
        held_out=spec.held_out,
        seed=seed,
        options=spec.options,
    )


REGISTRY: dict[str, Opener] = {
    # Each entry imports its module when it is opened: readers bring packages of their own.
    "clips": _corpus,
    "folder": _folder,
    "mmc4": _corpus,
    "obelics": _corpus,
    "openmoji": _openmoji,
    "pairs": _corpus,
    "prepared": _corpus,
    "texts": _corpus,
}


def open_source(
    spec: SourceSpec, split: str = "train", seed: int = 0, image_size: int = 64
) -> Source:
    """Opens a source of documents.

    Args:
      spec: what and where.
      split: "train" or "validation".
      seed: of what the source draws itself, such as made-up pages.
      image_size: sides of pictures that the source draws itself.

    Raises:
      InputError: for a name, part, path or split that there is not.
    """
    base, _, part = spec.name.partition(":")
    if base not in REGISTRY:
        raise InputError(
            f"there is no source {base!r}; config.dataset(source=…) takes "
            f"{', '.join(sorted(REGISTRY))}"
        )
    if split not in SPLITS:
        raise InputError(f"source {spec.name!r} has no split {split!r}; {' or '.join(SPLITS)}")
    return REGISTRY[base](spec, part, split, seed, image_size)


def attributions(names: set[str]) -> list[str]:
    """The lines that the licences of sources ask to be shown wherever their data is."""
    if not any(name.partition(":")[0] == "openmoji" for name in names):
        return []
    from flamingo_jax.data.openmoji import pictures

    return [pictures.attribution()]
