"""A tiny run's workdir, written by the functions that training writes with, but never trained."""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """What a workdir was written from.

    Attributes:
      path: the workdir; tests that change it copy it first.
      config: finished.
      tokenizer: of bytes.
      params: {step: whole parameter tree} of the Flamingo stage.
      language: the whole tree of the language stage's only step.
    """

    path: pathlib.Path
    config: Any
    tokenizer: Any
    params: dict[int, Any]
    language: Any


LOUDNESS = (("^language/blocks", 1.8), ("^xattn/dense", 0.9), ("project|^xattn/out", 3.0))
"""Factors of random kernels (1.5 elsewhere): pictures and words are to change what follows."""


def tiny_config(dtype: str) -> Any:
    """The full architecture with small numbers, pictures of 32 pixels."""
    from flamingo_jax import config

    c = config.base()
    c.name = "tiny"
    c.stages = ("language", "flamingo")
    m = c.model
    m.update(dtype=dtype, remat="full")
    m.language.update(width=32, blocks=2, heads=2, head_dim=16, hidden=48)
    m.vision.update(variant="tiny", image_size=32, standardise=True, dtype=dtype)
    m.resampler.update(depth=1, latents=3, width=32, heads=2, head_dim=16, hidden=48, max_frames=4)
    m.xattn.update(heads=2, head_dim=16, hidden=48)
    c.train.steps = c.pretrain.language.steps = 2
    c.train.datasets.clips = config.dataset(source="folder", layout="clip", frames=4)
    c.pretrain.language.datasets.text = config.dataset(source="folder", layout="text")
    c.eval.batch = 16
    return config.finish(c)


def fill(abstract: Any, seed: int) -> Any:
    """Random parameters, gates open, large enough that pictures and words change what follows."""
    from flamingo_jax.shapes import map_paths

    rng = np.random.default_rng(seed)

    def values(path, leaf):
        drawn = rng.standard_normal(leaf.shape).astype(np.float32)
        if path.endswith(("scale", "gain", "deviation")):
            return 1 + 0.1 * drawn
        if "gate_" in path:
            return np.ones(leaf.shape, np.float32)
        if path == "embed/table":  # what is said can be read: printable characters win
            said = (np.arange(len(drawn)) >= 32) & (np.arange(len(drawn)) < 127)
            return drawn * np.where(said, 0.4, 0.1)[:, None].astype(np.float32)
        if path == "embed/new":
            return 0.3 * drawn
        fan_in = int(np.prod(leaf.shape[:-1])) if "vision" in path else leaf.shape[-2:][0]
        loud = next((factor for pattern, factor in LOUDNESS if re.search(pattern, path)), 1.5)
        return drawn * np.float32(loud * fan_in**-0.5)

    return map_paths(values, abstract)


def write_workdir(path: pathlib.Path, dtype: str = "float32") -> TinyRun:
    """Writes config, tokenizer, frozen weights, and the steps of two stages."""
    import jax.numpy as jnp

    from flamingo_jax import config as configs
    from flamingo_jax.checkpoint import StageCheckpoints, save_frozen
    from flamingo_jax.data.tokenizer import open_tokenizer
    from flamingo_jax.eval.rows import Graph
    from flamingo_jax.shapes import flatten_paths, merge_trees, unflatten_paths
    from flamingo_jax.train.optimizer import matches
    from flamingo_jax.use.loading import model_config

    config, tokenizer = tiny_config(dtype), open_tokenizer("bytes")
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(configs.to_json(config), encoding="utf-8")
    tokenizer.save(path / "tokenizer")

    def save(stage, step, trained, digest):
        with StageCheckpoints(path / "checkpoints" / stage, keep=5, every=1) as checkpoints:
            arrays = unflatten_paths({p: jnp.asarray(a) for p, a in trained.items()})
            checkpoints.save(step, arrays, {"count": jnp.zeros(())}, {"frozen": digest}, force=True)

    language = fill(Graph(model_config(config, tokenizer, "language", None)).abstract, 1)
    save("language", 2, flatten_paths(language), "")
    abstract = Graph(model_config(config, tokenizer, "flamingo", None)).abstract
    params = {}
    for step in (1, 2):
        flat = flatten_paths(fill(abstract, 0))
        trained = {p: a * (1 + 0.1 * step) for p, a in flat.items() if matches(config.trainable, p)}
        fixed = {p: jnp.asarray(a, dtype) for p, a in flat.items() if p not in trained}
        frozen = unflatten_paths(fixed)
        save("flamingo", step, trained, save_frozen(path, frozen))
        params[step] = merge_trees(unflatten_paths(trained), frozen)
    return TinyRun(path, config, tokenizer, params, language)


@pytest.fixture(scope="session")
def tiny_workdir(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run in float32 with steps 1 and 2 of its Flamingo stage."""
    return write_workdir(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def half_workdir(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same in bfloat16, as real runs are."""
    return write_workdir(tmp_path_factory.mktemp("half") / "run", "bfloat16")


@pytest.fixture(scope="session")
def flamingo(tiny_workdir: TinyRun) -> Any:
    """Its newest step, loaded."""
    from flamingo_jax import load

    return load(tiny_workdir.path)


def picture(seed: int) -> np.ndarray:
    """u8[32, 32, 3] of a few coloured patches."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Three pictures u8[32, 32, 3]."""
    return [picture(seed) for seed in range(3)]
