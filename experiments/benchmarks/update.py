"""How long one update of a stage takes on these devices, on made-up batches of its shapes.

    python experiments/benchmarks/update.py --config=experiments/openmoji.py --stage=flamingo
    python experiments/benchmarks/update.py --config=experiments/openmoji.py --stage=language \
        --config.model.unroll=False

It prints one line of JSON: the median and the spread of the updates' times in seconds, the seconds
that compiling took, and text tokens a second. Weights are random, so losses mean nothing; gated
layers are open (tanh 1), as an optimizer would leave them, and cached features are used where the
config has them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax import assemble, config, inputs, sharding
from flamingo_jax.__main__ import take_overrides
from flamingo_jax.shapes import Batch, flatten_paths, unflatten_paths
from flamingo_jax.train.step import init_state

NEW_TOKENS = 2


def main(argv: list[str]) -> None:
    """Times a stage and prints what it found."""
    rest, overrides = take_overrides(argv)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--stage", default="flamingo")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--vocab", type=int, default=1_536, help="V, where the config leaves it")
    flags = parser.parse_args(rest)
    c = config.finish(config.load(flags.config, overrides))
    vocabulary = assemble.Vocabulary(c.model.language.vocab or flags.vocab, NEW_TOKENS)
    mesh = sharding.make_mesh(c.mesh.replica, c.mesh.fsdp, c.mesh.tensor, slices=c.mesh.slices)
    stage = assemble.stage(c, flags.stage, vocabulary, mesh)
    print(json.dumps(measure(stage, inputs.cached_shape(c, stage), flags.updates)))


def measure(stage: assemble.Stage, media: tuple[int, int] | None, updates: int) -> dict[str, float]:
    """Seconds of `updates` updates, one by one, after one that is not counted."""
    batches = {name: _filled(batch, stage) for name, batch in stage.abstract_batches(media).items()}
    values = flatten_paths(stage.initial(0, set(flatten_paths(stage.abstract))))
    values |= {path: jnp.full_like(a, 9.0) for path, a in values.items() if "/gate_" in path}
    parts = [flatten_paths(tree) for tree in (stage.trainable, stage.frozen)]
    params, frozen = (
        unflatten_paths(
            {p: jax.device_put(values[p].astype(a.dtype), a.sharding) for p, a in flat.items()}
        )
        for flat in parts
    )
    state = jax.device_put(init_state(params, stage.tx), stage.state_shardings)
    begin = time.perf_counter()
    compiled = stage.update.lower(state, frozen, batches).compile()
    compiling = time.perf_counter() - begin
    taken = []
    for _ in range(updates + 1):
        begin = time.perf_counter()
        state, metrics = compiled(state, frozen, batches)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - begin)
    taken = sorted(taken[1:])
    tokens = sum(spec.batch * spec.length for spec in stage.datasets.values())
    return {
        "seconds": round(statistics.median(taken), 4),
        "fastest": round(taken[0], 4),
        "slowest": round(taken[-1], 4),
        "compile_seconds": round(compiling, 1),
        "tokens_per_second": round(tokens / statistics.median(taken)),
    }


def _filled(batch: Batch, stage: assemble.Stage) -> Batch:
    """Random arrays of a batch's shapes: all tokens are targets and see the row's first medium."""
    rng = np.random.default_rng(0)

    def noise(a: jax.ShapeDtypeStruct, high: int) -> np.ndarray:
        if np.issubdtype(a.dtype, np.integer):
            return rng.integers(0, high, a.shape).astype(a.dtype)
        return rng.standard_normal(a.shape, np.float32).astype(a.dtype)

    B, T = batch.tokens.shape
    made = Batch(
        tokens=noise(batch.tokens, 256),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        media=noise(batch.media, 256),
        frames=np.full(batch.frames.shape, batch.media.shape[2], np.int32),
        media_of_token=np.full((B, T), min(1, batch.frames.shape[1]), np.int32),
        loss_mask=np.ones((B, T), np.float32),
    )
    return sharding.to_devices(made, stage.mesh)


if __name__ == "__main__":
    main(sys.argv[1:])
