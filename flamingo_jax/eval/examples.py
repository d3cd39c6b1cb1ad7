"""What every benchmark is read into: examples, and the benchmark they belong to."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.prompt import Video
from flamingo_jax.data.readers.record import Reader


@dataclasses.dataclass(frozen=True)
class Stored:
    """An encoded picture in a record of a set.

    Attributes:
      reader: of the set.
      index: of the record.
      field: its name.
    """

    reader: Reader
    index: int
    field: str

    def read(self) -> bytes:
        """The picture's bytes.

        Raises:
          BadRecord: if the record cannot be read, or there are no such bytes.
        """
        data = self.reader[self.index].fields.get(self.field)
        if not isinstance(data, bytes):
            raise BadRecord("no image", f"record {self.index}, field {self.field!r}")
        return data


Medium = pathlib.Path | Video | Stored
"""A picture in a file, a clip (or a part of one) in a file, or a picture in a record."""

CAPTION, ANSWER, CHOICE = "caption", "answer", "choice"
KINDS = (CAPTION, ANSWER, CHOICE)
"""Open-ended caption, open-ended answer, close-ended: what a model has to give."""

METRICS = (
    "cider",
    "vqa_accuracy",
    "top1",
    "top1_top5",
    "ivqa_accuracy",
    "wups",
    "ndcg",
    "roc_auc",
    "mwap",
)
"""Figures that benchmarks are judged by; `eval/metrics` computes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One thing to ask, or to show as a shot.

    Attributes:
      key: unique in its benchmark and the same at every reading, from the authors' own ids.
      medium: what is seen; None = nothing (a question of ScienceQA without a picture).
      question: without the medium's part of the prompt; "" for captions and labels.
      context: what stands before the question: a dialogue's caption, a hint, a lecture.
      turns: earlier (question, answer) pairs of a dialogue.
      ocr: the text written in the picture, where the benchmark gives it.
      answers: the references in the authors' form; () where the split's are not public.
      choices: of a close-ended example, in the authors' order.
      right: the index of the right choice; None where it is not public or there are several.
      relevance: of each choice, from 0 to 1, where the benchmark grades them (VisDial).
      label: the name of its class, "" without classes.
      about: ids and types that metrics and files to be submitted go by, as the authors name them.
    """

    key: str
    medium: Medium | None
    question: str = ""
    context: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    ocr: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: int | None = None
    relevance: tuple[float, ...] = ()
    label: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        """Refuses what contradicts itself: a reader's defect, not a user's."""
        if self.right is not None and not 0 <= self.right < len(self.choices):
            raise ValueError(f"{self.key}: choice {self.right} of {len(self.choices)}")
        if self.relevance and len(self.relevance) != len(self.choices):
            raise ValueError(
                f"{self.key}: {len(self.relevance)} grades, {len(self.choices)} choices"
            )

    def is_of(self, other: Example) -> bool:
        """Is it the same example, or one of the very same medium? Such a one is no fair shot."""
        return self.key == other.key or (self.medium is not None and self.medium == other.medium)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A set of examples to ask, and those that shots may be taken from.

    Attributes:
      name: as users write it: "vqav2".
      title: as people read it: "VQAv2".
      kind: one of `KINDS`.
      metric: one of `METRICS`.
      support: the training split, all of it: the protocol decides which part is used.
      queries: the split that is asked, all of it.
      split: which of the authors' splits the queries are: "test", "val".
      development: of how many queries the paper's validation subset has, where the benchmark was
        used to make decisions (Flamingo v1, C.3); 0 = it was not.
      classes: names of all classes, of a classification; () = the choices differ by example.
      left_out: how many examples were dropped because their clip is not there.
      files: what was read.
      entry: its name among `tasks.benchmarks`, by which texts, limits and files for servers are
        found; "" = `name`. One benchmark may be asked twice under two names.
    """

    name: str
    title: str
    kind: str
    metric: str
    support: Sequence[Example]
    queries: Sequence[Example]
    split: str
    development: int = 0
    classes: tuple[str, ...] = ()
    left_out: int = 0
    files: tuple[str, ...] = ()
    entry: str = ""

    def __post_init__(self):
        """Refuses another kind or metric than there are."""
        if self.kind not in KINDS or self.metric not in METRICS:
            raise ValueError(f"{self.name}: kind {self.kind!r}, metric {self.metric!r}")
        if not self.entry:
            object.__setattr__(self, "entry", self.name)

    @property
    def is_scored(self) -> bool:
        """Are the queries' references public? Otherwise answers can only be submitted."""
        return any(query.answers or query.right is not None for query in self.queries)
