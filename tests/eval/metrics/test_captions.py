"""Caption metrics at their ends, and what they take for words."""

import pytest

from flamingo_jax.eval.metrics import bleu, cider, rouge

REFERENCES = [["a red dog runs fast", "the dog runs"], ["two cats sleep here now"], ["an old bus"]]
ALIKE = [each[0] for each in REFERENCES]


def test_the_references_themselves():
    assert cider.score(ALIKE[1:], REFERENCES[1:]).values == pytest.approx([10, 7.5])
    assert rouge.score(ALIKE, REFERENCES).value == pytest.approx(1)
    assert bleu.score(ALIKE, REFERENCES)[0].value == pytest.approx(1)


def test_nothing_in_common():
    other = ["zzz yyy"] * 3
    assert cider.score(other, REFERENCES).value == 0
    assert rouge.score(other, REFERENCES).value == 0
    assert bleu.score(other, REFERENCES)[0].value == pytest.approx(0, abs=1e-9)


def test_no_words():
    assert cider.score(["", ".", "-"], REFERENCES).value == 0
    assert rouge.score(["", ".", "-"], REFERENCES).value == 0
    assert bleu.score(["", ".", "-"], REFERENCES)[3].value == 0


def test_words_are_the_tokenizers():
    """Capitals and marks count for nothing."""
    marked = [text.title() + "." for text in ALIKE]
    assert cider.score(marked, REFERENCES).value == cider.score(ALIKE, REFERENCES).value


def test_cider_of_one_query_is_zero():
    """Document frequencies come from the queries: what all have weighs nothing."""
    assert cider.score(ALIKE[:1], REFERENCES[:1]).value == 0


def test_bleu_pools_queries():
    """The mean of the queries' own would be 0.5: the longer query counts more."""
    score = bleu.score(["a b c d", "x"], [["a b c d"], ["y"]], str.split)[0]
    assert score.value == pytest.approx(0.8)
    assert score.values == pytest.approx([1, 0], abs=1e-6)
