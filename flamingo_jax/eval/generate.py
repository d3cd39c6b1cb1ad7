"""Text after prompts: greedy, drawn, or by beam search; all at once or as a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flamingo_jax.eval import decoding
from flamingo_jax.eval.beams import beam_search
from flamingo_jax.eval.rows import Graph, Prompt, Rows, batches, bucket, make_rows
from flamingo_jax.eval.sampling import Chance
from flamingo_jax.eval.shared import Shared
from flamingo_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to generate.

    Attributes:
      max_new_tokens: at most so many, the stop token included.
      stop: ids of the tokens that end a text.
      beams: 1 = no search.
      length_penalty: of the search, see `beams`; 0 = the likeliest sequence.
      temperature: 0 = the likeliest token.
      top_k: draw from the k likeliest; 0 = from all.
      top_p: draw from the likeliest that make up this probability.
      seed: of the draws.
    """

    max_new_tokens: int = 32
    stop: tuple[int, ...] = ()
    beams: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        """Refuses what makes no sense."""
        if self.max_new_tokens < 1 or self.beams < 1:
            raise ValueError("max_new_tokens and beams are at least 1")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature and top_k are at least 0, top_p above 0 and at most 1")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("a beam search draws nothing: set temperature to 0, or beams to 1")

    @property
    def chance(self) -> Chance | None:
        """How tokens are drawn; None = they are not."""
        if self.temperature == 0:
            return None
        return Chance(
            np.float32(self.temperature),
            np.int32(self.top_k),
            np.float32(self.top_p),
            np.uint32(self.seed),
        )


@dataclasses.dataclass(frozen=True)
class Generated:
    """What came after a prompt.

    Attributes:
      tokens: the new ids, the stop token at the end included, if one was reached.
      log_likelihood: of these tokens, in nats.
    """

    tokens: tuple[int, ...]
    log_likelihood: float


def generate(
    graph: Graph,
    params: Params,
    prompts: Sequence[Prompt],
    settings: Settings,
    batch: int = 32,
    first: int = 0,
    after: Shared | None = None,
) -> list[Generated]:
    """Generates after each prompt; the result depends neither on the batch nor on padding.

    Args:
      graph: the model.
      params: its parameters.
      prompts: any number.
      settings: how.
      batch: rows decoded at once; a prompt takes as many rows as there are beams.
      first: the number of the first prompt; with the seed it decides what a prompt draws.
      after: what stands before every prompt.
    """
    results: dict[int, Generated] = {}
    for numbers in batches(prompts, max(batch // settings.beams, 1)):
        own, drawn_as = [prompts[n] for n in numbers], [first + n for n in numbers]
        rows = make_rows(graph, own, drawn_as, start=after.tokens if after else 0)
        found = _generate_rows(graph, params, rows, settings, after)
        tokens, counts, totals = map(np.asarray, found)
        for row, number in enumerate(numbers):
            new = tuple(int(token) for token in tokens[row, : counts[row]])
            results[number] = Generated(new, float(totals[row]))
    return [results[number] for number in range(len(prompts))]


def _generate_rows(
    graph: Graph, params: Params, rows: Rows, settings: Settings, after: Shared | None
) -> Any:
    room = bucket(settings.max_new_tokens)
    limit = np.int32(settings.max_new_tokens)
    prefix = after.before(rows, room) if after else None
    logits, cache = decoding.prefill(graph, params, rows, room, prefix)
    if settings.beams > 1:
        stop = np.asarray(settings.stop, np.int32)
        penalty = np.float32(settings.length_penalty)
        return beam_search(
            graph, params, rows, logits, cache, stop, limit, penalty, settings.beams, room
        )
    # No token is -1: one shape for however many stop tokens there are.
    stop = np.full((bucket(len(settings.stop)),), -1, np.int32)
    stop[: len(settings.stop)] = settings.stop
    return decoding.decode(graph, params, rows, logits, cache, stop, limit, settings.chance, room)


def stream(graph: Graph, params: Params, prompt: Prompt, settings: Settings) -> Iterator[int]:
    """Yields the new tokens of one prompt as they come; the same ones as `generate`.

    Raises:
      ValueError: for a beam search, which knows its first token last.
    """
    if settings.beams > 1:
        raise ValueError("a beam search cannot be streamed: set beams to 1")
    rows = make_rows(graph, [prompt], [0])
    chance = settings.chance
    logits, cache = decoding.prefill(graph, params, rows, bucket(settings.max_new_tokens))
    token = decoding.first_token(logits, chance, rows.index, np.int32(0))
    for step in range(1, settings.max_new_tokens + 1):
        ahead = None
        if step < settings.max_new_tokens:
            # The device goes on while the host fetches a token and does with it what it likes.
            ahead, cache = decoding.next_token(
                graph, params, rows, token, np.int32(step), cache, chance
            )
        new = int(np.asarray(token)[0])
        yield new
        if new in settings.stop or ahead is None:
            return
        token = ahead
