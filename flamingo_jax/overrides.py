"""Fields of a config on the command line: --config.a.b=value."""

from __future__ import annotations

from flamingo_jax import errors


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
