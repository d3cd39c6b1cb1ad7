"""Scores of choices are sums of log-softmax of the full forward pass, however they are batched."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from flamingo_jax.eval import media
from flamingo_jax.eval.media import MediaEncoder
from flamingo_jax.eval.rows import Graph, Prompt
from flamingo_jax.eval.score import score
from flamingo_jax.shapes import Batch

TOLERANCE = 1e-5


def expected(model, tokens, owners, pixels, choice) -> float:
    """One full forward pass over prompt and choice, pixels included, without a cache."""
    T, M = 16, 2
    row, seen = np.zeros((1, T), np.int32), np.zeros((1, T), np.int32)
    whole = [*tokens, *choice]
    row[0, : len(whole)] = whole
    seen[0, : len(whole)] = [*owners, *[owners[-1]] * len(choice)]
    positions = np.where(np.arange(T) < len(whole), np.arange(T), -1)[None].astype(np.int32)
    media = np.zeros((1, M, 2, *pixels[0].shape[1:]), np.uint8)
    frames = np.zeros((1, M), np.int32)
    for place, clip in enumerate(pixels):
        media[0, place, : len(clip)], frames[0, place] = clip, len(clip)
    batch = Batch(row, positions, media, frames, seen, np.zeros((1, T), np.float32))
    found = full(model.graph, model.params, batch)[0]
    start = len(tokens) - 1
    return float(sum(found[start + i, token] for i, token in enumerate(choice)))


@functools.partial(jax.jit, static_argnums=0)
def full(graph, params, batch):
    return jax.nn.log_softmax(graph.model(params)(batch), axis=-1)


CASES = [
    ([3, 41, 5, 6], [0, 1, 1, 1], [1], [[1], [2, 7, 40], [9, 9, 9, 9, 40], [40]]),
    ([8, 41, 2, 40, 41, 4], [0, 1, 1, 1, 2, 2], [2, 3], [[5, 40], [6, 40], [7, 8, 40]]),
    ([11, 12], [0, 0], [4], [[1, 2], [1], [], [3, 3, 3], [4]]),
]


@pytest.fixture(scope="module")
def prompts(tiny):
    made = []
    for tokens, owners, seeds, _ in CASES:
        media = tiny.encoder.media_tokens([tiny.pixels(seed, 1 + seed % 2) for seed in seeds])
        made.append(Prompt(tokens, owners, media))
    return made


def test_scores_are_those_of_the_full_forward(tiny, prompts):
    choices = [case[3] for case in CASES]
    found = score(tiny.graph, tiny.params, prompts, choices, batch=64)
    for (tokens, owners, seeds, own), scores in zip(CASES, found, strict=True):
        assert scores.shape == (len(own),) and scores.dtype == np.float32
        pixels = [tiny.pixels(seed, 1 + seed % 2) for seed in seeds]
        for choice, value in zip(own, scores, strict=True):
            assert value == pytest.approx(
                expected(tiny, tokens, owners, pixels, choice), abs=TOLERANCE
            )


def test_batches_do_not_matter(tiny, prompts):
    choices = [case[3] for case in CASES]
    whole = score(tiny.graph, tiny.params, prompts, choices, batch=64)
    apart = score(tiny.graph, tiny.params, prompts, choices, batch=2)
    alike = score(tiny.graph, tiny.params, prompts, choices, batch=8, uniform=True)
    for a, b, c in zip(whole, apart, alike, strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(a, c, atol=TOLERANCE, rtol=0)


def test_choices_of_one_token(tiny, prompts):
    """Nothing is fed for them; the scores are the first tokens' of longer ones' programs."""
    choices = [[[1], [40], [], [9]], [[2]], [[]]]
    longer = [[*own, [1, 2, 3]] for own in choices]
    found = score(tiny.graph, tiny.params, prompts, choices, batch=8)
    for a, b in zip(found, score(tiny.graph, tiny.params, prompts, longer, batch=8), strict=True):
        np.testing.assert_allclose(a, b[:-1], atol=TOLERANCE, rtol=0)
    assert found[0][2] == found[2][0] == 0


def test_each_picture_is_encoded_once(tiny, monkeypatch):
    seen = []
    run = media._media_tokens

    def counting(graph, params, pixels, frames):
        seen.append(int(np.sum([p.any() for p in pixels])))
        return run(graph, params, pixels, frames)

    monkeypatch.setattr(media, "_media_tokens", counting)
    encoder = MediaEncoder(tiny.graph, tiny.params)
    a, b = tiny.pixels(1), tiny.pixels(2)
    first = encoder.media_tokens([a, b, a.copy(), b, a])
    again = encoder.media_tokens([b])
    assert sum(seen) == 2
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], again[0])
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_media_tokens_depend_on_their_own_medium_alone(tiny):
    """Neither on what is encoded with it nor on how many frames that has."""
    frames = [1, 3, 2, 1, 4]
    clips = [tiny.pixels(seed, count) for seed, count in enumerate(frames, start=1)]
    together = MediaEncoder(tiny.graph, tiny.params).media_tokens(clips)
    for pixels, tokens in zip(clips[:2], together, strict=False):
        (alone,) = MediaEncoder(tiny.graph, tiny.params).media_tokens([pixels])
        np.testing.assert_allclose(alone, tokens, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_media_tokens_are_the_same_whatever_was_encoded_before(tiny, dtype):
    """Bit for bit, whatever is kept: an evaluation that goes on after a kill has kept nothing."""
    graph = Graph(dataclasses.replace(tiny.graph.config, dtype=dtype, vision_dtype=dtype))
    one = [tiny.pixels(seed, 1 + seed % 2) for seed in range(2)]
    few = [tiny.pixels(seed, 1 + seed % 2) for seed in range(9)]
    many = [tiny.pixels(seed, 1 + seed % 2) for seed in range(3, 40)]
    calls = [one, few, many, [*many, *one], few, many[:6], many[::-1], one]
    encoder = MediaEncoder(graph, tiny.params)
    for asked in calls:
        alone = MediaEncoder(graph, tiny.params).media_tokens(asked)
        np.testing.assert_array_equal(encoder.media_tokens(asked), alone)


def test_pooled_features(tiny):
    clips = [tiny.pixels(1), tiny.pixels(2, 2), tiny.pixels(1)]
    pooled = tiny.encoder.pooled(clips)
    model = tiny.graph.model(tiny.params)
    for row, pixels in zip(pooled, clips, strict=True):
        features = np.asarray(jax.jit(model.encode)(pixels[None, None]))
        np.testing.assert_allclose(row, features[0, 0].mean((0, 1)), atol=TOLERANCE, rtol=0)
