"""What the official programs said of some cases (official.py wrote them) is what we say."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import (
    auc,
    bleu,
    cider,
    ndcg,
    ptb,
    rareact,
    rouge,
    vqa,
    wordnet,
    wups,
)

CASES = pathlib.Path(__file__).with_name("official.json")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return json.loads(CASES.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files() -> wordnet.WordNet:
    try:
        return wordnet.WordNet()
    except InputError as error:
        pytest.skip(str(error))


def test_words(cases):
    """Of some 250 captions those that were alike when they were frozen still are."""
    assert len(cases["words"]) > 240
    wrong = [caption for caption, words in cases["words"] if ptb.tokenize(caption) != words]
    assert not wrong


def test_captions(cases):
    case = cases["captions"]
    texts = case["predictions"], case["references"]
    for name, room in (("cider", cider), ("rouge", rouge)):
        score, (value, values) = room.score(*texts, str.split), case["theirs"][name]
        assert score.value == pytest.approx(value, abs=1e-6)
        np.testing.assert_allclose(score.values, values, atol=1e-6)
    value, values = case["theirs"]["bleu"]
    for score, one, each in zip(bleu.score(*texts, str.split), value, values, strict=True):
        assert score.value == pytest.approx(one, abs=1e-6)
        np.testing.assert_allclose(score.values, each, atol=1e-6)


def test_vqa(cases):
    predictions, references, values = zip(*cases["vqa"], strict=True)
    np.testing.assert_allclose(vqa.score(predictions, references).values, values, atol=1e-9)
    assert 0 < np.mean(values) < 1


@pytest.mark.parametrize("name", ["auc1", "auc8"])
def test_auc(cases, name):
    scores, labels, value = cases[name]
    assert auc.score(scores, labels).value == pytest.approx(value, abs=1e-9)


def test_ndcg(cases):
    scores, relevances, values = cases["ndcg"]
    np.testing.assert_allclose(ndcg.score(scores, relevances).values, values, atol=1e-9)


def test_rareact(cases):
    case = cases["rareact"]
    clips = [rareact.Clip(*row) for row in case["clips"]]
    assert rareact.score(case["scores"], clips).value == pytest.approx(case["value"], abs=1e-9)


def test_wup(cases, files):
    for one, other, value in cases["wup"]:
        first, second = files.first_sense(one), files.first_sense(other)
        assert first and second
        assert files.wup(first, second) == pytest.approx(value, abs=1e-9)


def test_wups(cases, files):
    for one, other, threshold, value in cases["wups"]:
        found = wups.wups(one.split(), other.split(), files, threshold)
        assert found == pytest.approx(value, abs=1e-9)
