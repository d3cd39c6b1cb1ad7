"""What prompts begin with, read once, changes nothing but the time."""

import copy
import dataclasses

import numpy as np
import pytest

from flamingo_jax.eval.generate import Settings, generate
from flamingo_jax.eval.rows import Graph, Prompt
from flamingo_jax.eval.score import score
from flamingo_jax.eval.shared import REACH, Shared, common

TOLERANCE = 1e-5  # nats a token
SHOTS = 5


def divided(model, shots: int = SHOTS):
    """(what all begin with, the rest of each, the whole prompts)."""
    first = model.prompt(50, 3 * shots, shots)
    owners = sorted([*range(1, shots + 1)] * 3)
    first = Prompt(first.tokens, owners if shots else [0] * len(owners), first.media)
    rests = []
    for seed, (length, media) in enumerate([(4, 1), (1, 0), (6, 1), (3, 2), (9, 1)]):
        one = model.prompt(seed, length, media)
        # Those without media of their own see the last shot's.
        owners = [owner + shots for owner in one.media_of_token]
        rests.append(Prompt(one.tokens, owners, one.media))
    wholes = [
        Prompt(
            [*first.tokens, *rest.tokens],
            [*first.media_of_token, *rest.media_of_token],
            [*first.media, *rest.media],
        )
        for rest in rests
    ]
    return Shared(model.graph, model.params, first), rests, wholes


@pytest.fixture(
    scope="module",
    params=["tiny", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("rotary", "upto"))],
)
def model(request, tiny):
    if request.param != "upto":
        return request.getfixturevalue(request.param)
    made = copy.copy(tiny)
    made.graph = Graph(dataclasses.replace(tiny.graph.config, attend="upto"))
    return made


def test_likelihoods(model):
    after, rests, wholes = divided(model)
    choices = [[[1, 2, 3], [4], [7, 5]][: 1 + n % 3] for n in range(len(rests))]
    expected = score(model.graph, model.params, wholes, choices)
    for batch in (3, 32):
        found = score(model.graph, model.params, rests, choices, batch, after=after)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=3 * TOLERANCE)


GREEDY = pytest.param(Settings(6), marks=pytest.mark.slow)


@pytest.mark.parametrize("settings", [GREEDY, Settings(6, stop=(3, 9), beams=3)])
def test_texts(tiny, settings):
    after, rests, wholes = divided(tiny)
    expected = generate(tiny.graph, tiny.params, wholes, settings)
    found = generate(tiny.graph, tiny.params, rests, settings, after=after)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    sums, theirs = ([one.log_likelihood for one in those] for those in (found, expected))
    np.testing.assert_allclose(sums, theirs, atol=6 * TOLERANCE)


def test_text_alone_is_a_beginning(tiny):
    after, rests, wholes = divided(tiny, 0)
    after.prompt = dataclasses.replace(after.prompt, tokens=[5, 6], media_of_token=[0, 0])
    wholes = [
        Prompt([5, 6, *rest.tokens], [0, 0, *rest.media_of_token], rest.media) for rest in rests
    ]
    choices = [[[1, 2], [3]]] * len(rests)
    expected = score(tiny.graph, tiny.params, wholes, choices)
    found = score(tiny.graph, tiny.params, rests, choices, after=after)
    np.testing.assert_allclose(found, expected, atol=2 * TOLERANCE)


@pytest.mark.slow
def test_what_follows_may_be_long(tiny):
    """Longer than the first reach: the beginning is read again, further."""
    after, rests, wholes = divided(tiny)
    short = score(tiny.graph, tiny.params, rests[:1], [[[1]]], after=after)
    long = [7] * (REACH + 3)
    [found] = score(tiny.graph, tiny.params, rests[:1], [[long]], after=after)
    [expected] = score(tiny.graph, tiny.params, wholes[:1], [[long]])
    np.testing.assert_allclose(found, expected, atol=len(long) * TOLERANCE)
    again = score(tiny.graph, tiny.params, rests[:1], [[[1]]], after=after)
    np.testing.assert_allclose(again, short, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("shared", "prompts", "count"),
    [
        ([1, 2, 3], [[1, 2, 3, 4], [1, 2, 3, 5, 6]], 3),
        ([1, 2, 3], [[1, 2, 3, 4], [1, 2, 7, 5]], 2),  # "…\n" and "\nUser:" may be other tokens
        ([1, 2, 3], [[1, 2, 3]], 2),  # the last token has to be run
        ([1], [[2, 1]], 0),
    ],
)
def test_common_tokens(shared, prompts, count):
    assert common(shared, prompts) == count
