"""The flags of `generate` and `evaluate`, apart from what runs: `--help` answers at once."""

from __future__ import annotations

import argparse

from flamingo_jax.data.prepare.flags import number
from flamingo_jax.errors import InputError


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Adds what says which model is asked what."""
    add = parser.add_argument
    text = "what is evaluated: a run's folder, or one step inside it"
    add("--checkpoint", default="", metavar="DIR", help=text)
    text = "the folder of results; the same command goes on where it stopped"
    add("--workdir", default="", metavar="DIR", help=text)
    text = "an evaluation: a Python file whose get_config starts from config.evaluation()"
    add("--config", default="", metavar="FILE[:VARIANT]", help=text)
    text = "benchmarks, of the config's or of --list's"
    add("--benchmarks", default="", metavar="NAME,…", help=text)
    add("--root", default="", metavar="DIR", help="the folder that holds the benchmarks' folders")
    text = "print the benchmarks, what files each needs and which were found, then exit"
    add("--list", action="store_true", help=text)
    add("--config.FIELD", metavar="VALUE", help="sets a field: --config.shots=0,4 or others")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Adds a prompt, and how it is answered."""
    add = parser.add_argument
    text = "a run's folder, or one step inside it"
    add("--checkpoint", required=True, metavar="DIR", help=text)
    text = (
        "the prompt in order: a path is a picture or a clip, anything else is text "
        "(<EOC> ends a chunk of it)"
    )
    add("items", nargs="+", metavar="ITEM", help=text)
    whole, text = number(int, 1), "stop after so many tokens (default 32)"
    add("--max_new_tokens", type=whole, default=32, metavar="N", help=text)
    add("--beams", type=whole, default=1, metavar="N", help="width of beam search")
    text = "draw tokens at this temperature; 0, the default, takes the likeliest"
    add("--temperature", type=number(float, 0), default=0.0, metavar="X", help=text)
    text = "draw from the likeliest tokens that make up this probability (default 1)"
    add("--top_p", type=number(float, 0, 1), default=1.0, metavar="P", help=text)
    text = "of the drawing (default 0)"
    add("--seed", type=number(int, 0), default=0, metavar="N", help=text)
    add("--stream", action="store_true", help="print the text while it is made")
    text = (
        "after the items, answer line after line; a line that is the path of "
        "a picture or a clip shows it"
    )
    add("--chat", action="store_true", help=text)


def names(flags: argparse.Namespace) -> tuple[str, ...]:
    """The benchmarks that are named.

    Raises:
      InputError: if a flag is missing; --list needs none.
    """
    found = tuple(name.strip() for name in flags.benchmarks.split(",") if name.strip())
    if flags.list:
        return found
    for flag in ("checkpoint", "workdir"):
        if not getattr(flags, flag):
            raise InputError(f"evaluate needs --{flag}=DIR; see flamingo evaluate --help")
    if not found and not flags.config:
        raise InputError("evaluate needs --config=FILE or --benchmarks=NAME,…; --list names them")
    return found
