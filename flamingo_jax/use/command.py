"""The verb `generate`: one prompt from the shell, or a dialogue."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import jax

from flamingo_jax.data.prompt import IMAGE_SUFFIXES, VIDEO_SUFFIXES, text
from flamingo_jax.errors import InputError
from flamingo_jax.use.loading import load
from flamingo_jax.use.model import LoadedFlamingo

USER, ANSWER = "User: ", "Flamingo:"
"""How turns of a dialogue begin."""


def generate_command(
    checkpoint: str,
    items: Sequence[str],
    max_new_tokens: int = 32,
    beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: bool = False,
    chat: bool = False,
    lines: TextIO | None = None,
    output: TextIO | None = None,
) -> None:
    """Prints what the model says after a prompt, or holds a dialogue.

    Args:
      checkpoint: a run's folder, or one step inside it.
      items: in order; a path of a picture or a clip is shown, anything else is text.
      max_new_tokens: at most so many.
      beams: width of beam search.
      temperature: 0 = the likeliest token.
      top_p: draw from the likeliest that make up this probability.
      seed: of the draws.
      stream: print the text while it is made.
      chat: after the items, answer line after line; a line that is the path of a picture or a clip
        shows it.
      lines: what a dialogue reads; None = standard input.
      output: None = standard output.

    Raises:
      InputError: for a missing file, or settings that exclude each other.
    """
    reads: TextIO = sys.stdin if lines is None else lines
    prints: TextIO = sys.stdout if output is None else output
    if beams > 1 and (stream or chat):
        raise InputError("a beam search knows its first word last: leave out --beams or --stream")
    prompt = read_items(items)
    # One prompt at a time: on CPUs f32 weights are several times faster than bf16 ones.
    flamingo = load(checkpoint, dtype="float32" if jax.default_backend() == "cpu" else None)
    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    if chat:
        _converse(flamingo, prompt, max_new_tokens, drawing, reads, prints)
    elif stream:
        _print(flamingo.stream(prompt, max_new_tokens, **drawing), prints)
    else:
        (said,) = flamingo.generate([prompt], max_new_tokens, beams=beams, **drawing)
        _print(iter([said]), prints)


def read_items(items: Sequence[str]) -> list[Any]:
    """Words of a command line as items of a prompt; texts that follow each other get a space.

    Raises:
      InputError: for a path of a picture or a clip that does not exist.
    """
    prompt: list[Any] = []
    for item in items:
        medium = _as_medium(item)
        if medium is None and prompt and isinstance(prompt[-1], str):
            prompt[-1] = f"{prompt[-1]} {item}"
        else:
            prompt.append(item if medium is None else medium)
    return prompt


def _as_medium(item: str) -> pathlib.Path | None:
    """The path of a picture or a clip, or None for text."""
    path = pathlib.Path(item)
    if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        return None
    try:
        if path.is_file():
            return path
    except OSError:  # a text too long for a name
        return None
    if any(character.isspace() for character in item):
        return None
    raise InputError(f"there is no file {item!r}; give the path of a picture or a clip, or text")


def _print(pieces: Iterator[str], output: TextIO) -> str:
    """Prints pieces as they come, and a line's end; returns them all."""
    said = []
    for piece in pieces:
        said.append(piece)
        print(piece, end="", file=output, flush=True)
    print(file=output, flush=True)
    return "".join(said)


def _converse(
    flamingo: LoadedFlamingo,
    prompt: list[Any],
    max_new_tokens: int,
    drawing: dict[str, Any],
    lines: TextIO,
    output: TextIO,
) -> None:
    """Answers line after line until the lines end, with all that was said before as the prompt."""
    asking = lines is sys.stdin and sys.stdin.isatty()
    while True:
        if asking:
            print(USER, end="", file=output, flush=True)
        line = lines.readline()
        if not line:
            return
        line = line.strip()
        if not line:
            continue
        try:
            medium = _as_medium(line)
            if medium is not None:
                prompt.append(flamingo.pixels(medium))
                continue
            asked = [*prompt, text(f"{USER}{line}\n{ANSWER}")]
            pieces = flamingo.stream(
                asked, max_new_tokens, stop=("<EOC>", f"\n{USER.strip()}"), **drawing
            )
        except InputError as error:
            print(f"({error})", file=output, flush=True)
            continue
        said = _print(pieces, output)
        prompt = [*asked, text(f"{said}\n")]
