"""What a plan asks of a compiler, and the stage that it means: the very one that `train` runs."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from flamingo_jax.errors import InputError

VOCABULARY = 32_000
"""Tokens where the config leaves it to a tokenizer: as many as experiments/flamingo_*.py name."""
REMEDY = {
    "tpu": "the extra `plan`: pip install 'flamingo-jax[plan]'",
    "cuda": "JAX's plugin for GPUs, of jax's version: pip install --no-deps jax-cuda12-plugin "
    "jax-cuda12-pjrt",
}
"""What compiles for a platform, and how to get it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
      config: FILE.py[:variant].
      overrides: {"a.b": "value"} of the config.
      stage: its name.
      topology: "v5e:4x4", "v4:8x12x16", …, or "local".
      mesh: replica, fsdp, tensor; one may be -1. None = the config's.
      batch: every dataset's batch times this.
      remat: in place of the config's; "" = the config's.
      features: whether batches hold cached features in place of pixels.
      datasets: the stage's only datasets; () = all of them.
      vocabulary: tokens, where the config names none.
      dump: a folder for the compiler's texts, new or empty, kept; "" = a temporary one.
      devices: simulated devices of "local"; 0 = this machine's.
    """

    config: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    stage: str = "flamingo"
    topology: str = "local"
    mesh: tuple[int, int, int] | None = None
    batch: float = 1.0
    remat: str = ""
    features: bool = False
    datasets: tuple[str, ...] = ()
    vocabulary: int = VOCABULARY
    dump: str = ""
    devices: int = 0


def from_json(fields: dict[str, Any]) -> Request:
    """A request as `json` hands back what `dataclasses.asdict` gave."""
    mesh = tuple(fields["mesh"]) if fields["mesh"] else None
    return Request(**{**fields, "datasets": tuple(fields["datasets"]), "mesh": mesh})


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request's stage, assembled for devices that need not be there.

    Attributes:
      config: finished.
      stage: the `assemble.Stage`.
      vocabulary: with which it was assembled.
      media: dims of a frame's cached features (P, E); None = pixels.
    """

    config: Any
    stage: Any
    vocabulary: Any
    media: tuple[int, int] | None


def settings(request: Request) -> tuple[Any, Any]:
    """The request's config, not finished, and its stage's part of it, with the batches asked for.

    Raises:
      InputError: for a stage or dataset that there is not, or a batch of no whole rows.
    """
    from flamingo_jax import config

    c = config.load(request.config, request.overrides)
    if request.stage not in c.stages:
        raise InputError(
            f"{request.config!r} has no stage {request.stage!r}; its stages are "
            f"{', '.join(c.stages)}"
        )
    own = config.stage_settings(c, request.stage)
    for name in request.datasets:
        if name not in own.datasets:
            raise InputError(
                f"stage {request.stage!r} has no dataset {name!r}; it has {', '.join(own.datasets)}"
            )
    for name in [name for name in own.datasets if request.datasets]:
        if name not in request.datasets:
            del own.datasets[name]
    for name, row in own.datasets.items():
        batch = row.batch * request.batch
        if batch < 1 or batch != int(batch):
            raise InputError(
                f"the batch of dataset {name!r}, {row.batch}, times {request.batch:g} is no whole "
                "number of rows; give another factor"
            )
        row.batch = int(batch)
    c.model.remat = request.remat or c.model.remat
    return c, own


def digest(request: Request) -> str:
    """Of the request's config as it is on the disk today."""
    from flamingo_jax import config

    return hashlib.sha256(config.to_json(settings(request)[0]).encode()).hexdigest()[:16]


def assembled(request: Request, devices: Any) -> Asked:
    """The stage that `train` would run on these devices.

    Raises:
      InputError: for a config, stage, dataset, batch or mesh that makes no sense.
    """
    from flamingo_jax import assemble, config, sharding

    c = config.finish(settings(request)[0])
    replica, fsdp, tensor = request.mesh or (c.mesh.replica, c.mesh.fsdp, c.mesh.tensor)
    try:
        mesh = sharding.make_mesh(replica, fsdp, tensor, devices=devices, slices=c.mesh.slices)
    except NotImplementedError as error:  # JAX's, of axes that a torus cannot be cut into
        raise InputError(
            f"config.mesh {replica} x {fsdp} x {tensor} cannot be laid on {request.topology}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    new = 1 + (c.tokenizer.image == "new")  # <EOC>, and <image> where that is a token of its own
    vocabulary = assemble.Vocabulary(c.model.language.vocab or request.vocabulary, new)
    media = None
    if request.features:
        vision = assemble.vision_config(c)
        size = c.data.image_size or c.model.vision.image_size
        media = (vision.features(size), vision.width)
    return Asked(c, assemble.stage(c, request.stage, vocabulary, mesh), vocabulary, media)


def devices_of(text: str) -> tuple[Any, str]:
    """The devices of a topology and their platform.

    Raises:
      InputError: for an unknown topology, or one whose compiler is not installed.
    """
    import jax
    from jax.experimental import topologies

    from flamingo_jax.planning import topology

    if text == topology.LOCAL:
        platform = jax.default_backend()
        return jax.devices(), "cuda" if platform == "gpu" else platform
    arguments = topology.description(topology.parse(text))
    platform = arguments["platform"]
    try:
        return topologies.get_topology_desc(**arguments).devices, platform
    except Exception as error:
        needed = REMEDY[platform]
        raise InputError(
            f"the topology {text!r} cannot be made: {str(error).splitlines()[0]}; it needs "
            f"{needed}; --topology=local needs nothing"
        ) from error
