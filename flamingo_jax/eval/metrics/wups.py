"""WUPS of open-ended answers (Malinowski & Fritz 2014), as NExT-QA's own program counts it.

Each word of either answer is matched with the nearest of the other by Wu and Palmer's similarity of
their first senses, a similarity below the threshold counting a tenth; the products over the words
of either side are taken, words without any match left out, and the smaller counts. The program
prints it with threshold 0; Flamingo's paper does not say which it has. Of NExT-QA's types of
question, counting (DC) and yes-no (DB) want the exact answer.
Of several references the best counts.

The program lemmatises with NLTK's tagger, whose model is in no package that is kept. `lemmatise`
takes the shorter of a word's base forms as noun and as verb instead, on both sides alike; give a
function of your own to compare with numbers to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score
from flamingo_jax.eval.metrics.wordnet import NOUN, VERB, WordNet

EXACT_TYPES = frozenset(("DC", "DB"))
FAR = 0.1  # what is below the threshold counts so much of itself

# Left out of answers, as in stopwords.txt of doc-doc/NExT-OE: no, not, after and the like stay.
STOP_WORDS = frozenset(
    """
i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves
he him his himself she she's her hers herself it it's its itself they them their theirs themselves
what which who whom this that that'll these those am is are was were be been being have has had
having do does did doing a an the and but if or because as until while to from of at for with about
into through during again further then here there when where why how all any each most other some
such only own so than too very s t can will just don don't should should've now d ll m o re ve y
ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn
isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't
weren weren't won won't wouldn wouldn't
""".split()
)


def lemmatise(answer: str, wordnet: WordNet) -> list[str]:
    """An answer's words in small letters, each as the shorter of its base forms."""
    found = []
    for word in answer.lower().split():
        forms = [form for kind in (NOUN, VERB) for form in wordnet.bases(word, kind)]
        found.append(min(forms, key=len, default=word))
    return found


def one_sided(
    words: Sequence[str], others: Sequence[str], near: Callable[[str, str], float]
) -> float:
    """Product over words of the nearest other's similarity, those with none left out; 0 of none."""
    product, any_near = 1.0, False
    for word in words:
        if nearest := max((near(word, other) for other in others), default=0.0):
            product, any_near = product * nearest, True
    return product if any_near else 0.0


def wups(
    words: Sequence[str], others: Sequence[str], wordnet: WordNet, threshold: float = 0.0
) -> float:
    """WUPS of two answers' words, 0 to 1."""

    def near(word: str, other: str) -> float:
        if word == other:
            return 1.0
        first, second = wordnet.first_sense(word), wordnet.first_sense(other)
        if first is None or second is None:
            return 0.0
        similarity = wordnet.wup(first, second)
        return similarity if similarity >= threshold else FAR * similarity

    return min(one_sided(words, others, near), one_sided(others, words, near))


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    wordnet: WordNet,
    types: Sequence[str] | None = None,
    threshold: float = 0.0,
    words: Callable[[str], list[str]] | None = None,
) -> Score:
    """WUPS, 0 to 1.

    Args:
      predictions: an answer a question.
      references: of each question, one or more.
      wordnet: where senses come from.
      types: of each question, NExT-QA's two letters; None = none wants the exact answer.
      threshold: below which a similarity counts a tenth: 0, or 0.9 for WUPS@0.9.
      words: answer → its lemmas; None = `lemmatise`.

    Raises:
      InputError: for other numbers of predictions, references or types, or no reference.
    """
    scores.check_paired(predictions, references)
    scores.check_referenced(references)
    types = [""] * len(predictions) if types is None else types
    scores.check_paired(predictions, types)

    def kept(answer: str) -> list[str]:
        lemmas = lemmatise(answer, wordnet) if words is None else words(answer)
        return [word for word in lemmas if word not in STOP_WORDS]

    values = []
    for prediction, answers, kind in zip(predictions, references, types, strict=True):
        mine, theirs = kept(prediction), [kept(answer) for answer in answers]
        if kind in EXACT_TYPES:
            values.append(float(mine in theirs))
        else:
            values.append(max(wups(mine, each, wordnet, threshold) for each in theirs))
    return scores.mean(values)
