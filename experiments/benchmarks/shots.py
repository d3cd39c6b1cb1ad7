"""What shots cost an evaluation whose queries share them: with the prefix kept, without, and none.

    python experiments/benchmarks/shots.py --checkpoint=runs/openmoji
    python experiments/benchmarks/shots.py --checkpoint=runs/openmoji --rounds=5 --check

Queries of a benchmark of an evaluation's config (experiments/evaluations/shared.py's questions if
no other is named) are asked three ways, in turn, `rounds` times:

    none     0 shots: the protocol's text-only examples
    kept     so many shots that all queries share, read once and kept beside every row
    anew     the same shots, read with each query

Each measurement starts from a model that has seen nothing: shots' pictures are encoded and their
text is read within it. What is compiled stays; the first round, which compiles, does not count.
Seconds are the wall's a query, the best and the median of all rounds. --check fails where `kept`
takes more than 1.5 times `none` or a fifth of `anew`, by the medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time

from flamingo_jax import benchmarking, use
from flamingo_jax.eval import rices
from flamingo_jax.eval.asking import ALL, Asking, Trial
from flamingo_jax.eval.predictions import Predictions
from flamingo_jax.eval.protocol.presets import SHARED

WAYS = ("none", "kept", "anew")
MOST_OF_NONE, LEAST_OF_ANEW = 1.5, 5.0


def measure(way: str, trial: Trial, flags: argparse.Namespace) -> float:
    """Seconds a query."""
    model = use.load(flags.checkpoint)
    shots = 0 if way == "none" else flags.shots
    setting = trial.setting(shots, rices.RANDOM)
    with tempfile.TemporaryDirectory() as folder:
        predictions = Predictions(pathlib.Path(folder))
        finder = rices.Finder(model, trial.asker.medium)
        ask = Asking(model, trial, setting, predictions, finder, flags.batch)
        begin = time.perf_counter()
        for block in trial.blocks(ALL, flags.batch):
            ask.block(block, keep_prefix=way == "kept")
        return (time.perf_counter() - begin) / len(trial.chosen.queries)


def main() -> int:
    """Measures and prints; 1 where --check finds too much."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--config", default="experiments/evaluations/shared.py")
    parser.add_argument("--benchmark", default="vqav2")
    parser.add_argument("--shots", type=int, default=32)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args()
    c = benchmarking.config_of(flags.config, {}, (flags.benchmark,), "")
    [benchmark] = benchmarking.benchmarks_of(c)
    protocol = dataclasses.replace(benchmarking.protocol_of(c), sharing=SHARED)
    trial = Trial(benchmark, protocol, 0, limit=flags.queries)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(flags.rounds + 1):
        for way in WAYS:
            seconds = measure(way, trial, flags)
            text = "compiles" if number == 0 else f"round {number}/{flags.rounds}"
            print(f"{text}: {way} {1e3 * seconds:.1f} ms a query", file=sys.stderr, flush=True)
            if number:
                times[way].append(seconds)
    middle = {way: statistics.median(found) for way, found in times.items()}
    print(f"{len(trial.chosen.queries)} queries of {benchmark.title}, {flags.shots} shots")
    for way in WAYS:
        best = min(times[way])
        print(
            f"{way:<5} {1e3 * best:8.1f} ms a query at best, {1e3 * middle[way]:8.1f} median, "
            f"{1 / middle[way]:7.1f} queries/s"
        )
    over_none, under_anew = middle["kept"] / middle["none"], middle["anew"] / middle["kept"]
    print(f"kept: {over_none:.2f} times none, {under_anew:.1f} times faster than anew")
    bad = over_none > MOST_OF_NONE or under_anew < LEAST_OF_ANEW
    return int(flags.check and bad)


if __name__ == "__main__":
    sys.exit(main())
