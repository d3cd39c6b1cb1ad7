"""mWAP of RareAct (Miech et al. 2020, §4), equal to the data set's own program.

Each action (verb, noun) with a positive clip ranks its clips: its positives; as hard negatives what
was annotated so (2, 3, 4) and positives of actions that share its verb or its noun; as negatives
what was annotated so (0) and positives of actions that share neither. In each of the three groups
a clip weighs one over the group's clips of the same video. The weighted average precisions are
averaged over actions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import scores
from flamingo_jax.eval.metrics.scores import Score, Table

POSITIVE, NEGATIVE = 1, 0


@dataclasses.dataclass(frozen=True)
class Clip:
    """A row of rareact.csv.

    Attributes:
      video: of which the clip is a part.
      verb, noun: of the action that it was annotated for.
      action: its number, the column of the scores.
      annotation: 1 positive; 2, 3, 4 hard negative (verb right, noun right, not together); 0
        negative.
    """

    video: str
    verb: str
    noun: str
    action: int
    annotation: int


@dataclasses.dataclass(frozen=True)
class Ranking:
    """An action's clips, best first.

    Attributes:
      clips: i64[m] their places in the list of all.
      labels: f64[m] 1 for positives.
      weights: f64[m] one over the clips of the same video and group.
      ends: places after which the score changes: between clips with the same score there is no
        order.
    """

    clips: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    ends: np.ndarray


def grouped(clips: Sequence[Clip], verb: str, noun: str) -> tuple[list[int], list[int], list[int]]:
    """Places of an action's positives, negatives and hard negatives."""
    positives, negatives, hard = [], [], []
    for at, clip in enumerate(clips):
        same = (clip.verb == verb) + (clip.noun == noun)
        if same == 2:
            kinds = {POSITIVE: positives, NEGATIVE: negatives}
            kinds.get(clip.annotation, hard).append(at)
        elif clip.annotation == POSITIVE:
            (hard if same else negatives).append(at)
    return positives, negatives, hard


def ranking(
    clips: Sequence[Clip], groups: tuple[list[int], list[int], list[int]], column: np.ndarray
) -> Ranking:
    """An action's clips ranked.

    Args:
      clips: all clips.
      groups: of the action, as `grouped` gives them.
      column: f64[clips] the action's score of each clip.
    """
    places = np.array([at for group in groups for at in group])
    weights = []
    for group in groups:
        count = Counter(clips[at].video for at in group)
        weights += [1 / count[clips[at].video] for at in group]
    labels = np.zeros(len(places))
    labels[: len(groups[0])] = 1
    order = np.argsort(-column[places], kind="stable")
    ends = np.flatnonzero(np.diff(column[places][order], append=-np.inf))
    return Ranking(places[order], labels[order], np.array(weights)[order], ends)


def average_precision(ranked: Ranking, counts: np.ndarray) -> np.ndarray:
    """i64[R, clips] how often each clip was drawn → f64[R]; NaN where no positive was."""
    weights = ranked.weights * counts[:, ranked.clips]
    right = np.cumsum(weights * ranked.labels, axis=1)[:, ranked.ends]
    taken = np.cumsum(weights, axis=1)[:, ranked.ends]
    with np.errstate(invalid="ignore"):
        precision = np.where(taken > 0, right / taken, 0)
        recall = right / right[:, -1:]
    return (np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1)


def score(predictions: Table, references: Sequence[Clip]) -> Score:
    """mWAP, 0 to 1.

    In resampled sets weights are those of the whole set, and an action without a positive clip is
    left out.

    Args:
      predictions: a row a clip, a column an action.
      references: the clips.

    Raises:
      InputError: for other numbers of predictions and clips, an action without a column, two
        numbers for one action, or no positive clip.
    """
    scores.check_paired(predictions, references)
    table = scores.matrix(predictions, "scores")
    actions: dict[tuple[str, str], int] = {}
    for at, clip in enumerate(references):
        if actions.setdefault((clip.verb, clip.noun), clip.action) != clip.action:
            raise InputError(f"clip {at}: the action {clip.verb} {clip.noun} has two numbers")
        if not 0 <= clip.action < table.shape[1]:
            raise InputError(f"clip {at}: action {clip.action} has no column, of {table.shape[1]}")
    rankings = []
    for (verb, noun), column in actions.items():
        groups = grouped(references, verb, noun)
        if groups[0]:
            rankings.append(ranking(references, groups, table[:, column]))
    if not rankings:
        raise InputError("no clip is positive for its action: RareAct's mWAP is of those that are")

    def resampled(counts: np.ndarray) -> np.ndarray:
        """i64[R, clips] → f64[R]."""
        each = np.stack([average_precision(one, counts) for one in rankings])
        known = np.isfinite(each)
        with np.errstate(invalid="ignore"):
            return np.where(known, each, 0).sum(axis=0) / known.sum(axis=0)

    whole = resampled(np.ones((1, len(references)), np.int64))
    return Score(float(whole[0]), len(references), np.empty(0), resampled)
