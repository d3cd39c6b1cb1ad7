"""What callers give, checked: one sentence says what is wrong and what to give instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flamingo_jax.data.prompt import encode_continuation
from flamingo_jax.data.tokenizer import EOC, Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval.generate import Settings
from flamingo_jax.shapes import Batch


def prompts(given: Any) -> Sequence[Any]:
    """A list of prompts, each to be checked by itself."""
    if not isinstance(given, list | tuple):
        raise InputError(
            f"prompts are a {type(given).__name__}, not a list of prompts; a prompt is a list of "
            "texts and media"
        )
    if given and not any(isinstance(one, list | tuple) for one in given):
        raise InputError(
            "prompts are a list of prompts, each a list of texts and media; wrap a single prompt "
            "in another [ ]"
        )
    return given


def settings(
    max_new_tokens: int,
    stop: tuple[int, ...],
    beams: int,
    length_penalty: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Settings:
    """How to generate."""
    try:
        return Settings(
            max_new_tokens, stop, beams, length_penalty, temperature, top_k, top_p, seed
        )
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def stops(
    given: Sequence[str], tokenizer: Tokenizer, new_tokens: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids of tokens and texts that end a text; `new_tokens`: does the model know `<EOC>`?"""
    if isinstance(given, str) or not all(isinstance(one, str) and one for one in given):
        raise InputError(f"stop={given!r}: give a list of texts, such as ['<EOC>']")
    ids = [] if tokenizer.eos is None else [tokenizer.eos]
    if EOC in given and new_tokens:
        ids.append(tokenizer.eoc)
    return tuple(ids), tuple(one for one in given if one != EOC)


def choices(
    given: Sequence[str] | Sequence[Sequence[str]],
    count: int,
    tokenizer: Tokenizer,
    closing: bool,
) -> list[list[list[int]]]:
    """Ids of the choices of each of `count` prompts; `closing` adds `<EOC>` to each."""
    if isinstance(given, str) or not len(given):
        raise InputError("score takes a list of choices, or for each prompt a list of its own")
    shared = all(isinstance(choice, str) for choice in given)
    own: Sequence[Any] = [given] * count if shared else given
    if len(own) != count:
        raise InputError(f"score got {count} prompts, and choices for {len(own)}")
    tail = [tokenizer.eoc] if closing else []
    made = []
    for number, texts in enumerate(own):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"the choices of prompt {number} are {texts!r}; give a list of texts")
        row = []
        for place, text in enumerate(texts):
            where = f"prompt {number}, choice {place}"
            row.append(encode_continuation(text, tokenizer, where) + tail)
            if not row[-1]:
                raise InputError(f"{where} is empty; give text, or closing=True")
        made.append(row)
    return made


def batch(
    tokens: Any, pixels: Any, media_of_token: Any, positions: Any, size: int, width: int
) -> Batch:
    """Arrays of a full forward pass as a batch without padding; see `LoadedFlamingo.logits`.

    Args:
      tokens: i32[B, T].
      pixels: u8[B, M, Y, X, 3], u8[B, M, F, Y, X, 3] or None.
      media_of_token: i32[B, T] or None.
      positions: i32[B, T] or None.
      size: Y and X.
      width: E of the encoder's features, for rows without media.
    """
    tokens = np.asarray(tokens)
    B, T = tokens.shape if tokens.ndim == 2 else (0, 0)
    sees = np.zeros((B, T), np.int32) if media_of_token is None else np.asarray(media_of_token)
    places = np.arange(T)[None].repeat(B, 0) if positions is None else np.asarray(positions)
    whole = all(np.issubdtype(a.dtype, np.integer) for a in (tokens, sees, places))
    if (
        not tokens.size
        or not whole
        or tokens.min() < 0
        or not tokens.shape == sees.shape == places.shape
    ):
        raise InputError(
            "logits takes tokens i32[B, T], and media_of_token and positions i32 of that shape"
        )
    if pixels is None:
        # One absent medium: a model that sees runs its gated layers over any text.
        media = np.zeros((B, 1, 1, 1, width), ml_dtypes.bfloat16)
        frames = np.zeros((B, 1), np.int32)
    else:
        media = np.asarray(pixels)
        media = media[:, :, None] if media.ndim == 5 else media
        good = media.dtype == np.uint8 and media.ndim == 6 and len(media) == B
        if not good or media.shape[3:] != (size, size, 3):
            raise InputError(
                f"logits takes pixels u8[{B}, M, {size}, {size}, 3], or with a dim of frames after "
                f"M, not {media.dtype}[{', '.join(map(str, np.shape(pixels)))}]"
            )
        frames = np.full(media.shape[:2], media.shape[2], np.int32)
    return Batch(
        tokens=tokens.astype(np.int32),
        positions=places.astype(np.int32),
        media=media,
        frames=frames,
        media_of_token=sees.astype(np.int32),
        loss_mask=np.zeros((B, T), np.float32),
    )
