"""Texts of prompts: what stands around a medium, a question and an answer."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping

from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CHOICE, Benchmark, Example

FIELDS = ("question", "context", "ocr", "turns", "options")
"""What a template may name, each in braces."""


@dataclasses.dataclass(frozen=True)
class Template:
    """How one example reads: lead, medium, text, and for a shot gap, answer and end.

    Attributes:
      text: from the medium up to the answer, with `FIELDS` in braces; `{turns}` are the earlier
        turns of a dialogue, each as `turn` says, with a space after it; `{options}` are the
        choices, "(A) red (B) blue"; `{context}` has a space after it unless it is empty.
      gap: between the text and an answer, of shots and of choices that are scored.
      joiner: after the end of a shot.
      lead: before the medium.
      opening: before everything, once.
      turn: an earlier turn of a dialogue.
      strip: are answers of shots stripped?
    """

    text: str
    gap: str = " "
    joiner: str = ""
    lead: str = ""
    opening: str = ""
    turn: str = "Question: {question} Answer: {answer}"
    strip: bool = False

    def __post_init__(self):
        """Refuses a field that there is not."""
        for text, known in ((self.text, FIELDS), (self.turn, ("question", "answer"))):
            try:
                named = [name for _, name, _, _ in string.Formatter().parse(text)]
            except ValueError as error:
                raise InputError(f"template {text!r}: {error}") from error
            unknown = [name for name in named if name is not None and name not in known]
            if unknown:
                raise InputError(
                    f"template {text!r} names {{{unknown[0]}}}; it may name {', '.join(known)}"
                )

    def render(self, example: Example) -> str:
        """The text of an example up to its answer."""
        turns = [self.turn.format(question=q, answer=a) for q, a in example.turns]
        letters = zip(string.ascii_uppercase, example.choices, strict=False)
        return self.text.format(
            question=example.question,
            context=f"{example.context} " if example.context else "",
            ocr=example.ocr,
            turns="".join(f"{turn} " for turn in turns),
            options=" ".join(f"({letter}) {choice}" for letter, choice in letters),
        )

    def answered(self, example: Example, answer: str) -> str:
        """The text of a shot, without its end."""
        return self.render(example) + self.gap + (answer.strip() if self.strip else answer)


@dataclasses.dataclass(frozen=True)
class Templates:
    """The templates of a protocol.

    Attributes:
      caption: of what has no question.
      question: of what has one.
      label: of a choice without a question: a class.
      choice: of a choice with a question.
      own: of single benchmarks, by their names.
    """

    caption: Template
    question: Template
    label: Template
    choice: Template
    own: Mapping[str, Template] = dataclasses.field(default_factory=dict)

    def of(self, benchmark: Benchmark) -> Template:
        """The template of a benchmark: its own, or by its kind and whether it asks questions."""
        if benchmark.entry in self.own:
            return self.own[benchmark.entry]
        asks = any(query.question for query in benchmark.queries[:1])
        if benchmark.kind == CHOICE:
            return self.choice if asks else self.label
        return self.question if asks else self.caption
