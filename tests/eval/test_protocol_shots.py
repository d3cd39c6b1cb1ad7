"""Shots and splits: decided by seeds and keys, never by the order in which queries are asked."""

import dataclasses
import pathlib
import random
from collections.abc import Sequence

import numpy as np
import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval.examples import CAPTION, CHOICE, Benchmark, Example
from flamingo_jax.eval.protocol import presets, splits
from flamingo_jax.eval.protocol.prompts import Asker
from flamingo_jax.eval.protocol.shots import Shots


def examples(count: int, start: int = 0) -> list[Example]:
    return [
        Example(str(place), pathlib.Path(f"{place}.jpg"), answers=(f"c{place}",))
        for place in range(start, start + count)
    ]


def benchmark(support: int, queries: int, development: int = 0) -> Benchmark:
    return Benchmark(
        "coco", "COCO", CAPTION, "cider", examples(support), examples(queries, 10_000), "test",
        development,
    )  # fmt: skip


def keys(found: Sequence[Example]) -> list[str]:
    return [example.key for example in found]


def test_the_order_of_asking_changes_nothing() -> None:
    of = benchmark(500, 30)
    chosen = splits.choose(of, presets.FLAMINGO)
    first = Asker(presets.FLAMINGO, of, chosen, seed=3)
    expected = {q.key: first.prompts(q, 8)[0] for q in chosen.queries}
    again = Asker(presets.FLAMINGO, of, chosen, seed=3)
    queries = list(chosen.queries)
    random.Random(0).shuffle(queries)
    for query in queries:
        again.prompts(query, 4)
        assert again.prompts(query, 8) == [expected[query.key]]


def test_draws_depend_on_seed_trial_and_query() -> None:
    support, (one, other) = examples(300), examples(2, 900)
    base = keys(Shots(support, "coco", 0).draw(one, 8))
    assert len(set(base)) == 8
    assert keys(Shots(support, "coco", 0).draw(one, 8)) == base
    drawn = [
        Shots(support, "coco", 1).draw(one, 8),
        Shots(support, "coco", 0, trial=1).draw(one, 8),
        Shots(support, "vqav2", 0).draw(one, 8),
        Shots(support, "coco", 0).draw(other, 8),
    ]
    assert all(keys(shots) != base for shots in drawn)


def test_few_shots_are_the_first_of_many() -> None:
    shots, [query] = Shots(examples(2048), "coco", 0), examples(1, 9000)
    many = keys(shots.draw(query, 32))
    for count in (0, 4, 8, 16):
        assert keys(shots.draw(query, count)) == many[:count]


def test_draws_are_even() -> None:
    """Each of 10 examples as first shot of 2,000 queries: 200 times, give or take 4 deviations."""
    shots = Shots(examples(10), "coco", 0)
    first = [shots.draw(query, 1)[0].key for query in examples(2000, 100)]
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 10 and np.abs(counts - 200).max() < 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_never_the_query_itself() -> None:
    support = examples(12)
    twin = dataclasses.replace(support[5], key="another question about it")
    shots = Shots([*support, twin], "coco", 0)
    for query in support:
        drawn = keys(shots.draw(query, 11))
        assert query.key not in drawn
        assert query.key != "5" or twin.key not in drawn
    with pytest.raises(InputError, match="coco: 12 shots are asked for, and the support has 11"):
        shots.draw(support[5], 12)
    with pytest.raises(InputError, match="the support has 0"):
        Shots([], "coco", 0).draw(support[0], 1)


def test_shared_shots_are_everybodys() -> None:
    support = examples(40)
    queries = [*support[:30], *examples(5, 500)]  # some may be shots themselves: they are not
    shots = Shots(support, "coco", 0, shared_by=queries)
    drawn = {tuple(keys(shots.draw(query, 8))) for query in queries}
    assert len(drawn) == 1
    assert set(next(iter(drawn))) <= {example.key for example in support[30:]}
    others = Shots(support, "coco", 0, trial=1, shared_by=queries)
    assert tuple(keys(others.draw(queries[0], 8))) not in drawn
    shown = shots.draw(queries[0], 4)
    orders = [[keys(order) for order in shots.orders(query, shown, 6)] for query in queries[:2]]
    assert orders[0] == orders[1]


def test_shared_shots_make_one_prefix() -> None:
    of = benchmark(100, 5)
    protocol = dataclasses.replace(presets.FLAMINGO, sharing="shared")
    chosen = splits.choose(of, protocol)
    asker = Asker(protocol, of, chosen, seed=0)
    assert len({asker.prompts(query, 4)[0].support for query in chosen.queries}) == 1


def test_the_nearest_comes_last() -> None:
    support = examples(6)
    shots = Shots(support, "coco", 0)
    assert keys(shots.nearest(support[2], [2, 4, 0, 1], 2)) == ["0", "4"]
    with pytest.raises(InputError, match="3 shots are asked for, and the query '2' has 2 neigh"):
        shots.nearest(support[2], [2, 4, 0], 3)


