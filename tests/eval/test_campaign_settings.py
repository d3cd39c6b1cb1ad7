"""Trials, limits, splits, shared shots, orders of shots, files for servers."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign
from flamingo_jax.eval.asking import Trial
from flamingo_jax.eval.examples import Benchmark
from flamingo_jax.eval.predictions import Predictions
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.asked import InTurn, Oracle
from tests.eval.own_set import (
    FLAMINGO,
    QUERIES,
    REQUEST,
    SUPPORT,
    ask,
    choices,
    concluded,
    own,
    settings,
)
from tests.eval.tasks.fixtures import WRITERS


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Benchmark:
    return own(tmp_path_factory.mktemp("own"))


def test_mean_and_deviation_over_trials(tmp_path: pathlib.Path) -> None:
    read = own(tmp_path)
    protocol = dataclasses.replace(FLAMINGO, shots=(2,), seeds=(3, 5, 7))
    request = campaign.Request(protocol)
    right = [f"word{i}" for i in range(QUERIES)]
    # 10, 4 and 1 of 10 are right: mean 50, deviations 50, -10 and -40, √((2500 + 100 + 1600) / 2).
    says = [*right, *right[:4], *["no"] * 6, "word0", *["no"] * 9]
    ask(read, request, tmp_path / "results", InTurn(says))
    [setting] = settings(concluded(read, request, tmp_path / "results"))
    values = [trial["figures"]["vqa_accuracy"]["value"] for trial in setting["trials"]]
    assert values == pytest.approx([100, 40, 10])
    found = setting["figures"]["vqa_accuracy"]
    assert found["trials"] == 3
    assert (found["mean"], found["std"]) == pytest.approx((50, 2100**0.5))
    known = Predictions(tmp_path / "results")
    shown = {known.of(Trial(read, protocol, t).setting(2, "random"))["q0"].shots for t in range(3)}
    assert len(shown) > 1  # each trial draws its own


def test_at_most_so_many_queries(read, tmp_path) -> None:
    request = dataclasses.replace(REQUEST, limit=5)
    model = ask(read, request, tmp_path)
    results = json.loads(concluded(read, request, tmp_path))
    assert len(model.asked) == 5 * 2 * 2
    assert results["request"] == {"split": "test", "limit": 5}
    assert results["benchmarks"]["custom"]["queries"] == 5
    assert results["benchmarks"]["custom"]["settings"][0]["trials"][0]["scored"] == 5


def test_validation_asks_training_examples(read, tmp_path) -> None:
    protocol = dataclasses.replace(FLAMINGO, shots=(2,), seeds=(0,), support=3)
    request = campaign.Request(protocol, split="validation")
    ask(read, request, tmp_path)
    results = json.loads(concluded(read, request, tmp_path))
    entry = results["benchmarks"]["custom"]
    assert (entry["support"], entry["queries"]) == (3, SUPPORT - 3 - 3)
    assert results["request"]["split"] == "validation"
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open(encoding="utf-8")]
    asked, shown = {row["key"] for row in rows}, {key for row in rows for key in row["shown"]}
    tested = {one.key for one in Trial(read, protocol, 0).chosen.support}
    assert len(asked) == 3 and not asked & shown and not (asked | shown) & tested
    assert all(key.startswith("s") for key in asked | shown)


@pytest.mark.parametrize("make", [own, choices])
def test_shared_shots_are_the_same_prompts(make: Any, tmp_path: pathlib.Path) -> None:
    read = make(tmp_path)
    protocol = dataclasses.replace(FLAMINGO, shots=(0, 3), sharing="shared", orders=2)
    found = []
    for keep in (True, False):
        request = campaign.Request(protocol, batch=1, keep_prefix=keep)
        model = ask(read, request, tmp_path / str(keep))
        results = concluded(read, request, tmp_path / str(keep))
        answers = (tmp_path / str(keep) / "predictions.jsonl").read_bytes()
        found.append((model.asked, answers, results))
        prompts = [prompt for prompt in model.asked if prompt.count("Answer:") == 4]
        kept = [beginning for beginning in model.shared if beginning.count("Answer:") == 3]
        assert bool(kept) == keep
        if keep:
            starts = {beginning for beginning in kept for p in prompts if p.startswith(beginning)}
            assert starts == set(kept)
            # One beginning a trial, and of choices one an order.
            assert len(starts) == 2 * (2 if make is choices else 1)
        else:
            assert set(model.shared) == {""}
    assert found[0] == found[1]


class ByOrder(Oracle):
    """The n-th time it is asked: -n for "no", -3.25 for "yes"."""

    def score(self, prompts: Any, choices: Any, **how: Any) -> np.ndarray:
        super().score(prompts, choices, **how)
        return np.tile(np.array([-len(self.shared), -3.25], np.float32), (len(prompts), 1))


def test_orders_of_shots_are_averaged(tmp_path: pathlib.Path) -> None:
    read = choices(tmp_path)
    protocol = dataclasses.replace(FLAMINGO, shots=(3,), seeds=(0,), orders=6)
    request = campaign.Request(protocol)
    model = ask(read, request, tmp_path / "results", ByOrder())
    [setting] = settings(concluded(read, request, tmp_path / "results"))
    # Each query in all six orders of three shots, the first of them told.
    first = model.asked[::QUERIES]
    assert len(set(first)) == 6 and len({"".join(sorted(one)) for one in first}) == 1
    assert setting["prompts"][0]["text"] == first[0]
    # (1 + 2 + … + 6) / 6 = 3.5: "no" would win the first three, and loses.
    given = Predictions(tmp_path / "results").of(Trial(read, protocol, 0).setting(3, "random"))
    assert {(one.answer, one.scores) for one in given.values()} == {("yes", (-3.5, -3.25))}
    assert setting["figures"]["top1"]["mean"] == 100


@pytest.mark.parametrize(
    ("name", "split", "says", "file"),
    [
        (
            "vqav2",
            "test-dev",
            ['red "ball"', "two", "é", "Answer: no"],
            '[{"question_id": 5000, "answer": "red \\"ball\\""}, '
            '{"question_id": 5001, "answer": "two"}, {"question_id": 6000, "answer": "é"}, '
            '{"question_id": 6001, "answer": ""}]\n',
        ),
        (
            "vizwiz",
            "test",
            [" soda\n"],
            '[{"image": "VizWiz_test_00000000.jpg", "answer": "soda"}]\n',
        ),
    ],
)
@pytest.mark.parametrize("called", ["", "mine"])
def test_files_for_servers(name, split, says, file, called, tmp_path) -> None:
    WRITERS[name](tmp_path)
    loaded = benchmarks.load(name, tmp_path, split)
    loaded = dataclasses.replace(loaded, name=called or name)
    request = campaign.Request(dataclasses.replace(FLAMINGO, shots=(0,), seeds=(0,)))
    ask(loaded, request, tmp_path, InTurn(says))
    [setting] = settings(concluded(loaded, request, tmp_path), loaded.name)
    assert setting["figures"] == {}
    [trial] = setting["trials"]
    assert (trial["figures"], trial["scored"]) == ({}, 0)
    assert trial["unscored_because"] == "the split's references are not public"
    path = tmp_path / f"submissions/{loaded.name}-0-random-0.json"
    assert path.read_text(encoding="utf-8") == file


def test_a_benchmark_under_another_name_is_asked_alike(tmp_path: pathlib.Path) -> None:
    WRITERS["hateful_memes"](tmp_path)
    memes = benchmarks.load("hateful_memes", tmp_path)
    prompts = [
        Trial(dataclasses.replace(memes, name=name), FLAMINGO, 0).prompts(0, 0)[0].shown()
        for name in ("hateful_memes", "memes_again")
    ]
    assert prompts[0] == prompts[1] and "is an image with written" in prompts[0]


def test_what_cannot_be_asked(tmp_path: pathlib.Path) -> None:
    WRITERS["rareact"](tmp_path)
    rareact = benchmarks.load("rareact", tmp_path)
    request = campaign.Request(dataclasses.replace(FLAMINGO, shots=(4, 8)))
    with pytest.raises(InputError, match="RareAct has no examples to show: ask it with 0 shots"):
        ask(rareact, request, tmp_path / "results")
    with pytest.raises(InputError, match="there is no selection 'near'; random, rices, rices_te"):
        campaign.Request(FLAMINGO, selections=("near",))
    few = dataclasses.replace(FLAMINGO, shots=(SUPPORT + 1,))
    with pytest.raises(InputError, match="10 shots are asked for, and the support has 9 examples"):
        ask(own(tmp_path), campaign.Request(few), tmp_path / "few")
