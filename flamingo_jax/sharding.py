"""Two small tables: parameter path → dim letters, dim letter → mesh axis; and rows of hosts.

Mesh axes are ("replica", "fsdp", "tensor"). Batches are split over replica and fsdp, weights over
fsdp and tensor. The optimizer's moments end in the same paths, so the same table shards them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Array, Params, flatten_paths, map_paths

AXES = ("replica", "fsdp", "tensor")
ROWS = ("replica", "fsdp")
"""The mesh axes that a batch's rows are split over."""

COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    # Windowed einsum cuts products with gathered weights into some of K = 128: on v5e, by estimated
    # cycles, a step of 3B takes 0.69 s with it and 0.29 s without.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000},
}
"""XLA's options for steps, by platform."""

LETTERS: tuple[tuple[str, str], ...] = (
    (r"^vision/nfnet/(head|.*excite/(down|up))/kernel$", "CO"),
    (r"^vision/nfnet/.*bias$", "O"),
    (r"^vision/vit/patches/kernel$", "CE"),
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
    (r"^(text|vision/vit)/positions$", "TE"),
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


Axes = tuple[str, ...]
"""Some of the mesh's axes."""

Heads = tuple[tuple[str, int], ...]
"""(regex of paths, heads): how many heads the dims N of those parameters hold; first match wins."""


def make_mesh(
    replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Any = None, slices: int = 1
) -> Mesh:
    """The mesh over all devices; one of the sizes may be -1: what the others leave.

    Args:
      replica: copies of the weights; over slices, whose network is slower, only this axis runs.
      fsdp: over how many devices a copy is split.
      tensor: over how many devices a matrix product is split.
      devices: all of JAX's when None.
      slices: how many groups of devices there are with a fast network of their own.

    Raises:
      InputError: if the sizes do not multiply to the number of devices, or slices cut a replica.
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
    if slices < 1 or sizes[0] % slices:
        raise InputError(
            f"config.mesh.slices is {slices} and replica {sizes[0]}, which it must divide: weights "
            "are split inside a slice only; set replica to a multiple of the slices"
        )
    # Auto is said outright: jax.make_mesh defaults to Explicit axes, under which gathers raise.
    return Mesh(_grid(sizes, list(devices), slices), AXES, axis_types=(AxisType.Auto,) * 3)


def _grid(sizes: list[int], devices: list[Any], slices: int) -> np.ndarray:
    """Devices in the mesh's shape: neighbours on a TPU's torus are neighbours on its axes."""
    here = {getattr(device, "slice_index", 0) for device in devices}
    if slices > 1 and len(here) > 1:
        if len(here) != slices:
            raise InputError(f"config.mesh.slices is {slices} and the devices are of {len(here)}")
        inside = (sizes[0] // slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu" and slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Elsewhere devices come process by process: the outermost axis runs over slices as it is.
    return np.asarray(devices).reshape(sizes)


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """The options that steps on a mesh's devices are compiled with."""
    return COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)


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


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads = (), over: Axes = AXES) -> P:
    """The PartitionSpec of a parameter, over some of the mesh's axes.

    A mesh axis is used once an array (the leftmost letter wins), and not at all on a dim that it
    does not divide: that dim is left whole. Of a dim N it must divide the heads, so that none is
    cut in two.
    """
    parts, _ = _axes(path, shape, mesh, heads)
    parts = [axis if axis in over else None for axis in parts]
    while parts and parts[-1] is None:
        parts.pop()
    return P(*parts)


def _count(path: str, letter: str, size: int, heads: Heads) -> int:
    """What a dim's axis must divide: its size, or the number of heads in a dim N."""
    counts = (count for regex, count in heads if letter == "N" and re.search(regex, path))
    return next(counts, size)


def _axes(
    path: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads
) -> tuple[list[str | None], list[int]]:
    """The axis of each dim, and the dims that are whole because their axis does not divide them."""
    parts: list[str | None] = [None] * len(shape)
    whole: list[int] = []
    for i, (letter, size) in enumerate(zip(letters(path, len(shape)), shape, strict=True)):
        axis = AXIS_OF_LETTER.get(letter)
        if axis is None or axis in parts or mesh.shape[axis] == 1:
            continue
        if _count(path, letter, size, heads) % mesh.shape[axis]:
            whole.append(i)
        else:
            parts[i] = axis
    return parts, whole


