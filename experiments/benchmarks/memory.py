"""How much memory fine-tuning takes, by size of the model and number of devices, as Markdown.

    python experiments/benchmarks/memory.py
    python experiments/benchmarks/memory.py --batch=64 --length=128 --devices=1,8,64 --sizes=3B

Nothing is made or compiled: weights, gradients and moments are counted on the assembled stage of
experiments/finetune.py, split as `sharding.spec` splits them over fsdp. Activations are the arrays
that the traced loss keeps for its gradient (`remat` as the size's own experiment has it) and that
grow with the rows, for a device's rows of the batch, at least one. Features are cached.

Left out are what is alive within one layer or recomputed group, a layer's weights while fsdp
gathers them, copies of weights that a compiler keeps (trained ones cast to bf16 are half their size
again, a second copy of the gradients is their size), what encoding the pictures takes before the
first step, and what the runtime takes: a device needs more than the figure. Vocabularies are of
32,000 tokens, the demo's of 1,536.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import runpy
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from jax.sharding import AbstractMesh

from flamingo_jax import assemble, config, inputs, sharding
from flamingo_jax.shapes import Params, flatten_paths
from flamingo_jax.train import losses

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1]
SIZES = {
    "demo": "openmoji",
    "3B": "flamingo_3b",
    "9B": "flamingo_9b",
    "80B": "flamingo_80b",
}
GB = 1e9


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--sizes", default=",".join(SIZES), help="of " + ", ".join(SIZES))
    parser.add_argument("--devices", default="1,8,16,64", help="of one fsdp axis")
    parser.add_argument("--batch", type=int, default=16, help="rows a step, over all devices")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    flags = parser.parse_args(argv)
    devices = [int(count) for count in flags.devices.split(",")]
    head = ["size", "parameters", "trained", "frozen weights", "trained weights", "gradients"]
    head += ["moments", f"activations of {flags.batch} rows"]
    head += [f"in all, {n} device{'s' if n > 1 else ''}" for n in devices]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" + " --: |" * (len(head) - 1))
    for size in flags.sizes.split(","):
        print("| " + " | ".join([size, *row(size, devices, flags)]) + " |", flush=True)


def row(size: str, devices: list[int], flags: argparse.Namespace) -> list[str]:
    """The cells of a size, bytes a device in GB."""
    stage, media = assembled(size, flags.batch, flags.length)
    trained, frozen = flatten_paths(stage.trainable), flatten_paths(stage.frozen)
    sums = [sum(a.size for a in part.values()) for part in (trained, frozen)]
    one = bytes_of_state(stage, 1)
    cells = [number(sum(sums)), number(sums[0])]
    cells += [gb(one[name]) for name in ("frozen", "trained", "gradients", "moments")]
    of_row = kept_for_backward(stage, media)
    cells.append(gb(flags.batch * of_row))
    for count in devices:
        rows = math.ceil(flags.batch / count)
        cells.append(gb(sum(bytes_of_state(stage, count).values()) + rows * of_row))
    return cells


def assembled(size: str, batch: int, length: int) -> tuple[assemble.Stage, tuple[int, int] | None]:
    """The stage that fine-tunes a size, and (P, E) of a picture's features."""
    tuned = runpy.run_path(str(EXPERIMENTS / "finetune.py"))["tuned"]
    c = tuned(config.load(str(EXPERIMENTS / f"{SIZES[size]}.py")))
    c.train.datasets.own.update(batch=batch, length=length)
    vocabulary = assemble.Vocabulary(c.model.language.vocab or 1_536, 2)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = assemble.stage(config.finish(c), "flamingo", vocabulary, mesh)
    return stage, inputs.cached_shape(c, stage)


def bytes_of_state(stage: assemble.Stage, devices: int) -> dict[str, int]:
    """Bytes on each of `devices`: frozen and trained weights, gradients and moments."""
    mesh = AbstractMesh((1, devices, 1), sharding.AXES)

    def split(tree: Any) -> int:
        flat = flatten_paths(tree)
        return sum(a.size * a.dtype.itemsize // parts(p, a.shape, mesh) for p, a in flat.items())

    def moment(path: Any, a: Any) -> int:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        size = a.size * a.dtype.itemsize
        return size // parts("/".join(names), a.shape, mesh) if a.ndim else size

    moments = jax.tree_util.tree_map_with_path(moment, stage.state.opt)
    trained = split(stage.trainable)
    return {
        "frozen": split(stage.frozen),
        "trained": trained,
        "gradients": trained,
        "moments": sum(jax.tree.leaves(moments)),
    }


def parts(path: str, shape: tuple[int, ...], mesh: Any) -> int:
    """In how many parts an array is split."""
    axes = [axis for axis in sharding.spec(path, shape, mesh) if axis is not None]
    return math.prod(mesh.shape[axis] for axis in axes)


def kept_for_backward(stage: assemble.Stage, media: tuple[int, int] | None) -> int:
    """Bytes that the loss keeps for its gradient for each row of its batch."""
    return _kept(stage, media, 2) - _kept(stage, media, 1)


def _kept(stage: assemble.Stage, media: tuple[int, int] | None, rows: int) -> int:
    batches = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), stage.abstract_batches(media)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(params: Params, frozen: Params, batches: Any, key: Any) -> Any:
        return sum(losses.text_losses(stage.graph, params, frozen, batches, key)[0].values())

    def backward(params: Params, frozen: Params, batches: Any, key: Any) -> Any:
        return jax.tree.leaves(jax.vjp(lambda p: loss(p, frozen, batches, key), params)[1])

    jaxpr = jax.make_jaxpr(backward)(stage.trainable, stage.frozen, batches, key).jaxpr
    given = set(map(id, [*jaxpr.invars, *jaxpr.constvars]))
    found = {id(v): v for v in jaxpr.outvars if not isinstance(v, Literal) and id(v) not in given}
    return sum(math.prod(v.aval.shape) * np.dtype(v.aval.dtype).itemsize for v in found.values())


def number(count: int) -> str:
    """1.4 B, 194 M."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def gb(size: float) -> str:
    """Bytes as GB (10⁹)."""
    return f"{size / GB:.2f} GB" if size < 10 * GB else f"{size / GB:,.0f} GB"


if __name__ == "__main__":
    main()
