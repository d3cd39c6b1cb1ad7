"""Which pictures are for training and which are held out, the same for every run and every seed.

Two kinds are held out, so that two questions can be asked apart:
- `combinations`: pictures with skin tones whose words (the base name, who, which tone) are all in
  the training set, but never together. Neither picture nor name is in any stage, plain text too.
- `concepts`: pictures whose family has no other member. No stage shows the picture; the language
  model may have read the name.

A third of each is for validation (settings are chosen on it), the others are for the test. What is
held out follows from a hash of the code points and a fixed number, never from the run's seed: runs
with different seeds are asked the same questions.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

from flamingo_jax.data.openmoji.pictures import Drawing

SPLIT_SEED = 17
TRAIN = "train"
COMBINATIONS = "combinations"
CONCEPTS = "concepts"

_COMBINATIONS_SHARE = 0.15  # of all pictures with skin tones
_CONCEPTS = 195  # at most; and no more than a sixth of the candidates
_VALIDATION = 3  # every third is for validation
_TONED_LEFT = 2  # other toned pictures that each base name keeps for training


def assign(drawings: Sequence[Drawing]) -> list[tuple[str, str]]:
    """The group and the split of each drawing.

    Returns:
      (TRAIN, "train"), or COMBINATIONS or CONCEPTS with "validation" or "test".
    """
    order = sorted(range(len(drawings)), key=lambda i: _hash(drawings[i].code))
    roles = [(TRAIN, "train")] * len(drawings)
    for group, chosen in (
        (COMBINATIONS, _combinations(drawings, order)),
        (CONCEPTS, _concepts(drawings, order)),
    ):
        for rank, index in enumerate(chosen):
            roles[index] = (group, "test" if rank % _VALIDATION else "validation")
    return roles


def _combinations(drawings: Sequence[Drawing], order: list[int]) -> list[int]:
    toned = [i for i in order if drawings[i].name.tones]
    left = collections.Counter(drawings[i].name.base for i in toned)
    chosen = []
    for i in toned:
        if len(chosen) >= _COMBINATIONS_SHARE * len(toned):
            break
        if left[drawings[i].name.base] > _TONED_LEFT:
            left[drawings[i].name.base] -= 1
            chosen.append(i)
    return chosen


def _concepts(drawings: Sequence[Drawing], order: list[int]) -> list[int]:
    sizes = collections.Counter(drawing.name.family for drawing in drawings)
    alone = [
        i
        for i in order
        if sizes[drawings[i].name.family] == 1
        and not drawings[i].name.flag
        and not drawings[i].name.tones
    ]
    return alone[: min(_CONCEPTS, len(alone) // 6)]


def _hash(code: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED}/{code}".encode()).hexdigest()
