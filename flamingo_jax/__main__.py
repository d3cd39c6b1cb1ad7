"""The command line, flags only: `python -m flamingo_jax VERB`, or `flamingo VERB` once installed.

What a verb does is the function of its name in run.py, which is imported when the verb runs, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Callable, Sequence

import flamingo_jax
from flamingo_jax import errors

EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: its words in the help, its flags, and the call they become.

    Attributes:
      summary: one line for the list of verbs.
      description: a paragraph for the verb's own help.
      examples: command lines after the program's name.
      add_flags: adds the verb's flags to its parser.
      call: (flags, overrides {"a.b": "value"}) -> exit code.
      overrides: does the verb take --config.a.b=value?
    """

    summary: str
    description: str
    examples: tuple[str, ...]
    add_flags: Callable[[argparse.ArgumentParser], None]
    call: Callable[[argparse.Namespace, dict[str, str]], int]
    overrides: bool = False


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `InputError`s: one line, like all bad input."""

    def error(self, message: str):
        raise errors.InputError(f"{message}; see {self.prog} --help")


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="the experiment: a Python file with get_config(variant), see experiments/",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run's folder: made if absent, resumed if it holds a run of the same experiment",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="one batch, one step, one save and one restore of this config, then exit",
    )
    parser.add_argument(
        "--config.FIELD",
        metavar="VALUE",
        help="sets a field of the config, as often as you like: --config.train.steps=10",
    )


def _train(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    return run.train(flags.config, overrides, flags.workdir, flags.check)


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs", nargs="+", metavar="DIR", help="a run's folder; several are compared"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of checks as Markdown"
    )


def _report(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    return run.report(flags.workdirs, flags.markdown)


def _inspect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a run's folder, or one step inside it")


def _inspect(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    return run.inspect(flags.folder)


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run's folder, or one step inside it"
    )
    parser.add_argument(
        "items",
        nargs="+",
        metavar="ITEM",
        help="the prompt in order: a path is a picture or a clip, anything else is text "
        "(<EOC> ends a chunk of it)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=_number(int, 1),
        default=32,
        metavar="N",
        help="stop after so many tokens (default 32)",
    )
    parser.add_argument(
        "--beams", type=_number(int, 1), default=1, metavar="N", help="width of beam search"
    )
    parser.add_argument(
        "--temperature",
        type=_number(float, 0),
        default=0.0,
        metavar="X",
        help="draw tokens at this temperature; 0, the default, takes the likeliest",
    )
    parser.add_argument(
        "--top_p",
        type=_number(float, 0, 1),
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that make up this probability (default 1)",
    )
    parser.add_argument(
        "--seed", type=_number(int, 0), default=0, metavar="N", help="of the drawing (default 0)"
    )
    parser.add_argument("--stream", action="store_true", help="print the text while it is made")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="after the items, answer line after line; a line that is the path of "
        "a picture or a clip shows it",
    )


def _generate(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    options = vars(flags).copy()
    del options["verb"]
    return run.generate(options.pop("checkpoint"), options.pop("items"), **options)


VERBS = {
    "train": Verb(
        summary="train an experiment's stages, or go on where its run stopped",
        description="Trains the stages that the config names, one after the other, and ends with "
        "a report. The same command goes on with a run that was stopped; of a finished one it says "
        "so. Exit codes: 0 finished, 2 bad input, 143 stopped by a signal with everything saved, "
        "1 a defect of flamingo_jax.",
        examples=(
            "train --config=experiments/openmoji.py --workdir=runs/openmoji",
            "train --config=experiments/openmoji.py --workdir=runs/short --config.train.steps=100",
        ),
        add_flags=_train_flags,
        call=_train,
        overrides=True,
    ),
    "report": Verb(
        summary="write a run's report again, or lay several runs over each other",
        description="Writes report/index.html of one run, or a comparison of several: their curves "
        "over each other, the fields in which their configs differ, their tables.",
        examples=(
            "report runs/openmoji",
            "report runs/openmoji runs/short",
            "report --markdown runs/seed0 runs/seed1 runs/seed2",
        ),
        add_flags=_report_flags,
        call=_report,
    ),
    "inspect": Verb(
        summary="tell what a run or a checkpoint holds",
        description="Prints the parameters of a checkpoint by part, which of them are trained and "
        "which frozen, and the steps that are saved.",
        examples=("inspect runs/openmoji",),
        add_flags=_inspect_flags,
        call=_inspect,
    ),
    "generate": Verb(
        summary="answer one prompt of pictures, clips and text",
        description="Loads a checkpoint and prints what it says after a prompt. Pictures, clips "
        "and text are read in the order given; examples before the last picture are shots.",
        examples=(
            'generate --checkpoint=runs/openmoji cat.png "a cat<EOC>" dog.png',
            "generate --checkpoint=runs/openmoji --beams=3 --max_new_tokens=16 clip.mp4",
        ),
        add_flags=_generate_flags,
        call=_generate,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that `argv` (the process's own arguments when None) names; its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = "flamingo " + argv[0] if argv and argv[0] in VERBS else "flamingo"
    try:
        return _dispatch(argv)
    except errors.InputError as error:
        return _say(name, error, errors.EXIT_BAD_INPUT)
    except errors.Preempted as error:
        return _say(name, error, errors.EXIT_PREEMPTED)
    except KeyboardInterrupt:
        return _say(name, "interrupted", EXIT_INTERRUPTED)


def _dispatch(argv: list[str]) -> int:
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        raise errors.InputError(f"there is no verb {argv[0]!r}; {hint}")
    rest, overrides = take_overrides(argv)
    flags = parser.parse_args(rest)
    verb = VERBS[flags.verb]
    if overrides and not verb.overrides:
        takers = ", ".join(name for name in VERBS if VERBS[name].overrides)
        raise errors.InputError(f"only {takers} takes --config.{next(iter(overrides))}")
    return verb.call(flags, overrides)


def _parser() -> argparse.ArgumentParser:
    called = pathlib.Path(sys.argv[0]).name
    program = "flamingo" if called == "flamingo" else "python -m flamingo_jax"
    first = VERBS["train"].examples[0]
    parser = _Parser(
        prog=program,
        usage=f"{program} VERB [flags]",
        description="Trains, scales, evaluates and uses Flamingo visual language models in JAX.",
        epilog=f"a first run, small enough for a laptop:\n  {program} {first}\n\n"
        f"a verb's flags and examples:\n  {program} VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"flamingo_jax {flamingo_jax.__version__}"
    )
    verbs = parser.add_subparsers(
        title="verbs", dest="verb", required=True, metavar="VERB", prog=program
    )
    for name, verb in VERBS.items():
        examples = "\n".join(f"  {program} {example}" for example in verb.examples)
        added = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.description,
            epilog=f"examples:\n{examples}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        verb.add_flags(added)
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills the description, but keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def take_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits `argv` into what argparse reads and the config's fields {"a.b": "value"}.

    Both `--config.a.b=value` and `--config.a.b value` are read; of two for one field the later
    counts. Nothing after `--` is a flag.

    Raises:
      InputError: for a field without a name or a value.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*rest, word, *words], overrides
        if not word.startswith("--config."):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise errors.InputError(f"{word} has no value; give {word}=VALUE")
        if not field:
            raise errors.InputError(f"{word!r} names no field; give --config.FIELD=VALUE")
        overrides[field] = value
    return rest, overrides


def _number(
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


def _say(name: str, what: object, code: int) -> int:
    """Prints one line on stderr, whatever the message holds."""
    print(f"{name}: {' '.join(str(what).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
