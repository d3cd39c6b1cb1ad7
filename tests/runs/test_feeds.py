"""What a stage is fed with is what its step was compiled for while the data was being opened."""

import jax
import numpy as np
import pytest

from flamingo_jax import config, inputs, sharding
from flamingo_jax.data.tokenizer import train_tokenizer
from flamingo_jax.preemption import StopRequest
from flamingo_jax.shapes import flatten_paths
from flamingo_jax.workdir import Workdir


def shapes(batches):
    """{path: (shape, dtype, sharding)}, of arrays or of what stands for them."""
    leaves = jax.tree_util.tree_leaves_with_path(batches)
    return {
        jax.tree_util.keystr(path): (a.shape, np.dtype(a.dtype), a.sharding) for path, a in leaves
    }


@pytest.mark.parametrize("stage", ["language", "contrastive", "flamingo", "flamingo, pixels"])
def test_batches_have_the_announced_shapes(trainer, tmp_path, stage):
    name, _, pixels = stage.partition(",")
    overrides = {"data.cache_features": str(not pixels)}
    c = config.finish(config.load(f"{trainer.experiment}:stages", overrides))
    tokenizer = train_tokenizer(["a red square"], 300, image="new")
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    run = inputs.Run(c, Workdir(tmp_path / "run"), tokenizer, mesh, {}, StopRequest())
    assembled = run.assemble(name)
    frozen = assembled.initial(0, set(flatten_paths(assembled.frozen)))
    fed = inputs.feeds(run, assembled, frozen)

    announced = assembled.abstract_batches(inputs.cached_shape(c, assembled))
    given = sharding.to_devices(next(iter(fed.train(0))), mesh)
    assert shapes(given) == shapes(announced) and set(given) == set(assembled.datasets)
    for batch in fed.validation:
        measured = {dataset: announced[dataset] for dataset in batch}
        assert shapes(sharding.to_devices(batch, mesh)) == shapes(measured)
