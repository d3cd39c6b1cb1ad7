"""All of Flamingo, as small as it can be split over devices: what tests of the whole step are on.

Configs name its encoder where the fixture `smallest` (tests/conftest.py) is used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flamingo_jax import assemble, config, sharding
from flamingo_jax.model import nfnet
from flamingo_jax.shapes import Batch, map_paths
from flamingo_jax.train.step import TrainState

T, SIDE = 8, 8
VOCABULARY = assemble.Vocabulary(32, 2)
ENCODER = nfnet.NFNetConfig(
    widths=(16,), depths=(1,), strides=(2,), stem=((4, 2), (8, 1)), group_width=4, final_width=8
)
FEATURES = (ENCODER.grid(SIDE) ** 2, 8)  # (P, E)
ONE = {"replica": 1, "fsdp": 1, "tensor": 1}


def described() -> Any:
    """The model in f32, a config without datasets that is yet to be finished."""
    c = config.base()
    c.model.update(dtype="float32", remat="none")
    c.model.vision.update(variant="smallest", image_size=SIDE, dtype="float32")
    c.model.language.update(width=16, blocks=2, heads=2, head_dim=8, hidden=32)
    c.model.resampler.update(depth=1, latents=4, width=16, heads=2, head_dim=8, hidden=32)
    c.model.xattn.update(heads=2, head_dim=8, hidden=32)
    c.train.steps = 5
    c.train.optimizer.update(lr=1e-2, warmup=0)
    return c


def pages(batch: int, loss_chunk: int = 0, micro_batches: int = 1, frozen: str = "sharded") -> Any:
    """The finished config of one dataset of pages, of two pictures a row."""
    c = described()
    c.model.loss_chunk, c.train.micro_batches = loss_chunk, micro_batches
    c.mesh.frozen = frozen
    c.train.datasets.pages = config.dataset(layout="page", batch=batch, length=T, images=2)
    return config.finish(c)


def make_mesh(**sizes: int) -> Mesh:
    """A mesh of the first devices, by default of one."""
    sizes = ONE | sizes
    count = sizes["replica"] * sizes["fsdp"] * sizes["tensor"]
    return sharding.make_mesh(**sizes, devices=jax.devices()[:count])


def example(batch: int, seed: int) -> Batch:
    """Rows of very different numbers of targets: a mean of parts' means is another."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY.size + VOCABULARY.new, (batch, T))
    return Batch(
        tokens=tokens.astype(np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (batch, 1)),
        media=rng.normal(size=(batch, 2, 1, *FEATURES)).astype(np.float32),  # cached
        frames=np.ones((batch, 2), np.int32),
        media_of_token=np.tile(np.minimum(np.arange(T, dtype=np.int32) // 3, 2), (batch, 1)),
        loss_mask=(np.arange(T) < rng.integers(1, T, (batch, 1))).astype(np.float32),
    )


def begin(stage: assemble.Stage, values: dict[str, np.ndarray]) -> tuple[TrainState, Any]:
    """The state before the first step and the frozen parameters, of values by path."""

    def put(part: Any) -> Any:
        return map_paths(lambda path, to: jax.device_put(values[path], to.sharding), part)

    params, frozen = put(stage.trainable), put(stage.frozen)
    opt = jax.jit(stage.tx.init, out_shardings=stage.state_shardings.opt)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), stage.state_shardings.step)
    return TrainState(step, params, opt), frozen
