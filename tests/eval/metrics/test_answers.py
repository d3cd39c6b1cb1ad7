"""VQA accuracy, exact answers, iVQA, ranked options: small cases that can be done by hand."""

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import accuracy, vqa


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Dog.", "dog"),
        ("none", "0"),
        ("two", "2"),
        ("black-and-white", "black and white"),
        ("black -and-white", "black andwhite"),
        ("1,000 dogs/cats", "1000 dogscats"),
        ("5.5 ft.", "5.5 ft"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        (" a\nb\tc ", "b c"),
        ("." * 40, "." * 8),
    ],
)
def test_vqa_normalises(answer: str, plain: str):
    assert vqa.normalise(answer) == plain


@pytest.mark.parametrize(("same", "value"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_leaves_each_person_out(same: int, value: float):
    """Of those who agree, each left out leaves one less: 0.3 of three nines and so on."""
    assert vqa.accuracy("red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(value)


def test_vqa_normalises_only_what_differs():
    assert vqa.accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa.accuracy("Yes.", ["yes"] * 10, always=True) == 1
    assert vqa.accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


def test_exact_and_ivqa():
    score = accuracy.exact(["A dog. ", "cat"], ["a  dog", "cats"])
    assert score.value == 0.5
    five = ["pan", "pan", "pot", "bowl", "Wok"]
    score = accuracy.ivqa(["pan", "pot", "wok.", "cup"], [five] * 4)
    assert score.values.tolist() == [1, 0.5, 0.5, 0]


def test_ranked_options():
    scores = [[3, 2, 1], [1, 2], [0, 0, 0]]
    assert accuracy.top(scores, [0, 0, 2]).value == pytest.approx(1 / 3)
    assert accuracy.top(scores, [1, 0, 1], k=2).value == 1
    assert accuracy.top(scores, [0, 1, 0]).value == 1  # of a tie the first is ahead
    ten = [list(range(10, 0, -1))] * 2
    assert accuracy.kinetics(ten, [0, 4]).value == 0.75


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: vqa.score(["a"], []), "1 predictions but references for 0"),
        (lambda: vqa.score([], []), "no queries"),
        (lambda: vqa.score(["a"], [[]]), "query 0 has no reference"),
        (lambda: vqa.score(["a"], ["yes"]), "references of query 0 are a text"),
        (lambda: accuracy.top([[1.0]], [1]), "query 0 has 1 options"),
        (lambda: accuracy.top([[1.0, float("nan")]], [0]), "not all finite"),
        (lambda: accuracy.top([[1.0]], [0], k=0), "k is 1 or more"),
    ],
)
def test_bad_input(call, says: str):
    with pytest.raises(InputError, match=says):
        call()
