"""Lays out prompts: shots and a query as the parts that `flamingo.generate` and `score` take."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from flamingo_jax.data.prompt import Text, Video, text
from flamingo_jax.data.tokenizer import EOC, IMAGE
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import ANSWER, CHOICE, Benchmark, Example, Stored
from flamingo_jax.eval.protocol.presets import COMMON, SHARED, Protocol
from flamingo_jax.eval.protocol.shots import Shots
from flamingo_jax.eval.protocol.splits import Chosen


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A query with its shots.

    Attributes:
      query: its key.
      shots: the shots' keys, in the prompt's order.
      support: the shots' parts: texts (`Text` where nothing is a control token) and media.
      own: the query's parts.
      choices: what may follow, of a close-ended query: the continuations whose log-likelihoods are
        compared, in the order of its choices; () = an answer is generated.
    """

    query: str
    shots: tuple[str, ...]
    support: tuple[Any, ...]
    own: tuple[Any, ...]
    choices: tuple[Text, ...] = ()

    @property
    def parts(self) -> list[Any]:
        """The whole prompt."""
        return [*self.support, *self.own]

    def shown(self, image: str = IMAGE, end: str = EOC) -> str:
        """The prompt as people read it, the tokens of media and ends written as a family does."""
        return "".join(
            str(part)
            if isinstance(part, Text)
            else part.replace(EOC, end)
            if isinstance(part, str)
            else image
            for part in self.parts
        )


class Asker:
    """Prompts for the queries of one benchmark in one trial."""

    def __init__(
        self, protocol: Protocol, benchmark: Benchmark, chosen: Chosen, seed: int, trial: int = 0
    ) -> None:
        """Takes the protocol, what is asked and shown, and what decides the draws."""
        self._protocol, self._kind = protocol, benchmark.kind
        self._support = chosen.support
        self._by_key: dict[str, Example] | None = None
        self._template = protocol.templates.of(benchmark)
        # RareAct has nothing to take them from.
        self._text_shots = protocol.text_shots.get(benchmark.kind, 0) if chosen.support else 0
        self._shots = Shots(
            chosen.support,
            benchmark.name,
            seed,
            trial,
            chosen.queries if protocol.sharing == SHARED else None,
        )

    def prompts(
        self, query: Example, shots: int, neighbours: Sequence[int] | None = None
    ) -> list[Prompt]:
        """The prompts of a query, one for each order of its shots.

        Args:
          query: what is asked.
          shots: how many examples it is shown; 0 = none but the text-only ones of the protocol.
          neighbours: places in the support, the most similar first (RICES); None = random shots.

        Raises:
          InputError: if the support is too small, or a shot has no reference.
        """
        count = shots or self._text_shots
        if neighbours is None:
            shown = self._shots.draw(query, count)
        else:
            shown = self._shots.nearest(query, neighbours, count)
        orders = self._protocol.orders if self._kind == CHOICE else 1
        ordered = self._shots.orders(query, shown, orders)
        return [self._prompt(query, each, bool(shots)) for each in ordered]

    def again(self, query: Example, shots: Sequence[str], seen: bool) -> Prompt:
        """The prompt of a query with these shots, by their keys; `seen`: with their media."""
        if self._by_key is None:
            self._by_key = {example.key: example for example in self._support}
        return self._prompt(query, [self._by_key[key] for key in shots], seen)

    def _prompt(self, query: Example, shots: Sequence[Example], seen: bool) -> Prompt:
        template = self._template
        support: list[Any] = [text(template.opening)] if template.opening else []
        for shot in shots:
            support += self._lead(shot, seen)
            support.append(text(template.answered(shot, self._reference(shot))))
            support.append(self._protocol.end + template.joiner)
        own = [*self._lead(query, True), text(template.render(query))]
        choices = query.choices if self._kind == CHOICE else ()
        return Prompt(
            query.key,
            tuple(shot.key for shot in shots),
            tuple(support),
            tuple(own),
            tuple(text(template.gap + choice) for choice in choices),
        )

    def _lead(self, example: Example, seen: bool) -> list[Any]:
        lead = [text(self._template.lead)] if self._template.lead else []
        return [*lead, self.medium(example)] if seen and example.medium is not None else lead

    def medium(self, example: Example) -> Any:
        """What a prompt shows of an example's medium.

        Raises:
          InputError: for a record whose picture is broken.
        """
        medium = example.medium
        if isinstance(medium, Video):
            return dataclasses.replace(medium, frames=self._protocol.frames, fps=self._protocol.fps)
        if isinstance(medium, Stored):
            try:
                return Image.open(io.BytesIO(medium.read()))
            except (OSError, ValueError) as error:  # BadRecord is a ValueError
                raise InputError(f"the picture of {example.key!r} is broken: {error}") from error
        return medium

    def _reference(self, example: Example) -> str:
        """What a shot answers: its right choice, or one of its references that is not blank."""
        if self._kind == CHOICE and example.right is not None:
            return example.choices[example.right]
        given = [answer for answer in example.answers if answer.strip()]
        if not given:
            raise InputError(f"the example {example.key!r} has no answer to show")
        if self._protocol.reference == COMMON and self._kind == ANSWER:
            return collections.Counter(given).most_common(1)[0][0]
        return given[0]
