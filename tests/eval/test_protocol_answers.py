"""What becomes of generated answers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.eval.examples import ANSWER, CAPTION
from flamingo_jax.eval.protocol.answers import Cleaning
from flamingo_jax.eval.protocol.presets import FLAMINGO, IDEFICS, OPENFLAMINGO

WORDS = st.lists(
    st.sampled_from(
        ["Output", "Question", "Answer", "Short", ", ", ",", '"', " ", "a", "dog", "\n"]
    )
).map("".join)


@given(WORDS)
def test_openflamingos_rules(text: str) -> None:
    """Its postprocess_captioning_generation and postprocess_vqa_generation, in its own words."""
    caption = text.split("Output", 1)[0].replace('"', "")
    answer = re.split(r"Question|Answer|Short", text, maxsplit=1)[0]
    answer = re.split(r", ", answer, maxsplit=1)[0]
    assert OPENFLAMINGO.cleaning[CAPTION].clean(text) == caption
    assert OPENFLAMINGO.cleaning[ANSWER].clean(text) == answer


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (FLAMINGO.cleaning[CAPTION], " A cat. Output: a dog", "A cat."),
        (FLAMINGO.cleaning[ANSWER], " two Answer: x Question: y", "two"),
        (FLAMINGO.cleaning[ANSWER], " red, blue ", "red, blue"),
        (IDEFICS.cleaning[ANSWER], " two\nQuestion: x", "two"),
        (Cleaning(), " as it is \n", " as it is \n"),
        (Cleaning(remove="\"'"), "'a' \"b\"", "a b"),
    ],
)
def test_cleaning(rules: Cleaning, text: str, expected: str) -> None:
    assert rules.clean(text) == expected
