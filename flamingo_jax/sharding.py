"""Two small tables: parameter path → dim letters, dim letter → mesh axis; and rows of hosts.

Mesh axes are ("replica", "fsdp", "tensor"). Batches are split over replica and fsdp, weights over
fsdp and tensor. The optimizer's moments end in the same paths, so the same table shards them.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Array, Params, map_paths

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")
"""The mesh axes that a batch's rows are split over."""

LETTERS: tuple[tuple[str, str], ...] = (
    (r"^vision/nfnet/(head|.*excite/(down|up))/kernel$", "CO"),
    (r"^vision/nfnet/.*bias$", "O"),
    (r"^embed/table$", "VD"),
    (r"^embed/new$", "WD"),
    (r"^head/kernel$", "DV"),
    (r"^head/new$", "DW"),
    (r"^(vision|text)/.*table$", "VE"),
    (r"(query|key|value|relative)/kernel$", "DN"),
    (r"out/kernel$", "ND"),
    (r"(gate|up)/kernel$", "DI"),
    (r"down/kernel$", "ID"),
    (r"(content|position)_bias$", "NH"),
    (r"(query|key|value)/bias$", "N"),
    (r"(gate|up)/bias$", "I"),
    (r"^project/kernel$", "ED"),
    (r"^resampler/project/kernel$", "OD"),
    (r"^(image|text)_projection/kernel$", "EA"),
    (r"^resampler/latents$", "RE"),
    (r"^resampler/(time|media)$", "FE"),
    (r"^text/positions$", "TE"),
    (r"^vision/.*kernel$", "YXCO"),
)
"""First match wins. A leading stack axis (L, n, depth) is recognised by rank and left whole."""

AXIS_OF_LETTER: dict[str, str] = {
    "D": "fsdp",
    "E": "fsdp",
    "N": "tensor",
    "I": "tensor",
    "V": "tensor",
}
"""Letters not named here are left whole (the paper's NFNet is not sharded: Flamingo §B.1.2)."""


def make_mesh(replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Any = None) -> Mesh:
    """The mesh over all devices; one of the sizes may be -1: what the others leave.

    Raises:
      InputError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [replica, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(
            f"config.mesh: replica, fsdp and tensor are {sizes}; each is at least 1, one may be -1"
        )
    if -1 in sizes:
        known = math.prod(s for s in sizes if s != -1)
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"config.mesh: replica {sizes[0]} x fsdp {sizes[1]} x tensor {sizes[2]} is not the "
            f"number of devices, {len(devices)}; set one of them to -1"
        )
    # Auto is said outright: jax.make_mesh defaults to Explicit axes, under which gathers raise.
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def letters(path: str, rank: int) -> str:
    """The dim letters of a parameter, a leading stack axis written as `.`.

    Raises:
      ValueError: for a weight of rank ≥ 2 that no row of the table matches.
    """
    for pattern, dims in LETTERS:
        if re.search(pattern, path) and rank - len(dims) in (0, 1):
            return "." * (rank - len(dims)) + dims
    if rank >= 2 and not re.search(r"(bias|scale|gain|mean|deviation)$", path):
        raise ValueError(f"no row of sharding.LETTERS matches the parameter {path!r}, rank {rank}")
    return "." * rank


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of a parameter.

    A mesh axis is used once an array (the leftmost letter wins), and not at all on a dim that it
    does not divide: that dim is left whole.
    """
    used: set[str] = set()
    parts: list[str | None] = []
    for letter, size in zip(letters(path, len(shape)), shape, strict=True):
        axis = AXIS_OF_LETTER.get(letter)
        if axis is None or axis in used or mesh.shape[axis] == 1 or size % mesh.shape[axis]:
            parts.append(None)
        else:
            used.add(axis)
            parts.append(axis)
    while parts and parts[-1] is None:
        parts.pop()
    return P(*parts)


def param_shardings(abstract: Params, mesh: Mesh) -> Params:
    """NamedShardings of a tree of parameters."""
    return map_paths(lambda path, a: NamedSharding(mesh, spec(path, a.shape, mesh)), abstract)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that carry their shardings: the targets of a restore."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: dim 0 over replica and fsdp."""
    return NamedSharding(mesh, P(ROWS))


def check_batch(name: str, batch: int, mesh: Mesh) -> None:
    """Raises InputError if a dataset's batch cannot be split over the mesh's rows."""
    shards = mesh.shape["replica"] * mesh.shape["fsdp"]
    if batch % shards:
        raise InputError(
            f"the batch of dataset {name!r} is {batch}, not a multiple of replica x fsdp = "
            f"{shards}; change the dataset's batch or config.mesh"
        )


def local_rows(batch: int, mesh: Mesh) -> tuple[int, int]:
    """The rows [low, high) of a global batch that this process must feed.

    They follow from the sharding, not from the process's number: with tensor parallelism across
    hosts several processes must feed the same rows.
    """
    index = rows_sharding(mesh).addressable_devices_indices_map((batch,))
    slices = [where[0].indices(batch) for where in index.values() if where is not None]
    return min(s[0] for s in slices), max(s[1] for s in slices)


def to_devices(tree: Any, mesh: Mesh) -> Any:
    """This process's rows (numpy) → global arrays sharded over the mesh's rows."""
    sharding = rows_sharding(mesh)

    def place(a: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(sharding, a)

    return jax.tree.map(place, tree)


def constrain_rows(mesh: Mesh) -> Any:
    """A function that pins activations [B, …] to the batch's sharding."""
    sharding = rows_sharding(mesh)
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)
