"""Our training step beside OpenFlamingo's and IDEFICS's in PyTorch, on this machine's processor.

    python experiments/benchmarks/train_step.py
    python experiments/benchmarks/train_step.py --cases=4/bf16/pixels,4/bf16/cached --rounds=5

The model is that of torch_speed.py's training cases: ViT-B/32 at 224 pixels, a LLaMA-like language
model 768 wide with 12 blocks and 32,000 tokens, a resampler of 6 layers and 64 latents,
OpenFlamingo's gated layers (8 heads of 64) before every or every fourth block; 4 rows of 256 tokens
and 3 pictures. Encoder, language model and all embeddings are frozen; the gradient is clipped at 1,
AdamW follows.

A case is EVERY/DTYPE/MEDIA: gated layers every 1 or 4 blocks; f32, or bf16 (ours: activations and
frozen weights in bf16, what is trained in f32; the peers: autocast of f32 weights); pixels, or
cached features of the encoder, which the peers do not have: they are given pixels there too.

Each measurement is a process of its own, ours and the peers' in turn, `rounds` times: what else
goes on in a machine changes by the minute. The peers run by the interpreters that
OPENFLAMINGO_PYTHON and IDEFICS_PYTHON name, with the script that --peers names, else
bench/torch_speed.py in FLAMINGO_SHARED; those that are not there are left out. With --cores=N every
process is pinned to so many cores.

Seconds are the wall's of one step, the best and the median of all rounds; a ratio is the peer's
over ours, of all rounds' best, the median of each round's, and the range of those. Tokens are
text's. "of peak" is the model's FLOPs (planning/analytic.py) over the time and the highest rate of
a matrix product of that dtype, measured before each round. --out has the processor's seconds too:
of ours alone they tell what a busy machine's wall does not (the peers' threads spin while they
wait).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax import assemble, config, inputs, sharding
from flamingo_jax.errors import InputError
from flamingo_jax.planning import analytic
from flamingo_jax.pretrained import clip
from flamingo_jax.shapes import Batch, flatten_paths
from flamingo_jax.train.step import init_state

ROWS, TOKENS, PICTURES = 4, 256, 3
PLACES = (0, 90, 180)  # of the pictures' own tokens in each row
VOCABULARY = assemble.Vocabulary(32_000, 3)
GATE = 0.5  # both gates' parameter, as the peers' are set: the layers are not the identity
DTYPES = {"f32": ("float32", "fp32"), "bf16": ("bfloat16", "bf16_autocast")}  # ours, the peers'
PEERS = {"open_flamingo": "OPENFLAMINGO_PYTHON", "idefics": "IDEFICS_PYTHON"}
PEAK_SIZES = (1_024, 2_048)  # of square matrix products
OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: gated layers every so many blocks, the dtype's name, what media are fed."""

    every: int
    dtype: str
    media: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.every}/{self.dtype}/{self.media}"


CASES = tuple(
    Case(every, dtype, media)
    for every in (1, 4)
    for dtype in DTYPES
    for media in ("pixels", "cached")
)


