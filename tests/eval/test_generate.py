"""Decoding gives what the full forward pass would, however prompts are batched and padded."""

import functools
import itertools

import jax
import numpy as np
import pytest

from flamingo_jax.eval import decoding
from flamingo_jax.eval.beams import beam_search
from flamingo_jax.eval.generate import Settings, generate, stream
from flamingo_jax.eval.rows import Prompt, Rows, bucket, make_rows, power_of_two
from flamingo_jax.shapes import Batch

TOLERANCE = 1e-5
NEW = 6
SIZES = [(5, 1), (1, 0), (3, 1), (4, 2), (8, 2), (2, 1), (7, 2), (6, 0)]  # (tokens, media)
MOST_MEDIA = 2
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(tiny):
    return [tiny.prompt(seed, *size) for seed, size in enumerate(SIZES, start=1)]


def log_probs(model, prompt: Prompt, new: tuple[int, ...] | list[int]) -> np.ndarray:
    """f32[len(new) + 1, V + W]: what follows the prompt and each new token, without a cache."""
    tokens = [*prompt.tokens, *new]
    owners = [*prompt.media_of_token, *[prompt.media_of_token[-1]] * len(new)]
    media = np.zeros((1, MOST_MEDIA, *model.graph.media_shape), np.float32)
    frames = np.zeros((1, MOST_MEDIA), np.int32)
    for place, latents in enumerate(prompt.media):
        media[0, place], frames[0, place] = latents, 1
    T = 16  # padded on the right: what comes after a token does not matter to it
    row = np.zeros((1, T), np.int32)
    row[0, : len(tokens)] = tokens
    seen = np.zeros((1, T), np.int32)
    seen[0, : len(owners)] = owners
    positions = np.where(np.arange(T) < len(tokens), np.arange(T), -1)[None].astype(np.int32)
    batch = Batch(row, positions, media, frames, seen, np.zeros((1, T), np.float32))
    logits = forward_with_latents(model.graph, model.params, batch)
    found = jax.nn.log_softmax(logits[0], axis=-1)
    return np.asarray(found)[len(prompt.tokens) - 1 : len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def forward_with_latents(graph, params, batch):
    model = graph.model(params)
    model.media_tokens = lambda batches: batches[0].media.reshape(1, -1, batches[0].media.shape[-1])
    return model(batch)


def likelihood(model, prompt: Prompt, new: tuple[int, ...]) -> float:
    rows = log_probs(model, prompt, new)[: len(new)]
    return float(sum(row[token] for row, token in zip(rows, new, strict=True)))


def test_media_reach_the_text(tiny):
    """What the tests below compare would be equal for a blind model too."""
    prompt = tiny.prompt(1, 5, 1)
    other = Prompt(prompt.tokens, prompt.media_of_token, [-m for m in prompt.media])
    assert np.abs(log_probs(tiny, prompt, []) - log_probs(tiny, other, [])).max() > 0.05


@pytest.mark.parametrize("kind", ["tiny", pytest.param("rotary", marks=SLOW)])
def test_cache_gives_the_full_forward(kind, request):
    model = request.getfixturevalue(kind)
    prompt = model.prompt(4, 7, 1)
    new = [1, 41, 7, 40, 3]
    expected = log_probs(model, prompt, new)
    rows = make_rows(model.graph, [prompt], [0])
    logits, cache = decoding.prefill(model.graph, model.params, rows, 8)
    found = [logits]
    step = jax.jit(lambda params, *args: decoding.feed(model.graph.model(params), *args))
    for place, token in enumerate(new):
        position = rows.next_position + place
        logits, cache = step(
            model.params, np.array([token], np.int32), position, rows.last_medium, cache
        )
        found.append(logits)
    found = np.stack([np.asarray(jax.nn.log_softmax(row[0])) for row in found])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_greedy_takes_the_likeliest(tiny, prompts):
    for prompt, result in zip(
        prompts[:3], generate(tiny.graph, tiny.params, prompts[:3], Settings(NEW)), strict=True
    ):
        assert len(result.tokens) == NEW
        rows = log_probs(tiny, prompt, result.tokens)[:NEW]
        assert rows.argmax(-1).tolist() == list(result.tokens)
        expected = likelihood(tiny, prompt, result.tokens)
        assert result.log_likelihood == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        (Settings(NEW), (8, 3, 1)),
        (Settings(NEW, beams=3), (24, 3)),
        pytest.param(
            Settings(NEW, temperature=0.9, top_p=0.9, top_k=20, seed=5), (8, 1), marks=SLOW
        ),
    ],
    ids=["greedy", "beams", "drawn"],
)
def test_neither_batch_nor_padding_matters(tiny, prompts, settings, batches):
    whole, *others = batches
    together = generate(tiny.graph, tiny.params, prompts, settings, batch=whole)
    assert len({result.tokens for result in together}) > 4
    for batch in others:
        # The first three stand alone with one medium, all of them together with two.
        few = prompts[: 3 * (batch if settings.beams == 1 else 1)][:6]
        apart = generate(tiny.graph, tiny.params, few, settings, batch=batch)
        for a, b in zip(together, apart, strict=False):
            assert a.tokens == b.tokens
            assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=TOLERANCE)


