"""Prompts in, text, scores, features and logits out: all of them agree with the full forward."""

import jax
import numpy as np
import pytest
from PIL import Image

import flamingo_jax
from flamingo_jax.errors import InputError
from flamingo_jax.eval import decoding, generate

TOLERANCE = 1e-5
NEW = 6


@pytest.fixture(scope="module")
def prompts(pictures):
    return [
        [pictures[0], "ab<EOC>", pictures[1], "c"],
        ["ab"],
        ["x<EOC>", pictures[1], pictures[2]],
    ]


def tokens_of(flamingo, prompt) -> tuple[list[int], list[int], list[np.ndarray]]:
    """Tokens, media_of_token and pixels of a prompt, written out by hand."""
    t = flamingo.tokenizer
    tokens, owners, shown = [t.bos], [0], []
    for item in prompt:
        if isinstance(item, str):
            word = item.removesuffix("<EOC>")
            part = [*word.encode(), *([t.eoc] if word != item else [])]
        else:
            shown.append(item)
            part = [*t.image]
        tokens += part
        owners += [len(shown)] * len(part)
    return tokens, owners, shown


def log_probs(flamingo, prompt, new) -> np.ndarray:
    """f32[len(new) + 1, V + W] after the prompt and each new token, by `logits`."""
    tokens, owners, shown = tokens_of(flamingo, prompt)
    whole, sees = [*tokens, *new], [*owners, *[owners[-1]] * len(new)]
    pad = 16 - len(whole)
    pixels = np.stack([*shown, *[np.zeros((32, 32, 3), np.uint8)] * (2 - len(shown))])
    logits = flamingo.logits(
        np.array([whole + [0] * pad]),
        pixels[None],
        np.array([sees + [0] * pad]),
        np.array([[*range(len(whole)), *[-1] * pad]]),
    )
    assert logits.dtype == np.float32
    rows = np.asarray(jax.nn.log_softmax(logits[0], axis=-1))
    return rows[len(tokens) - 1 : len(whole)]


def test_greedy_text_is_the_likeliest(flamingo, prompts):
    for prompt, said in zip(prompts, flamingo.generate(prompts, NEW, stop=()), strict=True):
        new: list[int] = []
        while len(new) < NEW and flamingo.tokenizer.eos not in new:
            new.append(int(log_probs(flamingo, prompt, new)[-1].argmax()))
        assert said == flamingo.tokenizer.decode(new)


def test_neither_company_nor_streaming_changes_a_text(flamingo, prompts):
    together = flamingo.generate(prompts, NEW)
    assert len(set(together)) == len(prompts)
    for prompt, said in list(zip(prompts, together, strict=True))[::2]:
        assert flamingo.generate([prompt], NEW) == [said]
        assert "".join(flamingo.stream(prompt, NEW)) == said


def test_what_prompts_share_is_read_once(flamingo, pictures, monkeypatch):
    shots = [pictures[0], "ab<EOC>", pictures[1], "cd<EOC>"]
    own = [[pictures[2], "x"], ["more"], [pictures[0], "longer than the others"]]
    wholes = [[*shots, *one] for one in own]
    choices = [["ab", "c"], ["d"], ["ef", "gh", "i"]]
    expected = flamingo.score(wholes, choices)
    read, forward = [], decoding.read_prefix
    monkeypatch.setattr(decoding, "read_prefix", lambda *a: read.append(a) or forward(*a))
    found = flamingo.score(own, choices, shared=shots, batch=2)
    np.testing.assert_allclose(found, expected, atol=10 * TOLERANCE)
    assert flamingo.generate(own, NEW, beams=2, shared=shots) == flamingo.generate(
        wholes, NEW, beams=2
    )
    assert len(read) == 1


def test_vectors_of_texts(flamingo):
    """Of a text alone, whatever it is given with."""
    texts = ["a cat", "a dog in the rain", "x"]
    found = flamingo.embed_text(texts)
    assert found.shape == (3, 32) and found.dtype == np.float32
    for text, row in zip(texts, found, strict=True):
        np.testing.assert_allclose(flamingo.embed_text([text])[0], row, atol=TOLERANCE)
    with pytest.raises(InputError, match="at least one text"):
        flamingo.embed_text([])


