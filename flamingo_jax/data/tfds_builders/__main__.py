"""`tfds build` of the set flamingo_documents, where TensorFlow is not installed.

    python -m flamingo_jax.data.tfds_builders --config=pairs --manual_dir=… --data_dir=…

TFDS's own program imports TensorFlow before it looks at its arguments, for a verb of its that
converts formats (4.9.10). Its verb `build` does without, and is called here with the same flags.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import sys
from collections.abc import Sequence

from flamingo_jax.errors import EXIT_BAD_INPUT, EXIT_OK, InputError

PROGRAM = "flamingo_jax.data.tfds_builders"
FOLDER = pathlib.Path(__file__).parent / "flamingo_documents"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds what `argv` (the process's own arguments when None) names."""
    from tensorflow_datasets.scripts.cli import build, cli_utils

    parse = cli_utils.make_flags_parser(build.Args, f"tfds build {FOLDER}")
    try:
        arguments = sys.argv[1:] if argv is None else argv
        command = parse([PROGRAM, str(FOLDER), *arguments])
        _check_config(command.generation.config or "")
        command.execute()
    except InputError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    return EXIT_OK


def _check_config(text: str) -> None:
    """Says what is wrong with a configuration in JSON; TFDS hands its fields on unseen."""
    if not text.startswith("{"):
        return
    builder = importlib.import_module(f"{__package__}.{FOLDER.name}.{FOLDER.name}_dataset_builder")
    fields = [field.name for field in dataclasses.fields(builder.DocumentsConfig)]
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InputError(f"--config {text!r} is no JSON ({error})") from error
    if unknown := sorted(given.keys() - fields):
        raise InputError(f"--config has no field {unknown[0]!r}; it has {', '.join(fields)}")
    if "name" not in given:
        raise InputError("--config has no name; the set is stored by it")


if __name__ == "__main__":
    sys.exit(main())
