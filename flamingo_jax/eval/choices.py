"""Multiple choice by log-likelihood, each question with its controls: another picture, and none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.eval import score as scoring
from flamingo_jax.eval.media import MediaEncoder
from flamingo_jax.eval.rows import Graph, Prompt
from flamingo_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class Question:
    """A choice about one medium.

    Attributes:
      medium: u8[F, Y, X, 3], what is asked about.
      control: u8[F, Y, X, 3], another question's medium.
      shots: (medium, text) pairs that are read before.
      prompt: the text between the medium and the choices.
      choices: continuations of the prompt.
      answer: the index of the right one.
    """

    medium: np.ndarray
    control: np.ndarray
    shots: tuple[tuple[np.ndarray, str], ...]
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class Answers:
    """Log-likelihoods of a set of questions' choices under one condition.

    Attributes:
      scores: for each question f32[choices], nats.
      lengths: for each question i32[choices], tokens scored.
      answers: i32[questions].
    """

    scores: list[np.ndarray]
    lengths: list[np.ndarray]
    answers: np.ndarray

    def part(self, which: slice) -> Answers:
        """The answers to some of the questions."""
        return Answers(self.scores[which], self.lengths[which], self.answers[which])

    def right(self, minus: Answers | None = None) -> float:
        """The share of questions whose likeliest choice is the right one, in percent.

        Args:
          minus: another condition's scores to be subtracted first (a text prior).
        """
        prior = [np.zeros(())] * len(self.scores) if minus is None else minus.scores
        best = [int(np.argmax(s - p)) for s, p in zip(self.scores, prior, strict=True)]
        return 100.0 * float(np.mean(np.asarray(best) == self.answers))

    def nll(self) -> float:
        """Negative log-likelihood of the right choices, nats a token."""
        total = sum(s[a] for s, a in zip(self.scores, self.answers, strict=True))
        tokens = sum(n[a] for n, a in zip(self.lengths, self.answers, strict=True))
        return -float(total) / float(tokens)


class Examiner:
    """Asks one model."""

    def __init__(self, graph: Graph, params: Params, tokenizer: Tokenizer, batch: int):
        """Takes the model and how many sequences it may run at once."""
        self._graph, self._params, self._tokenizer = graph, params, tokenizer
        self._encoder, self._batch = MediaEncoder(graph, params), batch

    def ask(self, questions: Sequence[Question], condition: str, ends: bool) -> Answers:
        """Scores every question's choices.

        Args:
          questions: what is asked.
          condition: "right", "shuffled" (the control's medium) or "none" (the medium is not seen).
          ends: the end of the chunk, `<EOC>`, belongs to each choice.
        """
        prompts = self._prompts(questions, condition)
        tail = [self._tokenizer.eoc] if ends else []
        choices = [[self._tokenizer.encode(c) + tail for c in q.choices] for q in questions]
        found = scoring.score(
            self._graph, self._params, prompts, choices, self._batch, uniform=True
        )
        lengths = [np.asarray([len(choice) for choice in own]) for own in choices]
        return Answers(found, lengths, np.asarray([q.answer for q in questions]))

    def _prompts(self, questions: Sequence[Question], condition: str) -> list[Prompt]:
        shown: list[np.ndarray] = []
        for q in questions:
            asked = q.control if condition == "shuffled" else q.medium
            shown += [*(medium for medium, _ in q.shots), asked]
        media = iter(self._encoder.media_tokens(shown))
        prompts = []
        for q in questions:
            own = [next(media) for _ in range(len(q.shots) + 1)]
            prompts.append(self._prompt(q, own, blind=condition == "none"))
        return prompts

    def _prompt(self, q: Question, media: list[np.ndarray], blind: bool) -> Prompt:
        t = self._tokenizer
        tokens = [] if t.bos is None else [t.bos]
        sees = [0] * len(tokens)
        for number, (_, text) in enumerate(q.shots, 1):
            part = [*t.image, *t.encode(text), t.eoc]
            tokens += part
            sees += [number] * len(part)
        part = [*t.image, *t.encode(q.prompt)]
        tokens += part
        sees += [0 if blind else len(q.shots) + 1] * len(part)
        return Prompt(tokens, sees, media)