def main(argv: list[str]) -> int:
    """Measures all cases and prints a table; with --case one of ours, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed in each process, after one")
    parser.add_argument("--peers", default="", help="the script that runs the peers")
    parser.add_argument("--cores", type=int, default=0, help="of each process; 0 = all there are")
    parser.add_argument("--out", default="", help="a file that gets each measurement as JSON")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)  # one of ours, in here
    flags = parser.parse_args(argv)
    os.environ["THREADS"] = str(flags.cores or len(os.sched_getaffinity(0)))  # the peers' script's
    try:
        if flags.case:
            found = peaks() if flags.case == "peaks" else measure(_case(flags.case), flags.steps)
            print("RESULT " + json.dumps(found))
            return 0
        if flags.cores:  # those that are started have what their parent has
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-flags.cores :])
        compare([_case(name) for name in flags.cases.split(",")], flags)
    except InputError as error:
        print(f"train_step.py: {error}", file=sys.stderr)
        return 2
    return 0


def _case(name: str) -> Case:
    for case in CASES:
        if case.name == name:
            return case
    raise InputError(f"{name!r} is no case; there are {', '.join(case.name for case in CASES)}")


def experiment(case: Case) -> Any:
    """The finished config of a case."""
    c, dtype = config.base(), DTYPES[case.dtype][0]
    # All that the backward needs fits; what is fastest where nothing has to be saved.
    c.model.update(dtype=dtype, remat="none", loss_chunk=0, unroll=True)
    c.model.language.update(vocab=VOCABULARY.size, width=768, blocks=12, heads=12, head_dim=64)
    c.model.language.update(hidden=2_048, positions="rotary", activation="silu", gated=True)
    c.model.language.update(tied=False)
    c.model.vision.update(kind="vit", image_size=224, mean=clip.MEAN, std=clip.STD, dtype=dtype)
    c.model.vision.vit.update(patch=32, width=768, blocks=12, heads=12, hidden=3_072)
    c.model.resampler.update(width=768, heads=8, head_dim=64, hidden=3_072, activation="gelu")
    c.model.resampler.update(project=False, max_frames=0)
    c.model.xattn.update(every=case.every, offset=case.every - 1, heads=8, head_dim=64)
    c.model.xattn.update(hidden=3_072, activation="gelu", project=False, media_norm=False)
    c.trainable = ("^resampler/", "^xattn/")
    c.data.cache_features = case.media == "cached"
    c.train.update(steps=1_000)
    c.train.optimizer.update(lr=1e-4, weight_decay=0.1, no_decay=(), clip=1.0)
    c.train.datasets.pages = config.dataset(
        source="pages", layout="page", batch=ROWS, length=TOKENS, images=PICTURES
    )
    return config.finish(c)


def measure(case: Case, steps: int) -> dict[str, Any]:
    """Our side of a case: seconds of each of `steps` steps, peak memory, FLOPs of the model."""
    c = experiment(case)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = assemble.stage(c, "flamingo", VOCABULARY, mesh)
    cached = inputs.cached_shape(c, stage)
    batches = {"pages": _batch(stage.abstract_batches(cached)["pages"], stage)}
    params, frozen = (
        stage.initial(0, set(flatten_paths(tree))) for tree in (stage.trainable, stage.frozen)
    )
    for gate in ("gate_attention", "gate_dense"):
        params["xattn"][gate] = jnp.full_like(params["xattn"][gate], GATE)
    state = jax.device_put(init_state(params, stage.tx), stage.state_shardings)
    begin = time.perf_counter()
    compiled = stage.update.lower(state, frozen, batches).compile()
    compiling = time.perf_counter() - begin
    taken, losses = [], []
    for _ in range(steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, frozen, batches)
        losses.append(float(metrics["loss"]))  # waits for the step
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "times": [wall for wall, _ in taken[1:]],
        "cpu": [cpu for _, cpu in taken[1:]],
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "compile_seconds": compiling,
        "losses": losses,
        "flops": analytic.work(c, stage, VOCABULARY, cached=cached is not None).total,
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def _batch(abstract: Batch, stage: assemble.Stage) -> Batch:
    """Random text with three pictures a row; all tokens but the pictures' own are targets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY.size, abstract.tokens.shape, np.int32)
    tokens[:, PLACES] = VOCABULARY.size + 1
    shown = np.zeros_like(tokens)
    shown[:, PLACES] = 1
    media = rng.integers(0, 256, abstract.media.shape)
    if abstract.media.dtype != np.uint8:
        media = rng.standard_normal(abstract.media.shape, np.float32)
    made = Batch(
        tokens=tokens,
        positions=np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1)),
        media=media.astype(abstract.media.dtype),
        frames=np.ones(abstract.frames.shape, np.int32),
        media_of_token=np.cumsum(shown, axis=1, dtype=np.int32),
        loss_mask=(1 - shown).astype(np.float32),
    )
    return sharding.to_devices(made, stage.mesh)


def peaks() -> dict[str, float]:
    """FLOPs a second of the fastest square matrix product by dtype, bf16 summed in f32."""
    found = {}
    for name, (dtype, _) in DTYPES.items():
        rates = []
        for size in PEAK_SIZES:
            a = jnp.ones((size, size), dtype)
            product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
            product(a, a).block_until_ready()
            for _ in range(12):
                begin = time.perf_counter()
                product(a, a).block_until_ready()
                rates.append(2 * size**3 / (time.perf_counter() - begin))
        found[name] = max(rates)
    return found


