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
from flamingo_jax.data.prepare import flags as preparing
from flamingo_jax.data.prepare.flags import Parser, number
from flamingo_jax.eval import flags as asking
from flamingo_jax.overrides import take_overrides
from flamingo_jax.plan import flags as planning
from flamingo_jax.planning import child_processes

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


def _train_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "the experiment: a Python file with get_config(variant), see experiments/"
    add("--config", required=True, metavar="FILE[:VARIANT]", help=text)
    text = "the run's folder, or gs://BUCKET/FOLDER: made if absent, resumed if it holds this run"
    add("--workdir", required=True, metavar="DIR", help=text)
    text = "one batch, one step, one save and one restore of this config, then exit"
    add("--check", action="store_true", help=text)
    text = "traces steps FIRST to END - 1 of each stage into WORKDIR/profile; SIGUSR1 traces 5 more"
    add("--profile", default="", metavar="FIRST:END", help=text)
    _job_flags(parser)
    text = "sets a field of the config, as often as you like: --config.train.steps=10"
    add("--config.FIELD", metavar="VALUE", help=text)


def _job_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "in a job of several processes: the address of the first, or auto (default: a Slurm, "
    text += "Cloud TPU or MPI job is found by itself)"
    add("--coordinator", default="", metavar="HOST:PORT", help=text)
    text = "how many processes the job has"
    add("--processes", type=number(int, 1), default=0, metavar="N", help=text)
    text = "which of them this is, from 0"
    add("--process", type=number(int, 0), default=-1, metavar="I", help=text)


