"""Sealed folders: trees of arrays on disk that can tell whether they are still what was saved.

A sealed folder is one Orbax checkpoint: an item for each tree (`params`, `opt`), and the item
`meta`, a JSON dict in which `fingerprints` records dtype, shape and fingerprint of every leaf, and
`sha256` the hash of all the rest. On a disk Orbax renames the folder into place when all of it is
written, so that a killed save leaves no folder; in a bucket it writes a mark last, without which
the folder is none here (`is_whole`). But it reads a flipped byte as if nothing were wrong and casts
silently to another dtype. `read` therefore trusts nothing that the seal does not confirm.

All functions are called by every process; only the first one writes, renames or removes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from flamingo_jax import fingerprint, storage
from flamingo_jax.errors import InputError, OutOfReach
from flamingo_jax.processes import agreed, barrier, is_primary
from flamingo_jax.shapes import unflatten_paths

META = "meta"
TEMPORARY = ".orbax-checkpoint-tmp"
"""What Orbax puts behind a folder's name until the folder is whole, on a disk."""

COMMITTED = "commit_success.txt"
"""What Orbax writes into a folder when all else is written; in a bucket this makes it whole."""

LEAVING = ".leaving"
"""Behind the name of a folder that is being removed, so that it never passes for a damaged one."""


class Damaged(Exception):
    """A sealed folder does not hold what was saved; the text says in what."""


def composite(trees: dict[str, Any], meta: dict[str, Any]) -> ocp.args.Composite:
    """What a checkpointer is to save: {item: tree}, and `meta` with their seal.

    Waits for the trees' fingerprints. A tree without leaves (the state of plain gradient descent)
    gets no item: the seal alone records that there is nothing.

    Raises:
      TypeError: if `meta` cannot be written as JSON.
    """
    record = _record(trees)
    plain = json.loads(json.dumps({**meta, "fingerprints": record}))
    plain.pop("sha256", None)
    items: dict[str, Any] = {
        item: ocp.args.StandardSave(tree) for item, tree in trees.items() if record[item]
    }
    items[META] = ocp.args.JsonSave({**plain, "sha256": _sha256(plain)})
    return ocp.args.Composite(**items)


def _record(trees: dict[str, Any]) -> dict[str, dict[str, str]]:
    """{item: {path: "float32[2,3] 0123456789abcdef"}} of real arrays, in one compiled call."""
    prints, signatures = fingerprint.fingerprints(trees), fingerprint.signature(trees)
    record: dict[str, dict[str, str]] = {item: {} for item in trees}
    for whole, print_ in prints.items():
        item, _, path = whole.partition("/")
        record[item][path] = f"{signatures[whole]} {print_}"
    return record


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_whole(folder: epath.Path) -> bool:
    """Whether a save of this folder has ended, and nobody has begun to remove it."""
    if storage.is_remote(folder):
        return storage.exists(folder / COMMITTED)
    return folder.is_dir()


def read_meta(folder: epath.Path) -> dict[str, Any]:
    """The meta of a sealed folder.

    Raises:
      Damaged: if it is missing or not what was written.
    """
    try:
        text = (folder / META / "metadata").read_text(encoding="utf-8")
        meta = json.loads(text)
        content = {key: value for key, value in meta.items() if key != "sha256"}
        sound = meta["sha256"] == _sha256(content) and isinstance(content["fingerprints"], dict)
    except FileNotFoundError as error:
        raise Damaged("its meta is missing") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        _not_for_an_outage(folder, error)
        raise Damaged("its meta cannot be read") from error
    if not sound:
        raise Damaged("its meta is not what was written")
    return meta