def compare(cases: list[Case], flags: argparse.Namespace) -> None:
    """Runs all sides in turn and prints what was found."""
    script = _script(flags.peers)
    sides = [OURS, *(peer for peer, python in PEERS.items() if script and os.environ.get(python))]
    for peer in PEERS.keys() - set(sides):
        print(
            f"{peer} is left out: it needs {PEERS[peer]} and a script (--peers or FLAMINGO_SHARED)"
        )
    best = dict.fromkeys(DTYPES, 0.0)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(flags.rounds):
        for name, rate in _run([sys.executable, __file__, "--case=peaks"]).items():
            best[name] = max(best[name], rate)
        for case, side in _turns(cases, sides):
            result = _measured(case, side, script, flags.steps)
            found.setdefault((case.name, side), []).append(result)
            if flags.out:
                row = {"round": number, "case": case.name, "side": side, **result}
                with open(flags.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            seconds = f"{min(result['times']):.3f} s"
            print(
                f"round {number + 1}/{flags.rounds}: {case.name} {side} {seconds}", file=sys.stderr
            )
    _print_table(cases, sides, found, best)


def _turns(cases: list[Case], sides: list[str]) -> list[tuple[Case, str]]:
    """Every case of every side, those of the same model next to each other.

    A peer's measurement counts for pixels and for cached features: it has pixels alone.
    """
    turns: list[tuple[Case, str]] = []
    for every, dtype in dict.fromkeys((case.every, case.dtype) for case in cases):
        same = [case for case in cases if (case.every, case.dtype) == (every, dtype)]
        turns += [(case, OURS) for case in same]
        turns += [(Case(every, dtype, "pixels"), side) for side in sides[1:]]
    return turns


def _script(named: str) -> str:
    """The peers' script, "" without one."""
    shared = os.environ.get("FLAMINGO_SHARED")
    path = pathlib.Path(named or (f"{shared}/bench/torch_speed.py" if shared else ""))
    if path.is_file():
        return str(path)
    if named:
        raise InputError(f"--peers={named}: there is no such file; name the peers' torch_speed.py")
    return ""


def _measured(case: Case, side: str, script: str, steps: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    if side == OURS:
        return _run([sys.executable, __file__, f"--case={case.name}", f"--steps={steps}"])
    asked = {"what": "train", "peer": side, "every": case.every, "dtype": DTYPES[case.dtype][1]}
    asked |= {"runs": steps, "budget": 600}
    return _run([os.environ[PEERS[side]], script, "case", json.dumps(asked)])


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise InputError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return json.loads(lines[-1].removeprefix("RESULT "))


def _print_table(
    cases: list[Case],
    sides: list[str],
    found: dict[tuple[str, str], list[dict[str, Any]]],
    best: dict[str, float],
) -> None:
    print("matrix products: " + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in best.items()))
    head = f"{'case':16}{'side':16}{'s/step':>9}{'median':>8}{'tokens/s':>10}{'RSS GB':>8}"
    print(f"{head}{'of peak':>9}{'  ratio: best':>14}{'median':>8}{'rounds':>16}")
    for case in cases:
        ours = found[case.name, OURS]
        for side in sides:
            same = case.name if side == OURS else Case(case.every, case.dtype, "pixels").name
            runs = found[same, side]
            times = [seconds for run in runs for seconds in run["times"]]
            memory = max(run["peak_rss_gb"] for run in runs)
            line = f"{case.name:16}{side:16}{min(times):9.3f}{statistics.median(times):8.3f}"
            line += f"{ROWS * TOKENS / min(times):10.0f}{memory:8.2f}"
            if side == OURS:
                share = ours[0]["flops"] / min(times) / best[case.dtype]
                print(f"{line}{share:9.0%}")
                continue
            own = [seconds for run in ours for seconds in run["times"]]
            each = [
                min(theirs["times"]) / min(run["times"])
                for run, theirs in zip(ours, runs, strict=True)
            ]
            line += f"{'':9}{min(times) / min(own):14.2f}{statistics.median(each):8.2f}"
            print(f"{line}{f'{min(each):.2f} to {max(each):.2f}':>16}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