def _train(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import distributed, run

    membership = distributed.find(flags.coordinator, flags.processes, flags.process)
    options = {"membership": membership, "profile": flags.profile}
    return run.train(flags.config, overrides, flags.workdir, flags.check, **options)


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
    add = parser.add_argument
    text = "a run's folder, one step inside it, or prepared documents or features"
    add("folder", nargs="?", default="", metavar="DIR", help=text)
    text = "an experiment, instead of a folder: a page of its datasets is written"
    add("--config", default="", metavar="FILE[:VARIANT]", help=text)
    add("--stage", default="", help="whose datasets (default: flamingo, or the config's last)")
    text = "the page's folder (default runs/inspect/NAME-STAGE)"
    add("--out", default="", metavar="DIR", help=text)
    text = "rows of each dataset (default 12)"
    add("--rows", type=number(int, 1), default=12, metavar="N", help=text)
    add("--config.FIELD", metavar="VALUE", help="sets a field of the config")


def _inspect(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    if bool(flags.folder) == bool(flags.config):
        raise errors.InputError("give either DIR or --config=FILE; see flamingo inspect --help")
    if not flags.config and (overrides or flags.stage or flags.out):
        raise errors.InputError("--config.FIELD, --stage and --out belong to --config=FILE")
    return run.inspect(flags.folder, flags.config, overrides, flags.stage, flags.out, flags.rows)


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "pairs, clips, obelics, mmc4, texts, folder, prepared, …; or features"
    add("source", metavar="SOURCE", help=text)
    preparing.add_source(parser)
    text = "processes (default 1); the shards are the same"
    add("--workers", type=number(int, 1), default=1, metavar="N", help=text)
    preparing.add_filters(parser)
    text = "features: the experiment whose media are encoded"
    add("--config", default="", metavar="FILE[:VARIANT]", help=text)
    add("--workdir", default="", metavar="DIR", help="features: the run that will read them")
    add("--stage", default="", help="features: whose media (default flamingo)")
    add("--config.FIELD", metavar="VALUE", help="features: sets a field of the config")


def _prepare(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    if flags.source == "features":
        return _prepare_features(flags, overrides)
    if overrides or flags.config or flags.workdir or flags.stage:
        raise errors.InputError(
            "--config, --config.FIELD, --workdir and --stage belong to prepare features"
        )
    return run.prepare(preparing.make_job(flags), flags.out, flags.workers)


def _prepare_features(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    parser = Parser()
    _prepare_flags(parser)
    plain = vars(parser.parse_args(["features", "--out="]))
    own = ("out", "config", "workdir", "stage", "shard_size")
    for name, value in plain.items():
        if name not in own and vars(flags)[name] != value:
            raise errors.InputError(
                f"--{name.replace('_', '-')} belongs to documents; prepare features takes "
                "--config, --config.FIELD, --workdir, --stage and --shard-size"
            )
    if not flags.config or not flags.workdir:
        raise errors.InputError("prepare features needs --config=FILE and --workdir=DIR")
    return run.prepare_features(
        flags.out,
        config_spec=flags.config,
        overrides=overrides,
        workdir=flags.workdir,
        stage=flags.stage or "flamingo",
        shard_size=flags.shard_size,
    )


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    asking.add_evaluate(parser)
    _job_flags(parser)


def _evaluate(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import distributed, run

    names = asking.names(flags)
    job = distributed.find(flags.coordinator, flags.processes, flags.process)
    return run.evaluate(
        flags.checkpoint,
        flags.workdir,
        config_spec=flags.config,
        overrides=overrides,
        names=names,
        root=flags.root,
        membership=job,
        listed=flags.list,
    )


def _generate(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    options = vars(flags).copy()
    del options["verb"]
    return run.generate(options.pop("checkpoint"), options.pop("items"), **options)


def _plan(flags: argparse.Namespace, overrides: dict[str, str]) -> int:
    from flamingo_jax import run

    return run.plan(flags.config, overrides, **planning.options(flags))


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
    "plan": Verb(
        summary="tell whether an experiment fits a pod, without the pod",
        description="Compiles the very step that train would run, for devices that need not be "
        "there, and tells its memory by kind, its largest buffers, FLOPs, collectives, the least "
        "time of a step and what follows from it; writes plan.json and index.html. TPU topologies "
        "need the extra `plan` (libtpu), local needs nothing. Exit codes: 0 it fits, 3 it does "
        "not, 2 bad input.",
        examples=(
            "plan --config=experiments/flamingo_3b.py --topology=v5e:4x4",
            "plan --config=experiments/flamingo_9b.py --chips=64 --kind=v5p "
            "--sweep=remat,mesh,micro_batches --seconds=1500 --memory=8",
            "plan --config=experiments/openmoji.py --topology=local --workdir=runs/openmoji",
        ),
        add_flags=planning.add_to,
        call=_plan,
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
    "prepare": Verb(
        summary="filter a dataset and store it in shards for training",
        description="Writes ArrayRecord shards of a source's documents, and a manifest when all "
        "are there. The same command goes on after a kill; the shards do not depend on --workers. "
        "With features for a source: encodes every medium of a config's datasets once with its "
        "frozen encoder, for training with --config.data.features=DIR.",
        examples=(
            "prepare pairs --path=laion/{00000..00999}.tar --out=prepared/laion --workers=8",
            "prepare obelics --path=obelics/*.parquet --files=images --option min_images=2 "
            "--out=prepared/obelics --eval-images=coco/val2014",
            "prepare features --config=experiments/shared_data.py --workdir=runs/shared_data "
            "--out=prepared/features",
        ),
        add_flags=_prepare_flags,
        call=_prepare,
        overrides=True,
    ),
    "inspect": Verb(
        summary="tell what a run, a checkpoint or datasets hold",
        description="Prints the parameters of a checkpoint by part, which of them are trained and "
        "which frozen, and the steps that are saved; of prepared documents, how many there are and "
        "what was left out; of prepared features, what they were made of. With --config: writes a "
        "page of a stage's datasets as the model gets them: pictures, tokens by the image they "
        "see, targets of the loss, lengths, drops.",
        examples=(
            "inspect runs/openmoji",
            "inspect prepared/laion",
            "inspect --config=experiments/openmoji.py --rows=24 --out=runs/rows",
        ),
        add_flags=_inspect_flags,
        call=_inspect,
        overrides=True,
    ),
    "evaluate": Verb(
        summary="run few-shot benchmarks on a checkpoint",
        description="Asks a model the queries of benchmarks under a published protocol, with "
        "random shots or the most similar ones, and writes answers, figures with intervals, files "
        "for EvalAI and a report. What is answered is kept: the same command goes on after a "
        "kill. experiments/EVALUATION.md says which files each benchmark needs.",
        examples=(
            "evaluate --list --root=/data/benchmarks",
            "evaluate --checkpoint=runs/openmoji --benchmarks=coco,vqav2 --root=/data/benchmarks "
            "--workdir=runs/eval --config.shots=0,4,8 --config.selections=random,rices",
        ),
        add_flags=_evaluate_flags,
        call=_evaluate,
        overrides=True,
    ),
    "generate": Verb(
        summary="answer one prompt of pictures, clips and text",
        description="Loads a checkpoint and prints what it says after a prompt. Pictures, clips "
        "and text are read in the order given; examples before the last picture are shots.",
        examples=(
            'generate --checkpoint=runs/openmoji cat.png "a cat<EOC>" dog.png',
            "generate --checkpoint=runs/openmoji --beams=3 --max_new_tokens=16 clip.mp4",
        ),
        add_flags=asking.add_generate,
        call=_generate,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that `argv` (the process's own arguments when None) names; its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = "flamingo " + argv[0] if argv and argv[0] in VERBS else "flamingo"
    child_processes.without_tpu()
    try:
        return _dispatch(argv)
    except errors.InputError as error:
        return _say(name, error, errors.EXIT_BAD_INPUT)
    except errors.OutOfReach as error:
        return _say(name, error, errors.EXIT_DEFECT)
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
    parser = Parser(
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


def _say(name: str, what: object, code: int) -> int:
    """Prints one line on stderr, whatever the message holds."""
    print(f"{name}: {' '.join(str(what).split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