def test_flamingos_subsets_are_disjoint() -> None:
    of = benchmark(9000, 100, development=3000)
    test = splits.choose(of, presets.FLAMINGO, "test", seed=1)
    validation = splits.choose(of, presets.FLAMINGO, "validation", seed=1)
    assert (len(test.support), len(test.queries)) == (2048, 100)
    assert (len(validation.support), len(validation.queries)) == (2048, 3000)
    parts = [set(keys(part)) for part in (test.support, validation.support, validation.queries)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert keys(test.queries) == keys(of.queries)
    assert splits.choose(of, presets.FLAMINGO, "test", seed=1) == test
    assert splits.choose(of, presets.FLAMINGO, "validation", seed=1) == validation
    assert set(keys(splits.choose(of, presets.FLAMINGO, "test", seed=2).support)) != parts[0]


def test_a_limit_is_a_draw() -> None:
    of = benchmark(10, 100)
    some = splits.choose(of, presets.FLAMINGO, seed=0, limit=20)
    assert len(set(keys(some.queries))) == 20
    assert keys(some.queries) != keys(of.queries)[:20]
    assert splits.choose(of, presets.FLAMINGO, seed=0, limit=500).queries == tuple(of.queries)
    with pytest.raises(InputError, match="-1 queries"):
        splits.choose(of, presets.FLAMINGO, limit=-1)


def test_a_class_has_so_many() -> None:
    labels = ["rare", *["cat"] * 80, *["dog"] * 50]
    support = [
        Example(
            str(i), pathlib.Path(f"{i}.jpg"), choices=("cat", "dog", "rare"), label=label, right=0
        )
        for i, label in enumerate(labels)
    ]
    of = Benchmark("imagenet", "ImageNet", CHOICE, "top1", support, support[:1], "val", 10,
                   classes=("cat", "dog", "rare"))  # fmt: skip
    chosen = splits.choose(of, presets.FLAMINGO)
    counts = {label: sum(e.label == label for e in chosen.support) for label in of.classes}
    assert counts == {"cat": 32, "dog": 32, "rare": 1}
    validation = splits.choose(of, presets.FLAMINGO, "validation")
    counts = {label: sum(e.label == label for e in validation.support) for label in of.classes}
    assert counts == {"cat": 32, "dog": 18, "rare": 0}
    assert len(validation.queries) == 10
    assert not set(keys(chosen.support)) & set(keys(validation.support + validation.queries))


def test_too_few_to_validate() -> None:
    with pytest.raises(InputError, match="COCO has 2050 training examples, which leave none"):
        splits.choose(benchmark(2050, 3), presets.FLAMINGO, "validation")
    small = dataclasses.replace(presets.FLAMINGO, support=100)
    chosen = splits.choose(benchmark(250, 3), small, "validation")
    assert (len(chosen.support), len(chosen.queries)) == (100, 50)
    with pytest.raises(InputError, match="no split 'dev' to choose"):
        splits.choose(benchmark(9, 3), presets.FLAMINGO, "dev")


def test_what_cannot_be_validated() -> None:
    support = [Example(str(i), None, "Q?", answers=("a",)) for i in range(30)]
    query = Example("q", None, "Q?", choices=("a", "b"), right=0, relevance=(1.0, 0.0))
    of = Benchmark("visdial", "VisDial", CHOICE, "ndcg", support, [query], "val")
    small = dataclasses.replace(presets.FLAMINGO, support=10)
    with pytest.raises(InputError, match="its training examples have nothing to choose from"):
        splits.choose(of, small, "validation")


def test_openflamingos_own_draw() -> None:
    """Its evaluate.py: seed, `prepare_eval_samples`, then `get_query_set`.

    The numbers are what these three lines of its give, run by themselves: np.random.seed(42);
    np.random.choice(50, 20, replace=False); np.random.choice(3000, 2048, replace=False). With 50 in
    place of 20 they begin alike.
    """
    of = benchmark(3000, 50)
    for count, limit in ((50, 0), (20, 20)):
        chosen = splits.choose(of, presets.OPENFLAMINGO, seed=42, limit=limit)
        assert (len(chosen.queries), len(chosen.support)) == (count, 2048)
        queries = [of.queries[place].key for place in (13, 39, 30, 45, 17, 48)]
        assert keys(chosen.queries)[:6] == queries
        assert keys(chosen.support)[:6] == ["270", "544", "1239", "554", "2325", "332"]
        assert keys(chosen.support)[-3:] == ["2700", "2116", "2340"]
    few = splits.choose(benchmark(7, 3), presets.OPENFLAMINGO, seed=42)
    assert sorted(keys(few.support)) == sorted(map(str, range(7)))
