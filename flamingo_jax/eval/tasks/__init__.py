"""Evaluation tasks, one small room each; `run` finds them by name."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval.rows import Graph
from flamingo_jax.shapes import Params

TASKS = ("openmoji",)


class Towers(Protocol):
    """The contrastive model's two towers."""

    def images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """u8[Y, X, 3] each → unit vectors f32[n, A]."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → unit vectors f32[n, A]."""
        ...


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
      graph: the Flamingo model.
      params: all its parameters, the canonical tree.
      tokenizer: its tokenizer.
      image_size: sides of the pictures it takes.
      towers: the contrastive model that its encoder comes from, if there is one.
    """

    graph: Graph
    params: Params
    tokenizer: Tokenizer
    image_size: int
    towers: Towers | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """How it is evaluated.

    Attributes:
      split: "test", or "validation" to choose settings by.
      seed: of every draw.
      queries: at most so many of each question; 0 = all.
      max_new_tokens: of generated captions.
      batch: sequences run at once.
      folder: where pictures of samples go.
    """

    split: str
    seed: int
    queries: int
    max_new_tokens: int
    batch: int
    folder: pathlib.Path


def run(name: str, subject: Subject, request: Request) -> dict[str, Any]:
    """Runs a task and returns its entry of results.json.

    Raises:
      InputError: for a task that there is not.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r} (config.eval.tasks); {', '.join(TASKS)}")
    from flamingo_jax.eval.tasks import openmoji

    runners: dict[str, Callable[[Subject, Request], dict[str, Any]]] = {"openmoji": openmoji.run}
    return runners[name](subject, request)
