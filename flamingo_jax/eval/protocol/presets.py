"""The published protocols, as far as they were published.

- `flamingo`: Flamingo v1, §4.2 and C.3 (`<image>Output: …<EOC>`, `<image>Question: … Answer:
  …<EOC>`). It does not say which reference a shot shows, how many tokens are generated, nor whether
  a choice's log-likelihood is a sum and has `<EOC>` in it: ours are the reference that most people
  gave, 32 tokens of a caption and 16 of an answer (beams stop at `<EOC>`), the sum, and yes.
- `openflamingo`: its evaluation code of October 2023, character by character. Its 0-shot prompts
  of close-ended tasks have two text-only examples as well (the code then shows those examples'
  pictures all the same, so that the query's text sees a shot's picture: we show the query's).
- `idefics`: never published. The texts are those of transformers' guide to the model; no text-only
  examples, as IDEFICS's card names none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from flamingo_jax.data.tokenizer import EOC
from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import ANSWER, CAPTION, CHOICE, Benchmark
from flamingo_jax.eval.protocol.answers import Cleaning
from flamingo_jax.eval.protocol.templates import Template, Templates

FIRST, COMMON = "first", "common"
OWN, SHARED = "query", "shared"
SUM, MEAN = "sum", "mean"
A = TypeVar("A")


@dataclasses.dataclass(frozen=True)
class Generation:
    """How an open-ended answer is generated.

    Attributes:
      max_new_tokens: at most so many.
      beams: 1 = no search.
      length_penalty: of the search.
      stop: what ends an answer.
    """

    max_new_tokens: int
    beams: int
    length_penalty: float
    stop: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How benchmarks are asked.

    Attributes:
      name: of the preset it comes from.
      templates: the texts.
      end: what closes a shot: `<EOC>`, or any text.
      shots: the numbers of shots that are tried.
      seeds: one trial each.
      text_shots: of a 0-shot prompt: so many examples without their media, by kind of benchmark.
      reference: which of its references a shot shows: the "first", or the most "common" one (the
        first of those).
      sharing: is each "query" shown shots of its own, or are they "shared" by all of a trial?
      orders: in how many orders of its shots a close-ended query is asked; the mean log-likelihood
        decides (prompt ensembling: 6).
      beams, length_penalty: of open-ended answers.
      max_new_tokens: by kind, or by a benchmark's name.
      stop: what ends an open-ended answer.
      cleaning: what becomes of an open-ended answer, by kind, or by a benchmark's name.
      reduce: is a choice's log-likelihood the "sum" or the "mean" over its tokens?
      closing: does it count the end of a chunk after the choice?
      split: how support and queries are picked: "flamingo" or "openflamingo", see `splits`.
      support: so many examples are the support; 0 = all.
      support_per_class: of a classification, instead; 0 = as of others.
      frames, fps: of a clip.
    """

    name: str
    templates: Templates
    end: str = EOC
    shots: tuple[int, ...] = (0, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (0,)
    text_shots: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {CAPTION: 2, ANSWER: 2, CHOICE: 0}
    )
    reference: str = COMMON
    sharing: str = OWN
    orders: int = 1
    beams: int = 3
    length_penalty: float = 0.0
    max_new_tokens: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {CAPTION: 32, ANSWER: 16}
    )
    stop: tuple[str, ...] = (EOC,)
    cleaning: Mapping[str, Cleaning] = dataclasses.field(default_factory=dict)
    reduce: str = SUM
    closing: bool = True
    split: str = "flamingo"
    support: int = 2048
    support_per_class: int = 32
    frames: int = 30
    fps: float = 3.0

    def __post_init__(self):
        """Refuses what makes no sense."""
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"protocol {self.name}: {name}={getattr(self, name)!r}; {' or '.join(known)}"
                )
        counts = (*self.shots, *self.text_shots.values(), self.support, self.support_per_class)
        if not self.shots or min(counts) < 0:
            raise InputError(f"protocol {self.name}: numbers of shots and examples are 0 or more")
        least = (self.orders, self.beams, *self.max_new_tokens.values())
        if not self.seeds or min(least) < 1:
            raise InputError(
                f"protocol {self.name}: seeds, orders, beams and max_new_tokens are at least 1"
            )

    def generation(self, benchmark: Benchmark) -> Generation:
        """How the answers of an open-ended benchmark are generated."""
        limit = _own(self.max_new_tokens, benchmark)
        assert limit is not None, f"{benchmark.name} is close-ended"
        return Generation(limit, self.beams, self.length_penalty, self.stop)

    def cleaner(self, benchmark: Benchmark) -> Cleaning:
        """What becomes of the answers of an open-ended benchmark."""
        return _own(self.cleaning, benchmark) or Cleaning()