@SLOW
def test_more_padding_changes_nothing(tiny, prompts):
    rows = make_rows(tiny.graph, prompts, range(8))
    assert rows.media is not None
    more = [(0, 0), (5, 0)]
    wider = Rows(
        np.pad(rows.tokens, more),
        np.pad(rows.positions, more, constant_values=-1),
        np.pad(rows.media_of_token, more),
        np.pad(rows.media, [(0, 0), (0, 2 * tiny.graph.media_shape[0]), (0, 0)]),
        np.pad(rows.frames, [(0, 0), (0, 2)]),
        rows.index,
    )
    results = []
    for given in (rows, wider):
        logits, cache = decoding.prefill(tiny.graph, tiny.params, given, 8)
        arguments = (np.zeros((0,), np.int32), np.int32(NEW), None, 8)
        results.append(decoding.decode(tiny.graph, tiny.params, given, logits, cache, *arguments))
    (tokens, counts, totals), (more_tokens, more_counts, more_totals) = results
    np.testing.assert_array_equal(tokens, more_tokens)
    np.testing.assert_array_equal(counts, more_counts)
    np.testing.assert_allclose(totals, more_totals, atol=TOLERANCE, rtol=0)


def test_stops_at_a_stop_token(tiny, prompts):
    free = generate(tiny.graph, tiny.params, prompts, Settings(NEW))
    stop = free[0].tokens[2]
    for settings in (Settings(NEW, stop=(stop,)), Settings(NEW, stop=(39, stop))):
        for whole, cut in zip(
            free, generate(tiny.graph, tiny.params, prompts, settings), strict=True
        ):
            places = [whole.tokens.index(token) for token in settings.stop if token in whole.tokens]
            assert cut.tokens == whole.tokens[: min(places, default=NEW - 1) + 1]


@pytest.mark.parametrize("settings", [Settings(NEW), Settings(NEW, temperature=1.0, seed=3)])
def test_stream_gives_the_same_tokens(tiny, prompts, settings):
    for prompt in prompts[:2]:
        (whole,) = generate(tiny.graph, tiny.params, [prompt], settings)
        assert tuple(stream(tiny.graph, tiny.params, prompt, settings)) == whole.tokens
        stopping = Settings(NEW, stop=whole.tokens[1:2], temperature=settings.temperature, seed=3)
        (cut,) = generate(tiny.graph, tiny.params, [prompt], stopping)
        assert tuple(stream(tiny.graph, tiny.params, prompt, stopping)) == cut.tokens
        assert len(cut.tokens) <= 2


def test_one_beam_is_greedy(tiny, prompts):
    stop = (5, 40)
    rows = make_rows(tiny.graph, prompts, range(len(prompts)))
    logits, cache = decoding.prefill(tiny.graph, tiny.params, rows, 8)
    found = beam_search(
        tiny.graph, tiny.params, rows, logits, cache, np.array(stop, np.int32), np.int32(NEW),
        np.float32(0), 1, 8,
    )  # fmt: skip
    greedy = generate(tiny.graph, tiny.params, prompts, Settings(NEW, stop=stop))
    for row, expected in enumerate(greedy):
        tokens, counts, totals = (np.asarray(part)[row] for part in found)
        assert tuple(tokens[:counts]) == expected.tokens
        assert totals == pytest.approx(expected.log_likelihood, abs=TOLERANCE)


@pytest.mark.parametrize("penalty", [0.0, *(pytest.param(p, marks=SLOW) for p in (1.0, -0.5))])
def test_wide_beams_search_exhaustively(minute, penalty):
    """With as many beams as there are sequences, the best of all is found."""
    length, words, stop = 3, 5, 3
    prompts = [minute.prompt(seed, 4, 1) for seed in (1, 2)]
    settings = Settings(length, (stop,), beams=words**2, length_penalty=penalty)
    for prompt, result in zip(
        prompts, generate(minute.graph, minute.params, prompts, settings, batch=64), strict=True
    ):
        after: dict[tuple[int, ...], np.ndarray] = {(): log_probs(minute, prompt, ())[-1]}
        scores = {}
        for size in range(1, length + 1):
            for tokens in itertools.product(range(words), repeat=size):
                if stop in tokens[:-1] or (size < length and tokens[-1] != stop):
                    continue
                total = 0.0
                for place in range(size):
                    past = tokens[:place]
                    if past not in after:
                        after[past] = log_probs(minute, prompt, past)[-1]
                    total += float(after[past][tokens[place]])
                scores[tokens] = (total / size**penalty, total)
        best = max(scores, key=lambda tokens: scores[tokens])
        assert result.tokens == best
        assert result.log_likelihood == pytest.approx(scores[best][1], abs=TOLERANCE)


@pytest.mark.parametrize(
    "fields",
    [
        {"beams": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"beams": 2, "temperature": 1.0},
    ],
    ids=str,
)
def test_refuses_settings_that_make_no_sense(fields):
    with pytest.raises(ValueError):
        Settings(**fields)


def test_few_shapes():
    assert [bucket(n) for n in (1, 8, 9, 13, 17, 25, 33, 65, 97)] == [
        8, 8, 12, 16, 24, 32, 48, 96, 128,
    ]  # fmt: skip
    assert [power_of_two(n) for n in (0, 1, 2, 3, 5, 8)] == [1, 1, 2, 4, 8, 8]
