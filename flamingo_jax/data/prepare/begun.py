"""A folder while it is prepared: locked, begun with a plan, ended with a manifest."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flamingo_jax.data.prepare import manifest, writer
from flamingo_jax.data.readers import codec
from flamingo_jax.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def writable(out: str) -> Iterator[None]:
    """Says it in one sentence if something cannot be written within the block."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out!r} cannot be written ({error}); make room or mend it, and run the same command "
            "again"
        ) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps others from preparing here; the kernel holds the lock, a kill leaves none.

    Raises:
      InputError: if another process does.
    """
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process prepares into {str(folder)!r}; wait until it ends, or give "
                "another --out"
            ) from error
        yield


def begin(folder: pathlib.Path, plan: Mapping[str, Any]) -> None:
    """Writes the plan into an empty folder, or compares it with the one there.

    Raises:
      InputError: see `check_begun`.
    """
    for path in folder.glob(f"{manifest.TEMPORARY}*"):
        path.unlink(missing_ok=True)
    path = folder / manifest.PLAN
    old = path.read_bytes() if path.exists() else None
    check_begun(str(folder), old, [entry.name for entry in folder.iterdir()], plan)
    if old is None:
        manifest.write(path, plan)


def check_begun(where: str, old: bytes | None, names: list[str], plan: Mapping[str, Any]) -> None:
    """Says whether a plan may be begun in a folder, or gone on with.

    Args:
      where: the folder, for messages.
      old: what stands in its plan.json; None if there is none.
      names: of its files.
      plan: the plan.

    Raises:
      InputError: if it holds others' files, another plan, or a damaged one.
    """
    if old is None:
        others = sorted(name for name in names if not name.startswith("."))
        if others:
            raise InputError(
                f"{where!r} holds {others[0]!r}, which prepare did not begin; give an empty or a "
                "new folder"
            )
        return
    try:
        found = list(changes(json.loads(old), plan))
    except (ValueError, AttributeError) as error:
        path = f"{where.rstrip('/')}/{manifest.PLAN}"
        raise InputError(f"{path!r} is damaged ({error}); give a new folder") from error
    for field, before, now in found:
        raise InputError(
            f"{where!r} was begun with {field}={json.dumps(before)} and is now to have "
            f"{json.dumps(now)}; set it back, or give another --out"
        )


def changes(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, before, now) of what differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{field}.{name}" if field else name
            yield from changes(old.get(name), new.get(name), inner)
    elif old != new:
        yield field or "plan", old, new


def none_kept(records: int, dropped: Mapping[str, int], bad: Mapping[str, int]) -> InputError:
    """What is to be raised when no document is left; the reasons with how often each took one."""
    reasons = _added((dropped, bad)).most_common(3)
    most = ", ".join(f"{count} times {reason}" for reason, count in reasons)
    return InputError(f"none of {records} records can be kept: {most}")


def make_manifest(plan: Mapping[str, Any], accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """What stands in the manifest of a folder of these shards, in their order.

    Raises:
      InputError: if no document was kept.
    """
    counts, dropped, bad, left_out = (
        _added(account[name] for account in accounts)
        for name in ("counts", "dropped", "bad", "left_out")
    )
    if not counts["documents"]:
        raise none_kept(counts["records"], dropped, bad)
    shards = [
        {
            "name": account["name"],
            "documents": account["counts"]["documents"],
            "bytes": account["bytes"],
            "sha256": account["sha256"],
        }
        for account in accounts
    ]
    return {
        "format": manifest.FORMAT,
        "schema": {
            "container": "ArrayRecord",
            "options": writer.OPTIONS,
            "record": "FLD1",
            "items": ["text", *codec.KINDS],
        },
        "plan": plan,
        "counts": counts,
        "bytes": sum(account["bytes"] for account in accounts),
        "dropped": dropped,
        "bad": bad,
        "left_out": left_out,
        "shards": shards,
    }


def _added(counts: Iterable[Mapping[str, int]]) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for one in counts:
        total.update(one)  # keeps zeros, which a sum of counters does not
    return total
