"""Published figures: those of the papers' tables, each once, of benchmarks that there are."""

import pytest

from flamingo_jax.eval import published
from flamingo_jax.eval.tasks import benchmarks


@pytest.mark.parametrize(
    ("benchmark", "model", "shots", "selection", "variant", "value"),
    [
        ("coco", "Flamingo 80B", 32, "random", "", 113.8),
        ("okvqa", "Flamingo 3B", 0, "random", "", 41.2),
        ("vatex", "Flamingo 9B", 16, "random", "", 58.5),
        ("rareact", "Flamingo 80B", 0, "random", "", 60.8),
        ("nextqa", "Flamingo 9B", 32, "random", "", 28.4),
        ("vqav2", "best before Flamingo", 4, "", "", 38.2),
        ("coco", "best before Flamingo", 0, "", "", 32.2),
        ("youcook2", "best fine-tuned", None, "", "", 138.7),
        ("hateful_memes", "best fine-tuned", None, "", "", 79.1),
        ("imagenet", "Flamingo 80B", 16, "rices", "support of 5 a class", 76.0),
        ("kinetics700", "Flamingo 3B", 8, "rices", "support of 1 a class", 55.9),
        ("imagenet", "IDEFICS 80B", 16, "rices", "support of 5,000", 72.9),
        ("coco", "OpenFlamingo 9B", 4, "rices", "", 93.1),
        ("coco", "OpenFlamingo 9B", 4, "random", "", 89.0),
        ("vqav2", "OpenFlamingo 9B", 32, "random", "v1", 50.3),
        ("textvqa", "OpenFlamingo 4B", 32, "random", "instruction-tuned language model", 23.2),
        ("nocaps", "IDEFICS 80B", 32, "random", "", 107.5),
        ("textcaps", "IDEFICS 9B", 0, "random", "", 25.4),
    ],
)
def test_values_are_those_of_the_tables(
    benchmark: str, model: str, shots: int | None, selection: str, variant: str, value: float
):
    wanted = (model, shots, selection, variant)
    [found] = [
        one
        for one in published.of(benchmark)
        if (one.model, one.shots, one.selection, one.variant) == wanted
    ]
    assert found.value == value and found.source


def test_each_is_there_once_and_of_a_known_benchmark():
    every = published.every()
    places = [(p.benchmark, p.model, p.shots, p.selection, p.variant) for p in every]
    assert len(set(places)) == len(places) > 400
    assert {p.benchmark for p in every} <= set(benchmarks.ENTRIES)
    assert {p.selection for p in every} == {"random", "rices", ""}
    assert all(0 < p.value < 150 and (p.shots is None or p.shots <= 32) for p in every)
    sixteen = {entry.name for entry in benchmarks.SIXTEEN}
    for size in ("3B", "9B", "80B"):
        assert sixteen == {
            p.benchmark for p in every if p.model == f"Flamingo {size}" and p.shots == 0
        }
    for split in {(p.benchmark, p.split) for p in every if p.split}:
        entry = benchmarks.ENTRIES[split[0]]
        assert split[1] in entry.splits or split == ("vizwiz", "test-dev")


def test_what_the_sources_doubt_is_left_out_or_noted():
    flamingo = [p for p in published.of("visdial") if p.model.startswith("Flamingo")]
    assert {p.shots for p in flamingo} == {0, 4, 8, 16}
    [doubted] = [p for p in published.of("vqav2") if p.note]
    assert (doubted.model, doubted.shots, doubted.note) == (
        "Flamingo 80B", 32, "67.3 in the text of v1"
    )  # fmt: skip
    assert all(p.note for p in published.of("hateful_memes") if "OpenFlamingo" in p.model)
    assert all("COCO" in p.note for p in published.of("coco") if p.model.startswith("IDEFICS"))


def test_a_set_of_ones_own_has_none():
    assert published.of("custom") == [] == published.of("mine")
