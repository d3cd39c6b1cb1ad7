r"""VQA accuracy (Antol et al. 2015, §3; Goyal et al. 2017), equal to the official `vqaEval.py`.

An answer is right as far as people gave it: min(those who did / 3, 1), averaged over leaving out
each of the (ten) people in turn. Before that both sides are normalised, with all the quirks of the
official program: "none" is 0, a mark between two words without blanks becomes a blank unless a
number with a comma is near, at most 32 full stops go, contractions are looked up in small letters
though the table has "Im".

Where programs differ:
- the official one normalises only if the ten answers are not all the same; OpenFlamingo's copy
  always does (`always=True`). The former gives 0 for "Yes." where all ten say "yes".
- OK-VQA's published answers are stemmed; OpenFlamingo stems predictions like them beforehand, with
  NLTK's tagger. Do so in the task if its numbers are compared; nothing is stemmed here.
- VizWiz uses the official program; TextVQA's challenge normalises a little differently ("'s" is
  parted, commas and question marks go first). Flamingo and OpenFlamingo use VQAv2's for all four.
- a question may have any number of answers; the people are told apart by their place, as the
  official program tells them by `answer_id`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
FULL_STOPS = 32  # at most so many go: the official program gives a flag where a count belongs
FULL_STOP = re.compile(r"\.(?!\d)")
NUMBER_WITH_COMMA = re.compile(r"\d,\d")

# Words of the official table that only lack their apostrophe, as they are written in full.
CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Those with two apostrophes, either of which may be left out.
TWICE_CONTRACTED = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've you'd've
""".split()


# Those that follow no rule; one takes an apostrophe away. The table's "Im", "Ive" and the like are
# left out, and what it maps to itself: they can never match or never change a word.
ODDLY_CONTRACTED = {
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
    "y'alld've": "y'all'd've",
    "somebody'd": "somebodyd",
}


def contraction_table() -> dict[str, str]:
    """What is written with an apostrophe too few → as the official table writes it."""
    table = {word.replace("'", ""): word for word in CONTRACTED}
    for word in TWICE_CONTRACTED:
        first, second = word.index("'"), word.rindex("'")
        table[word[:first] + word[first + 1 :]] = word
        table[word[:second] + word[second + 1 :]] = word
    return table | ODDLY_CONTRACTED


CONTRACTIONS = contraction_table()


def trimmed(answer: str) -> str:
    """An answer on one line, without blanks at its ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def without_marks(answer: str) -> str:
    """An answer without punctuation: gone where a blank is beside it somewhere, else a blank."""
    commas = NUMBER_WITH_COMMA.search(answer) is not None
    text = answer
    for mark in MARKS:
        gone = commas or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if gone else " ")
    return FULL_STOP.sub("", text, count=FULL_STOPS)


def normalise(answer: str) -> str:
    """An answer in small letters, no marks, no articles, numbers as digits, contractions whole."""
    words = [NUMBERS.get(word, word) for word in without_marks(trimmed(answer)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(prediction: str, answers: Sequence[str], always: bool = False) -> float:
    """One question's accuracy.

    Args:
      prediction: the answer given.
      answers: of the people asked, in any number.
      always: normalise also where all people gave the same answer, as OpenFlamingo does.
    """
    given = [trimmed(answer) for answer in answers]
    prediction = trimmed(prediction)
    if always or len(set(given)) > 1:
        given = [normalise(answer) for answer in given]
        prediction = normalise(prediction)
    same = given.count(prediction)
    of_those, of_others = min(1.0, (same - 1) / 3), min(1.0, same / 3)  # leaving one of them out
    return (same * of_those + (len(given) - same) * of_others) / len(given)


def score(
    predictions: Sequence[str], references: Sequence[Sequence[str]], always: bool = False
) -> Score:
    """VQA accuracy, 0 to 1.

    Args:
      predictions: an answer a question.
      references: the people's answers to each question.
      always: as in `accuracy`.

    Raises:
      InputError: for other numbers of predictions and references, or a question without answers.
    """
    scores.check_paired(predictions, references)
    scores.check_referenced(references)
    pairs = zip(predictions, references, strict=True)
    return scores.mean([accuracy(prediction, answers, always) for prediction, answers in pairs])
