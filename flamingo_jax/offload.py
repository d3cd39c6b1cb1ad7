"""Frozen weights in the hosts' memory, brought to the devices one layer at a time.

What of a model may lie there are the matrices of the frozen language model's blocks, of which a
step needs one layer at a time, and those of the frozen encoder, which it needs before all else.
Tables, norms and biases stay on the devices: they are small, and a transfer of its own each.
JAX knows of every array, traced ones too, in which memory it lies (`jax.memory.Space`).
"""

from __future__ import annotations

import re
from typing import Any

import jax

from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Array, Params, flatten_paths, map_paths

HOST = "pinned_host"
"""JAX's name of the hosts' memory that devices read directly."""

MATRICES: tuple[tuple[str, int], ...] = (
    (r"^language/blocks/.*kernel$", 3),  # [L, …]
    (r"^vision/.*kernel$", 2),
)
"""(regex, least rank): the frozen parameters that are offloaded."""


def placed(abstract: Params, shardings: Params, sight: bool) -> Params:
    """Shardings of frozen parameters, those of `MATRICES` moved to the hosts' memory.

    Args:
      abstract: the parameters, of which ranks are looked at.
      shardings: NamedShardings of all of them.
      sight: whether the encoder is frozen as a whole; in part it stays on the devices, as its
        layers are then used within the gradient.

    Raises:
      InputError: if there are such and the devices cannot read their hosts' memory.
    """
    flat = flatten_paths(shardings)

    def place(path: str, a: Array) -> Any:
        listed = any(len(a.shape) >= least and re.search(rx, path) for rx, least in MATRICES)
        if not listed or (path.startswith("vision/") and not sight):
            return flat[path]
        _check(flat[path].mesh.devices.flat[0])
        return flat[path].with_memory_kind(HOST)

    return map_paths(place, abstract)


def _check(device: Any) -> None:
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"config.mesh.offload=frozen: a device of the kind {device.device_kind!r} reads no "
            f"memory {HOST!r} of its host, only {', '.join(kinds)}; set it to none"
        )


def lend(tree: Params, abstract: Params) -> Params:
    """Arrays that were made on the devices, those moved to the hosts that `abstract` has there."""
    flat = flatten_paths(abstract)

    def move(path: str, a: Array) -> Array:
        target = flat[path].sharding
        if target.memory_kind != HOST:
            return a
        return jax.jit(lambda a: a, out_shardings=target)(a)  # also of several processes

    return map_paths(move, tree)


def on_devices(abstract: Params) -> Params:
    """ShapeDtypeStructs with shardings, all of them moved to the devices' own memory."""

    def move(_: str, a: Array) -> jax.ShapeDtypeStruct:
        kind = "device" if a.sharding.memory_kind == HOST else a.sharding.memory_kind
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding.with_memory_kind(kind))

    return map_paths(move, abstract)


def on_host(a: Array) -> bool:
    """Whether an array, traced or not, lies in its hosts' memory."""
    return jax.typeof(a).memory_space == jax.memory.Space.Host


def bring(tree: Any) -> Any:
    """The tree on the devices, sharded as it is; inside jit."""

    def bring_leaf(a: Array) -> Array:
        return jax.device_put(a, jax.memory.Space.Device) if on_host(a) else a

    return jax.tree.map(bring_leaf, tree)
