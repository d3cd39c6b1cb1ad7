"""From a folder to a model: a run's workdir, one of its stages, or one of its steps."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from flamingo_jax import assemble, sharding, storage
from flamingo_jax import config as configs
from flamingo_jax.checkpoint import list_steps, load_frozen, load_params
from flamingo_jax.data.tokenizer import Tokenizer, load_tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.eval.rows import Graph
from flamingo_jax.model.flamingo import FlamingoConfig
from flamingo_jax.shapes import Params, flatten_paths, map_paths, merge_trees, unflatten_paths
from flamingo_jax.train.optimizer import matches
from flamingo_jax.use.model import LoadedFlamingo

DTYPES = ("float32", "bfloat16")
STAGES = ("flamingo", "language")
"""Stages that leave a model to be prompted."""


def load(
    path: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None
) -> LoadedFlamingo:
    """Opens a trained model; it may have been trained on any number of devices.

    Args:
      path: a workdir: the newest sound step of its last stage; or, in it, checkpoints/STAGE, or
        checkpoints/STAGE/STEP; all of them also as gs:// addresses.
      dtype: "float32" or "bfloat16" to compute in; None = as the config says. On CPUs float32 is
        faster for single prompts.
      mesh: the devices to spread the parameters over (`sharding.make_mesh`); None = the first one.

    Raises:
      InputError: for a folder that holds no model, or a damaged one.
    """
    place = storage.to_path(path)
    with storage.told(place):
        return _load(place, str(path), dtype, mesh)


def _load(place: epath.Path, path: str, dtype: str | None, mesh: Mesh | None) -> LoadedFlamingo:
    workdir, stage, step = _locate(place, path)
    config = _read_config(workdir)
    if not stage:
        stage = _last_stage(workdir, config)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    graph = Graph(model_config(config, tokenizer, stage, dtype), mesh)
    trained, frozen = _targets(config, stage, graph.abstract, mesh)

    def report(step: int, text: str) -> None:
        warnings.warn(f"{workdir}, stage {stage}: {text}", stacklevel=5)

    folder = workdir / "checkpoints" / stage
    restored = load_params(folder, trained, step=step, report=report)
    params = restored.params
    if frozen:
        digest = restored.meta.get("frozen")
        if not digest:
            raise InputError(
                f"{folder / str(restored.step)} names no frozen weights, and its config freezes "
                "some; load a step of the run that the config belongs to"
            )
        params = merge_trees(params, load_frozen(workdir, digest, frozen))
    about = {"path": path, "stage": stage, "step": restored.step}
    return LoadedFlamingo(config, tokenizer, graph, _cast(params, dtype), about)


def from_parts(
    config: Any,
    tokenizer: Tokenizer,
    params: Params,
    stage: str = "flamingo",
    dtype: str | None = None,
) -> LoadedFlamingo:
    """A model from what is in memory; nothing is read.

    Args:
      config: the finished config.
      tokenizer: of the language model.
      params: all parameters of the stage's model, trained and frozen merged, in any sharding.
      stage: "flamingo", or "language" for the bare language model of that stage.
      dtype: as for `load`.

    Raises:
      InputError: if the parameters are not those of the config's model.
    """
    graph = Graph(model_config(config, tokenizer, stage, dtype))
    found, wanted = flatten_paths(params), flatten_paths(graph.abstract)
    for name in sorted(found.keys() | wanted.keys()):
        here = tuple(found[name].shape) if name in found else None
        there = tuple(wanted[name].shape) if name in wanted else None
        if here != there:
            raise InputError(
                f"the parameter {name!r} has the shape {here}, and {there} in this config's model; "
                "give the config that the parameters were trained with"
            )
    return LoadedFlamingo(config, tokenizer, graph, _cast(params, dtype), {"stage": stage})


def model_config(
    config: Any, tokenizer: Tokenizer, stage: str, dtype: str | None
) -> FlamingoConfig:
    """The shape of a stage's model for use.

    Raises:
      InputError: for a dtype or a stage that there is not.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: give {' or '.join(map(repr, DTYPES))}, or None")
    if stage not in STAGES:
        raise InputError(
            f"the stage {stage!r} leaves no model to prompt; {' and '.join(STAGES)} do"
        )
    vocabulary = assemble.Vocabulary(tokenizer.vocab, len(tokenizer.new_tokens))
    whole = assemble.flamingo_config(config, vocabulary)
    if stage == "language":
        language = dataclasses.replace(whole.language, new_tokens=0)
        whole = FlamingoConfig(language, dtype=whole.dtype)
    whole = dataclasses.replace(whole, remat="none")
    return whole if dtype is None else dataclasses.replace(whole, dtype=dtype, vision_dtype=dtype)


def _cast(params: Params, dtype: str | None) -> Params:
    """Everything to f32; for bf16 nothing: trained weights keep their precision until used."""
    if dtype != "float32":
        return params
    return map_paths(lambda _, leaf: leaf.astype(dtype), params)


def _locate(whole: epath.Path, path: str) -> tuple[epath.Path, str, int | None]:
    """The workdir, and the stage and the step where `path` names them ("" and None if not)."""
    if not storage.exists(whole):
        raise InputError(f"there is no folder {path!r}; give a run's workdir, or a step in it")
    if storage.exists(whole / "config.json"):
        return whole, "", None
    if whole.parent.name == "checkpoints":
        return whole.parents[1], whole.name, None
    if whole.name.isdecimal() and whole.parents[1].name == "checkpoints":
        return whole.parents[2], whole.parent.name, int(whole.name)
    raise InputError(
        f"{path!r} holds no config.json; give a run's workdir, or a step in it "
        "(WORKDIR/checkpoints/STAGE/STEP)"
    )


def _read_config(workdir: epath.Path) -> Any:
    file = workdir / "config.json"
    try:
        return configs.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(file)!r} ({error}); a run's workdir has it") from error


def _last_stage(workdir: epath.Path, config: Any) -> str:
    for stage in reversed(config.stages):
        if stage in STAGES and list_steps(workdir / "checkpoints" / stage):
            return stage
    raise InputError(
        f"{str(workdir)!r} holds no checkpoint of a stage to prompt ({' or '.join(STAGES)}); train "
        "it further"
    )


def _targets(config: Any, stage: str, abstract: Params, mesh: Mesh | None) -> tuple[Params, Params]:
    """What to restore, trained and frozen: abstract arrays as training saves them, placed."""
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        placed = map_paths(lambda *_: device, abstract)
    else:
        placed = sharding.param_shardings(abstract, mesh, assemble.head_counts(config))
    where = flatten_paths(placed)
    patterns = ("",) if stage == "language" else config.trainable
    trained, frozen = {}, {}
    for path, leaf in flatten_paths(abstract).items():
        is_trained = matches(patterns, path)
        dtype = leaf.dtype if is_trained else config.model.dtype
        target = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where[path])
        (trained if is_trained else frozen)[path] = target
    return unflatten_paths(trained), unflatten_paths(frozen)