@dataclasses.dataclass(frozen=True)
class Remark:
    """A dim that is left whole because its mesh axis does not divide it.

    Attributes:
      path: of the parameter.
      letter: of the dim.
      size: of the dim; of N, the number of heads where it is known.
      axis: the mesh axis that it would be split over.
      ways: the size of that axis.
      bytes: what each device holds more of it than if it were split.
    """

    path: str
    letter: str
    size: int
    axis: str
    ways: int
    bytes: int


def remarks(abstract: Params, mesh: Mesh, heads: Heads = ()) -> list[Remark]:
    """What the mesh does not divide, in the order of the paths."""
    found = []
    for path, a in flatten_paths(abstract).items():
        parts, whole = _axes(path, a.shape, mesh, heads)
        ways = math.prod(mesh.shape[axis] for axis in parts if axis is not None)
        held = math.prod(a.shape) * np.dtype(a.dtype).itemsize // ways
        for i in whole:
            letter = letters(path, len(a.shape))[i]
            axis, size = AXIS_OF_LETTER[letter], _count(path, letter, a.shape[i], heads)
            over = mesh.shape[axis]
            found.append(Remark(path, letter, size, axis, over, held - held // over))
    return found


def param_shardings(abstract: Params, mesh: Mesh, heads: Heads = (), over: Axes = AXES) -> Params:
    """NamedShardings of a tree of parameters; see `spec`."""

    def place(path: str, a: Array) -> NamedSharding:
        return NamedSharding(mesh, spec(path, a.shape, mesh, heads, over))

    return map_paths(place, abstract)


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


def check_batch(name: str, batch: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises InputError if a dataset's batch or its parts cannot be split over the mesh's rows."""
    shards = row_shards(mesh)
    if batch % shards:
        raise InputError(
            f"the batch of dataset {name!r} is {batch}, not a multiple of replica x fsdp = "
            f"{shards}; change the dataset's batch or config.mesh"
        )
    if batch % (parts * shards):
        raise InputError(
            f"micro_batches={parts}: the batch of dataset {name!r} is {batch}, not a multiple of "
            f"micro_batches x replica x fsdp = {parts * shards}; change one of them"
        )


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def split_rows(tree: Any, parts: int, mesh: Mesh) -> Any:
    """[B, …] → [parts, B / parts, …]: part i takes the i-th of equal slices of every device's rows.

    So no row leaves its device, and each part keeps all of them busy.
    """
    shards, sharding = row_shards(mesh), NamedSharding(mesh, P(None, ROWS))

    def split(a: Array) -> Array:
        B, *rest = a.shape
        own = a.reshape(shards, parts, B // (shards * parts), *rest)
        parted = jnp.swapaxes(own, 0, 1).reshape(parts, B // parts, *rest)
        return jax.lax.with_sharding_constraint(parted, sharding)

    return jax.tree.map(split, tree)


def local_rows(batch: int, mesh: Mesh) -> tuple[int, int]:
    """The rows [low, high) of a global batch that this process must feed.

    They follow from the sharding, not from the process's number: with tensor parallelism across
    hosts several processes must feed the same rows.
    """
    index = rows_sharding(mesh).addressable_devices_indices_map((batch,))
    slices = [where[0].indices(batch) for where in index.values() if where is not None]
    return min(s[0] for s in slices), max(s[1] for s in slices)


def accounted_rows(batch: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that this process writes down, ascending: each row has one writer.

    Of several processes that feed the same rows it is the one with the lowest number.
    """
    feeders: dict[int, int] = {}
    places = rows_sharding(mesh).devices_indices_map((batch,))
    for device in sorted(places, key=lambda device: device.process_index):
        for row in range(*places[device][0].indices(batch)):
            feeders.setdefault(row, device.process_index)
    return sorted(row for row, process in feeders.items() if process == jax.process_index())


def to_devices(tree: Any, mesh: Mesh) -> Any:
    """This process's rows (numpy) → global arrays sharded over the mesh's rows."""
    sharding = rows_sharding(mesh)
    if jax.process_count() == 1:  # all leaves in one call take half the time of one by one
        return jax.device_put(tree, sharding)

    def place(a: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(sharding, a)

    return jax.tree.map(place, tree)
