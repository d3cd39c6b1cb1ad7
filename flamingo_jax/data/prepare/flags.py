"""The flags of preparing, for every program that prepares: what they are, and the job they make.

The command line imports this for each verb's help: it imports nothing at its top that takes time.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flamingo_jax.errors import InputError

if TYPE_CHECKING:
    from flamingo_jax.data.prepare.job import Job


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `InputError`s: one line, like all bad input."""

    def error(self, message: str):
        """Raises InputError."""
        raise InputError(f"{message}; see {self.prog} --help")


def number(
    kind: type[int] | type[float], low: float, high: float = float("inf")
) -> Callable[[str], int | float]:
    """Reads a number from `low` to `high`, for argparse."""

    def number(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:
            bounds = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return value

    return number


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds what is prepared and where to, all but the source's name."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the folder of shards, made or gone on with")
    add("--path", default="", metavar="PATH", help="the source's shards: file, folder or pattern")
    add("--files", default="", metavar="PATH", help="folder or tars of files that records name")
    several = {"nargs": "+", "action": "extend", "default": []}
    add("--option", metavar="NAME=VALUE", help="the source's own options", **several)
    add("--split", default="train", help="train (the default) or validation")
    text = "records of the source, or media of features, a shard (default 1000)"
    add("--shard-size", type=number(int, 1), default=1000, metavar="N", help=text)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Adds what is kept."""
    add = parser.add_argument
    pixels, least = number(int, 0), number(float, 0)
    text = "leave out images with a shorter side, in pixels (default 64; 0: none)"
    add("--min-side", type=pixels, default=64, metavar="N", help=text)
    text = "leave out images longer than so many times their width (default 3; 0: none)"
    add("--max-aspect", type=least, default=3.0, metavar="X", help=text)
    add("--keep-single-colour", action="store_true", help="keep images of a single colour")
    text = "drop documents with fewer media left (default 1)"
    add("--min-images", type=pixels, default=1, metavar="N", help=text)
    text = "drop documents with more (default 0: no limit)"
    add("--max-images", type=pixels, default=0, metavar="N", help=text)
    several = {"nargs": "+", "action": "extend", "default": []}
    text = "leave out near-duplicates of the images in these folders"
    add("--eval-images", metavar="DIR", help=text, **several)


def make_job(flags: argparse.Namespace) -> Job:
    """The job of parsed flags, `source` among them.

    Raises:
      InputError: for options that are not written as such, or filters that there are not.
    """
    from flamingo_jax.data.prepare import filters
    from flamingo_jax.data.prepare.job import Job, default_between
    from flamingo_jax.data.sources import SourceSpec

    spec = SourceSpec(flags.source, flags.path, flags.files, options=read_options(flags.option))
    options = filters.FilterOptions(
        min_side=flags.min_side,
        max_aspect=flags.max_aspect,
        single_colour=not flags.keep_single_colour,
        min_images=flags.min_images,
        max_images=flags.max_images,
        between=default_between(spec),
    )
    evaluation = tuple(flags.eval_images)
    return Job(spec, flags.split, options, evaluation, shard_size=flags.shard_size)


def read_options(texts: list[str]) -> dict[str, Any]:
    """Options written "name=value", the values Python's literals or plain words.

    Raises:
      InputError: for any other text.
    """
    return dict(map(_option, texts))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--option {text!r} is no NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value  # a plain word