def read(
    folder: epath.Path, targets: dict[str, Any], expected: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads and verifies items of a sealed folder.

    Args:
      folder: the sealed folder.
      targets: {item: tree of abstract or real arrays to restore into}, with the shardings to
        restore to (none = the first local device); None as a target restores a tree of nested
        dicts as it was saved, on the first local device.
      expected: entries that the meta must have (a folder may have been renamed).

    Returns:
      {item: tree}, and the meta.

    Raises:
      Damaged: the same on every process, if anything is missing or differs from what was saved.
      InputError: if the folder is sound and holds other arrays than the targets.
    """
    targets = {item: jax.tree.map(_abstract, target) for item, target in targets.items()}
    meta = agreed(lambda: read_meta(folder), Damaged)
    for key, value in (expected or {}).items():
        if meta.get(key) != value:
            raise Damaged(f"its meta is that of {key} {meta.get(key)}")
    for item, target in targets.items():
        if item not in meta["fingerprints"]:
            raise InputError(f"{folder} holds no {item!r}, only {', '.join(meta['arrays'])}")
        if target is not None:
            check_target(folder, item, meta["fingerprints"][item], target)
    trees = agreed(
        lambda: {item: _restore(folder, item, target, meta) for item, target in targets.items()},
        Damaged,
    )
    _verify(trees, meta["fingerprints"])
    return trees, meta


def check_target(folder: epath.Path, item: str, recorded: dict[str, str], target: Any) -> None:
    """Compares paths, dtypes and shapes that were saved with those of the tree to restore into.

    Raises:
      InputError: naming the first leaf that differs.
    """
    wanted = fingerprint.signature(target)
    remedy = "restore with the config that it was trained with, or use another folder"
    for path in sorted(wanted.keys() | recorded.keys()):
        saved = recorded[path].split(" ")[0] if path in recorded else None
        if saved is None:
            raise InputError(f"{folder} holds no {item}/{path}, which this config has; {remedy}")
        if path not in wanted:
            raise InputError(f"{folder} holds {item}/{path}, which this config lacks; {remedy}")
        if saved != wanted[path]:
            raise InputError(
                f"{folder} holds {item}/{path} as {saved}, which is {wanted[path]} with this "
                f"config; {remedy}"
            )


def verify_on_disk(folder: epath.Path, item: str, like: Any) -> None:
    """Verifies an item leaf by leaf: never more than one in memory, sharded as in `like`.

    Raises:
      Damaged: the same on every process.
    """
    meta = agreed(lambda: read_meta(folder), Damaged)
    for path, leaf in fingerprint.tree_leaves(like).items():
        target = unflatten_paths({path: _abstract(leaf)})
        tree = agreed(
            functools.partial(_restore, folder, item, target, meta, partial=True), Damaged
        )
        _verify({item: tree}, {item: meta["fingerprints"].get(item, {})})


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """A leaf's shape, dtype and sharding; the first local device where it has none."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(leaf.shape)  # raises here if it does not divide: that is no damage
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as_saved(recorded: dict[str, str]) -> Any:
    """The nested dicts of abstract arrays that a seal's record describes."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    flat = {}
    for path, row in recorded.items():
        shape, dtype = fingerprint.parse_signature(row.split(" ")[0])
        flat[path] = jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    return unflatten_paths(flat)


def _restore(
    folder: epath.Path, item: str, target: Any, meta: dict[str, Any], partial: bool = False
) -> Any:
    """One item's tree, not yet verified.

    Orbax's handlers are used bare: a checkpointer's restore ends in a barrier, at which the others
    would wait for a process that has met a broken file.
    """
    if target is None:
        target = _as_saved(meta["fingerprints"][item])
    if not jax.tree.leaves(target):
        return target
    directory: Any = folder / item
    if not storage.exists(directory):
        raise Damaged(f"its {item} are missing")
    try:
        if partial:
            args = ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            )
            return ocp.PyTreeCheckpointHandler().restore(directory, args=args)
        args = ocp.args.StandardRestore(target)
        return ocp.StandardCheckpointHandler().restore(directory, args=args)
    except MemoryError:
        raise
    except jax.errors.JaxRuntimeError:
        raise  # out of the device's memory: no damage
    except Exception as error:
        _not_for_an_outage(folder, error)
        reason = " ".join(str(error).split())[:120]
        raise Damaged(f"its {item} cannot be read: {type(error).__name__}: {reason}") from error


def _verify(trees: dict[str, Any], recorded: dict[str, dict[str, str]]) -> None:
    """Compares restored trees with the seal's record of them.

    Raises:
      Damaged: naming the first leaf that differs.
    """
    for item, rows in _record(trees).items():
        for path, row in rows.items():
            if recorded[item].get(path) != row:
                raise Damaged(f"the fingerprint of {item}/{path} differs")


def _not_for_an_outage(folder: epath.Path, error: Exception) -> None:
    """Raises a bucket's failure to answer: it says nothing about what the bucket holds."""
    if storage.is_remote(folder) and storage.is_outage(error):
        raise OutOfReach(f"{folder} cannot be read: {error}") from error


def move_aside(folder: epath.Path) -> epath.Path:
    """Renames FOLDER to FOLDER.damaged (or .damaged-2, …) and returns the new path.

    A bucket renames nothing: all is copied before FOLDER is no more.
    """
    aside = folder.with_name(f"{folder.name}.damaged")
    number = 1
    while storage.exists(aside):
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    barrier("sealed:move_aside")
    if is_primary():
        if storage.is_remote(folder):
            storage.copy_tree(folder, aside)
            sweep(withdraw(folder))
        else:
            folder.rename(aside)
    barrier("sealed:moved_aside")
    return aside


def withdraw(folder: epath.Path) -> epath.Path:
    """Makes a folder none that is whole, at once; what is left, under a name of its own, is waste.

    To be called by the first process alone.
    """
    if storage.is_remote(folder):
        (folder / COMMITTED).unlink(missing_ok=True)
        return folder
    return folder.rename(folder.with_name(f"{folder.name}{LEAVING}"))


def sweep(folder: epath.Path) -> None:
    """Removes what `withdraw` left; what cannot be removed now, the next start removes."""
    with contextlib.suppress(OSError):
        folder.rmtree()


def remove_unfinished(folder: epath.Path) -> None:
    """Removes from `folder` what killed saves and killed removals have left."""
    if is_primary():
        for entry in storage.entries(folder):
            if _is_unfinished(entry):
                sweep(entry)
    barrier("sealed:remove_unfinished")


def _is_unfinished(entry: epath.Path) -> bool:
    if storage.is_remote(entry):
        # Names with a dot are those of damaged folders, which are for people to look at.
        return "." not in entry.name and not is_whole(entry)
    return TEMPORARY in entry.name or entry.name.endswith(LEAVING)
