"""What many prompts begin with, read once: their shots, where all queries share them.

Its keys and values stand in memory once, whatever the batch and the beams. Results equal those of
whole prompts up to the rounding of sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flamingo_jax.eval import decoding
from flamingo_jax.eval.rows import Graph, Prompt, Rows, Sizes, bucket, make_rows, power_of_two
from flamingo_jax.model.cache import Prefix
from flamingo_jax.shapes import Params

REACH = 256
"""Tokens that may follow, at least: fewer programs than one for each length."""


@dataclasses.dataclass
class Shared:
    """A prompt that stands before others.

    Attributes:
      graph: the model.
      params: its parameters.
      prompt: the beginning, with its media.
    """

    graph: Graph
    params: Params
    prompt: Prompt

    def __post_init__(self):
        """Nothing is read before the first use tells how far it has to reach."""
        self._prefix: Prefix | None = None
        self._reach = 0

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.prompt.tokens)

    def is_of(self, prompt: Prompt) -> bool:
        """Is it this very prompt, media included?"""
        mine = self.prompt
        return (
            mine.tokens == prompt.tokens
            and mine.media_of_token == prompt.media_of_token
            and len(mine.media) == len(prompt.media)
            and all(map(np.array_equal, mine.media, prompt.media))
        )

    def before(self, rows: Rows, room: int) -> Prefix:
        """What the model keeps of it, for rows that get `room` new tokens at most."""
        reach = max(power_of_two(rows.tokens.shape[1] + room), REACH)
        prefix = self._prefix
        if prefix is None or self._reach < reach:
            sizes = Sizes(1, bucket(self.tokens), power_of_two(len(self.prompt.media)))
            own = make_rows(self.graph, [self.prompt], [0], sizes)
            prefix = decoding.read_prefix(self.graph, self.params, own, reach)
            self._prefix, self._reach = prefix, reach
        return prefix


def common(shared: Sequence[int], prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens of `shared` all prompts begin with, leaving each at least one of its own.

    Text may become other tokens where it goes on: then the last ones are not shared.
    """
    count = len(shared)
    for tokens in prompts:
        count = min(count, len(tokens) - 1)
        while tokens[:count] != shared[:count]:
            count -= 1
    return count