def test_digests_tell_parts_and_models_apart(flamingo):
    assert flamingo.digest("vision") == flamingo.digest("vision")
    assert len({flamingo.digest(part) for part in ("vision", "language", "")}) == 3


def test_pictures_change_the_scores(flamingo, pictures):
    first, second = pictures[:2]
    prompts = [[first, second, "a"], [second, first, "a"], ["a"]]
    scores = flamingo.score(prompts, ["b", "c", "d"])
    gaps = np.abs(scores[:, None] - scores[None]).max(-1)
    assert (gaps[~np.eye(3, dtype=bool)] > 0.005).all()


def test_scores_are_sums_over_the_full_forward(flamingo, prompts):
    choices = ["no", "yes", "y<EOC>b"]
    found = flamingo.score(prompts, choices)
    assert found.shape == (3, 3) and found.dtype == np.float32
    eoc = flamingo.tokenizer.eoc
    written = [[*b"no", eoc], [*b"yes", eoc], [*b"y", eoc, *b"b", eoc]]
    for prompt, row in zip(prompts, found, strict=True):
        for ids, value in zip(written, row, strict=True):
            rows = log_probs(flamingo, prompt, ids)
            expected = float(sum(rows[place, token] for place, token in enumerate(ids)))
            assert value == pytest.approx(expected, abs=TOLERANCE)
    mean = flamingo.score(prompts, choices, reduce="mean", closing=True)
    lengths = np.array([len(ids) for ids in written])
    np.testing.assert_allclose(mean, found / lengths, rtol=1e-6)
    open_ended = flamingo.score(prompts, choices, closing=False)
    assert (open_ended > found).all()
    np.testing.assert_allclose(
        flamingo.score(prompts, choices, reduce="mean"), open_ended / (lengths - 1), rtol=1e-6
    )


def test_each_prompt_may_have_choices_of_its_own(flamingo, prompts):
    shared = flamingo.score(prompts, ["no", "yes", "maybe"])
    own = flamingo.score(prompts, [["yes"], ["no", "yes", "maybe"], ["maybe", "no"]])
    assert own[0, 0] == pytest.approx(shared[0, 1], abs=TOLERANCE)
    assert (own[0, 1:] == -np.inf).all() and own[2, 2] == -np.inf
    np.testing.assert_allclose(own[1], shared[1], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(own[2, :2], shared[2, [2, 0]], atol=TOLERANCE, rtol=0)


def test_a_picture_in_every_form(flamingo, pictures, tmp_path):
    image = Image.fromarray(pictures[0])
    image.save(tmp_path / "a.png")
    rows = flamingo.embed([pictures[0], image, tmp_path / "a.png", pictures[1]])
    assert rows.shape == (4, flamingo.params["resampler"]["project"]["kernel"].shape[0])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.abs(rows[0] - rows[3]).max() > 1e-3


def test_clips(flamingo, pictures):
    clip = np.stack([pictures[0], pictures[1], pictures[2]])
    assert flamingo.pixels(clip).shape == (3, 32, 32, 3)
    prompts = [[clip, pictures[0]], [clip[::-1], pictures[0]], [clip.copy(), pictures[0]]]
    forwards, backwards, same = flamingo.score(prompts, ["ab", "c", "d"])
    np.testing.assert_array_equal(forwards, same)
    assert np.abs(forwards - backwards).max() > 1e-5  # frames have an order


def test_settings_reach_the_decoder(flamingo, prompts, monkeypatch):
    seen = []

    def record(graph, params, group, settings, batch, first, after):
        assert after is None
        seen.append((settings, batch, first, len(group)))
        return [generate.Generated((97, 98, 99), 0.0)] * len(group)

    monkeypatch.setattr(generate, "generate", record)
    said = flamingo.generate(
        prompts[1:2] * 5, 9, beams=2, length_penalty=0.5, stop=["<EOC>", "c"], batch=1
    )
    assert said == ["ab"] * 5
    t = flamingo.tokenizer
    assert seen[0] == (generate.Settings(9, (t.eos, t.eoc), 2, 0.5), 1, 0, 4)
    assert seen[1][2:] == (4, 1)
    flamingo.generate(prompts[1:2], temperature=0.5, top_k=3, top_p=0.9, seed=4, stop=())
    expected = generate.Settings(32, (t.eos,), temperature=0.5, top_k=3, top_p=0.9, seed=4)
    assert seen[-1] == (expected, flamingo.config.eval.batch, 0, 1)


def test_counts_and_description(flamingo, tiny_workdir, prompts):
    assert flamingo.count_tokens(prompts) == [7, 3, 5]
    lines = flamingo.describe()
    for word in ("stage: flamingo", "step: 2", "float32", "32 × 32", "<EOC>", "resampler"):
        assert word in lines
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(tiny_workdir.params[2]))
    assert f"{count:,}" in lines and f"{count:,}" in repr(flamingo)