def _own(values: Mapping[str, A], benchmark: Benchmark) -> A | None:
    return values.get(benchmark.entry, values.get(benchmark.kind))


_NAMES = {
    "reference": (FIRST, COMMON),
    "sharing": (OWN, SHARED),
    "reduce": (SUM, MEAN),
    "split": ("flamingo", "openflamingo"),
}

_FLAMINGO_CUT = Cleaning(cut=("Output:", "Question:", "Answer:"), strip=True)
FLAMINGO = Protocol(
    "flamingo",
    Templates(
        caption=Template("Output:"),
        question=Template("Question: {question} Answer:"),
        label=Template("Output:"),
        choice=Template("{context}Question: {question} Answer:"),
        own={
            "visdial": Template("{context}{turns}Question: {question} Answer:"),
            "hateful_memes": Template(
                'is an image with written: "{ocr}" on it. Is it hateful? Answer:'
            ),
            "rareact": Template("Caption: a person"),
        },
    ),
    cleaning={CAPTION: _FLAMINGO_CUT, ANSWER: _FLAMINGO_CUT},
)

OPENFLAMINGO = Protocol(
    "openflamingo",
    Templates(
        caption=Template("Output:", gap="", joiner="\n", strip=True),
        question=Template("Question:{question} Short answer:", gap="", joiner="\n"),
        label=Template("Output:", gap=""),
        choice=Template("{context}Question:{question} Short answer:", gap=""),
        own={
            "visdial": Template(
                "{context}{turns}Question:{question} Short answer:",
                gap="",
                turn="Question:{question} Short answer:{answer}",
            ),
            "hateful_memes": Template(
                "is an image with: '{ocr}' written on it. Is it hateful? Answer:", gap=""
            ),
        },
    ),
    seeds=(42,),
    text_shots={CAPTION: 2, ANSWER: 2, CHOICE: 2},
    reference=FIRST,
    max_new_tokens={CAPTION: 20, ANSWER: 5, "textvqa": 10},
    cleaning={
        CAPTION: Cleaning(cut=("Output",), remove='"'),
        ANSWER: Cleaning(cut=("Question", "Answer", "Short"), last_cut=", "),
    },
    reduce=MEAN,
    closing=False,
    split="openflamingo",
)

_GUIDE = "Instruction: Provide an answer to the question. Use the image to answer.\n"
_IDEFICS_CUT = Cleaning(cut=("\n", "Question:", "User:"), strip=True)
IDEFICS = Protocol(
    "idefics",
    Templates(
        caption=Template("Describe this image.\nAssistant:", lead="User:"),
        question=Template("Question: {question} Answer:", opening=_GUIDE),
        label=Template("Category:"),
        choice=Template("{context}Question: {question} Answer:", opening=_GUIDE),
        own={
            "visdial": Template("{context}{turns}Question: {question} Answer:", opening=_GUIDE),
            "hateful_memes": Template(
                'is an image with written: "{ocr}" on it. Is it hateful? Answer:'
            ),
        },
    ),
    end="\n",
    text_shots={CAPTION: 0, ANSWER: 0, CHOICE: 0},
    reference=FIRST,
    max_new_tokens={CAPTION: 32, ANSWER: 16},
    stop=("\n",),
    cleaning={CAPTION: _IDEFICS_CUT, ANSWER: _IDEFICS_CUT},
    closing=False,
)

PRESETS = {preset.name: preset for preset in (FLAMINGO, OPENFLAMINGO, IDEFICS)}


def find(name: str) -> Protocol:
    """The preset of a name.

    Raises:
      InputError: if there is none.
    """
    if name not in PRESETS:
        raise InputError(f"there is no protocol {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
