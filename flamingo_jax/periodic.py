"""Benchmarks asked in the middle of training: how few-shot answers come about, step by step.

    WORKDIR/evaluations/STEP/      as `evaluate` writes it, with its page
    WORKDIR/evaluations/features/  of RICES, which a frozen encoder computes once

A single process asks with the parameters where they lie. Of several each asks its share of the
queries with a copy of the model over its own devices (`eval.during.fsdp`, `.tensor`).
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from flamingo_jax import assemble, benchmarking, offload, processes, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign
from flamingo_jax.eval.asking import Shard
from flamingo_jax.eval.predictions import FILES
from flamingo_jax.eval.rows import Graph
from flamingo_jax.fingerprint import fingerprints
from flamingo_jax.inputs import Run
from flamingo_jax.shapes import Params, flatten_paths, map_paths, merge_trees
from flamingo_jax.use import LoadedFlamingo
from flamingo_jax.use.loading import model_config
from flamingo_jax.workdir import write_atomically

FOLDER = "evaluations"


class Evaluations:
    """Asks the benchmarks of `config.eval.during` when it is called: a `measuring.Evaluate`."""

    def __init__(self, run: Run):
        """Reads the benchmarks.

        Raises:
          InputError: for a missing or malformed file, or a value that there is not.
        """
        c = run.config.eval.during
        self._run, self._config = run, run.config
        if not c.benchmarks:
            raise InputError(
                f"config.eval.every is {run.config.eval.every} and config.eval.during.benchmarks "
                "is empty; give it rows, NAME = config.benchmark(), or set every to 0"
            )
        self._request = benchmarking.request_of(c)
        self._benchmarks = benchmarking.benchmarks_of(c)
        for benchmark in self._benchmarks:
            benchmarking.announce(benchmark, self._request)
        self._mesh = run.mesh
        if jax.process_count() > 1:
            self._mesh = sharding.make_mesh(-1, c.fsdp, c.tensor, devices=jax.local_devices())
        self._frozen: dict[str, str] = {}  # fingerprints

    def __call__(
        self, step: int, params: Params, frozen: Params, go_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """{"NAME/METRIC/SHOTS": mean over trials}, on the first process; None if told to stop."""
        root = self._run.workdir.path / FOLDER
        folder = root / f"{step:08d}"
        self._frozen = self._frozen or fingerprints(frozen)
        self._open(folder, step, fingerprints(params) | self._frozen)
        model = self._model(step, merge_trees(params, frozen))
        shard = Shard(jax.process_index(), jax.process_count())
        how = (folder, shard, root / "features", go_on)
        done = processes.agreed(
            lambda: campaign.ask_all(model, self._benchmarks, self._request, *how), InputError
        )
        if not done:  # of several processes none stops here: all hear of it after a step
            return None
        _collect(folder)
        return processes.agreed(lambda: self._concluded(folder, model.about), InputError)

    def _concluded(self, folder: pathlib.Path, about: dict[str, Any]) -> dict[str, float]:
        """The figures, on the first process."""
        if not processes.is_primary():
            return {}
        about = about | {"dtype": self._config.model.dtype}
        return figures(benchmarking.conclude(self._benchmarks, self._request, folder, about))

    def _open(self, folder: pathlib.Path, step: int, known: dict[str, str]) -> None:
        """Answers are gone on with where the parameters are the same; others are thrown away."""
        text = json.dumps(known, sort_keys=True)
        asked = {
            "step": step,
            "model": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "request": self._request.identity(),
            "benchmarks": {
                b.name: {"split": b.split, "queries": len(b.queries)} for b in self._benchmarks
            },
        }

        def attempt() -> None:
            try:
                campaign.open_folder(folder, asked)
            except InputError:
                shutil.rmtree(folder)
                campaign.open_folder(folder, asked)

        processes.primary_first(attempt, InputError)

    def _model(self, step: int, params: Params) -> LoadedFlamingo:
        c, tokenizer = self._config, self._run.tokenizer
        graph = Graph(model_config(c, tokenizer, "flamingo", None), self._mesh)
        own = _brought(params) if jax.process_count() == 1 else self._copied(params)
        about = {"path": str(self._run.workdir.place), "stage": "flamingo", "step": step}
        return LoadedFlamingo(c, tokenizer, graph, own, about)

    def _copied(self, params: Params) -> Params:
        """Every parameter over this process's devices; one at a time passes through its memory."""
        heads = assemble.head_counts(self._config)
        where = flatten_paths(sharding.param_shardings(params, self._mesh, heads))

        def copy(path: str, leaf: jax.Array) -> jax.Array:
            whole = multihost_utils.process_allgather(leaf, tiled=True)
            return jax.device_put(whole, where[path])

        return map_paths(copy, params)


def _brought(params: Params) -> Params:
    """Decoding reads every weight for each token: none stays in the host's memory."""

    def bring(_: str, leaf: jax.Array) -> jax.Array:
        if not offload.on_host(leaf):
            return leaf
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))

    return map_paths(bring, params)


def _collect(folder: pathlib.Path) -> None:
    """Brings all processes' answers to the first, which may not see the others' folders."""
    mine = sorted(folder.glob(FILES))
    own = {path.name: path.read_text(encoding="utf-8") for path in mine if _is_own(path)}
    for told in processes.gather("answers", json.dumps(own)):
        if processes.is_primary():
            for name, text in json.loads(told).items():
                if name not in own:  # a part of it may be here: what a bucket had
                    write_atomically(folder / name, text)


def _is_own(path: pathlib.Path) -> bool:
    index = jax.process_index()
    return path.stem == ("predictions" if index == 0 else f"predictions-{index:05d}")


def figures(results: dict[str, Any]) -> dict[str, float]:
    """{"NAME/METRIC/SHOTS": mean over trials}; shots that were searched are "4_rices"."""
    found = {}
    for name, entry in results["benchmarks"].items():
        for setting in entry["settings"]:
            how = setting["selection"] if setting["selection"] != "random" else ""
            shots = "_".join(filter(None, [str(setting["shots"]), how]))
            for metric, over in setting["figures"].items():
                found[f"{name}/{metric}/{shots}"] = over["mean"]
    return found