def test_nothing_to_do(flamingo):
    assert flamingo.generate([]) == []
    assert flamingo.score([], ["a"]).shape == (0, 0)


def test_the_package_offers_them():
    from flamingo_jax import use

    assert flamingo_jax.load is use.load
    assert flamingo_jax.text("<EOC>") == "<EOC>"
    assert flamingo_jax.Video("a.mp4").frames is None


ONE = np.zeros((1, 3), np.int32)
PIXELS = np.zeros((1, 1, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.generate("a"), "not a list of prompts"),
        (lambda f: f.generate(["a"]), "wrap a single prompt"),
        (lambda f: f.generate([["a"], "b"]), "prompt 1 is a str"),
        (lambda f: f.generate([["a", 3]]), "prompt 0, item 1 is a int"),
        (lambda f: f.generate([["a"]], 0), "max_new_tokens"),
        (lambda f: f.generate([["a"]], beams=2, temperature=1.0), "beam search"),
        (lambda f: f.generate([["a"]], top_p=2.0), "top_p"),
        (lambda f: f.generate([["a"]], stop="<EOC>"), "list of texts"),
        (lambda f: f.generate([["a"]], batch=0), "batch=0"),
        (lambda f: f.generate([[np.zeros((4, 4, 3))]]), "prompt 0, medium 1 is an array float64"),
        (lambda f: f.stream("a"), "prompt 0 is a str"),
        (lambda f: f.score([["a"]], []), "list of choices"),
        (lambda f: f.score([["a"]], "yes"), "list of choices"),
        (lambda f: f.score([["a"]], ["yes"], reduce="max"), "reduce"),
        (lambda f: f.score([["a"]], [["b"], ["c"]]), "1 prompts, and choices for 2"),
        (lambda f: f.score([["a"]], [""], closing=False), "choice 0 is empty"),
        (lambda f: f.score([["a"]], ["<image>"]), "without its medium"),
        (lambda f: f.score([["a"], ["b"]], [["c"], 3]), "choices of prompt 1"),
        (lambda f: f.embed([]), "at least one image"),
        (lambda f: f.embed(["a.png"]), "image 0 is a str"),
        (lambda f: f.logits(np.zeros(3, np.int32)), "tokens i32"),
        (lambda f: f.logits(np.zeros((1, 3))), "tokens i32"),
        (lambda f: f.logits(np.zeros((1, 0), np.int32)), "tokens i32"),
        (lambda f: f.logits(ONE - 1), "tokens i32"),
        (lambda f: f.logits(ONE + 260), "holds the token 260"),
        (lambda f: f.logits(ONE, media_of_token=ONE[:, :2]), "media_of_token"),
        (lambda f: f.logits(ONE, PIXELS[:, :, :16]), "pixels u8"),
        (lambda f: f.logits(ONE, PIXELS.astype(np.float32)), "pixels u8"),
        (lambda f: f.logits(ONE, PIXELS.repeat(2, 0)), "pixels u8"),
    ],
)
def test_bad_input_is_one_sentence(flamingo, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(flamingo)
    assert "\n" not in str(error.value)
