"""Weight tables: rows of (foreign name, our paths, transform), and the conversion by them.

A table is read in both directions. A foreign name is literal but for `{layer}`, the index along the
leading axis of a stacked parameter; `{layer+1}`, `{layer*4}` and `{layer*4+3}` stand where the
foreign index is that function of ours. The first row that matches a name has it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Params, flatten_paths, unflatten_paths

LINES = 40
"""An error lists at most so many problems, and says how many more there are."""

LAYER = re.compile(r"\{layer(?:\*(\d+))?(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one foreign tensor becomes ours (one or several), and back.

    Attributes:
      says: what it does, for error messages.
      there: foreign array → our arrays.
      back: our arrays → foreign array.
    """

    says: str
    there: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    back: Callable[..., np.ndarray]


SAME = Transform("as it is", lambda a: (a,), lambda a: a)
LINEAR = Transform("[out, in] → [in, out]", lambda a: (a.T,), lambda a: a.T)
HALVES = Transform(
    "[2 · out, in] → two [in, out]",
    lambda a: tuple(half.T for half in np.split(a, 2, axis=0)),
    lambda a, b: np.concatenate([a.T, b.T]),
)
THIRDS = Transform(
    "[3 · out, in] → three [in, out]",
    lambda a: tuple(third.T for third in np.split(a, 3, axis=0)),
    lambda a, b, c: np.concatenate([a.T, b.T, c.T]),
)
VECTORS = Transform(
    "[3 · out] → three [out]",
    lambda a: tuple(np.split(a, 3)),
    lambda a, b, c: np.concatenate([a, b, c]),
)
PATCHES = Transform(
    "[out, 3, y, x] → [y · x · 3, out]",
    lambda a: (a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),),
    lambda a: a.reshape(*(math.isqrt(a.shape[0] // 3),) * 2, 3, -1).transpose(3, 2, 0, 1),
)
CONV = Transform(
    "[out, in, y, x] → [y, x, in, out]",
    lambda a: (a.transpose(2, 3, 1, 0),),
    lambda a: a.transpose(3, 2, 0, 1),
)
POINTWISE = Transform(
    "[out, in, 1, 1] → [in, out]",
    lambda a: (a.reshape(a.shape[:2]).T,),
    lambda a: a.T[:, :, None, None],
)
CHANNELS = Transform(
    "[out, 1, 1, 1] → [out]", lambda a: (a.reshape(-1),), lambda a: a.reshape(-1, 1, 1, 1)
)
SCALAR = Transform("[1] → []", lambda a: (a.reshape(()),), lambda a: a.reshape(1))
ROWS = Transform("[n, 1, width] → [n, width]", lambda a: (a[:, 0],), lambda a: a[:, None])
DROP = Transform("not needed", lambda a: (), lambda: np.zeros(0, np.float32))


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      name: the foreign name; `{layer}` in it means that `paths` are stacked.
      paths: our path, or as many as the transform gives.
      transform: see there.
    """

    name: str
    paths: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def targets(self) -> tuple[str, ...]:
        """Our paths, as a tuple."""
        return (self.paths,) if isinstance(self.paths, str) else self.paths

    @property
    def stacked(self) -> bool:
        """Does each tensor fill one layer of our parameter?"""
        return LAYER.search(self.name) is not None

    def match(self, name: str) -> int | None:
        """Our layer index if the row takes this name (0 where it is not stacked), else None."""
        found = LAYER.search(self.name)
        if found is None:
            return 0 if name == self.name else None
        before, after = self.name[: found.start()], self.name[found.end() :]
        index = re.fullmatch(re.escape(before) + r"(\d+)" + re.escape(after), name)
        if index is None:
            return None
        step, offset = int(found[1] or 1), int(found[2] or 0)
        layer, rest = divmod(int(index[1]) - offset, step)
        return layer if layer >= 0 and rest == 0 else None

    def foreign(self, layer: int) -> str:
        """The foreign name of our layer `layer`."""
        return LAYER.sub(lambda m: str(layer * int(m[1] or 1) + int(m[2] or 0)), self.name)


Table = tuple[Row, ...]


def norm_rows(name: str, path: str) -> Table:
    """A layer norm."""
    return (Row(f"{name}.weight", f"{path}/scale"), Row(f"{name}.bias", f"{path}/bias"))


def convert(table: Table, foreign: Mapping[str, Any], abstract: Params) -> Params:
    """Foreign weights → our parameters.

    Args:
      table: the rows.
      foreign: arrays by their foreign names; each is read once.
      abstract: nested dict of what is wanted; anything with `shape` and `dtype`.

    Returns:
      A nested dict like `abstract`, of NumPy arrays in its dtypes.

    Raises:
      InputError: naming everything that is missing, unexpected or of the wrong shape or dtype.
    """
    wanted = flatten_paths(abstract)
    ours = {path: np.empty(a.shape, a.dtype) for path, a in wanted.items()}
    filled: dict[str, set[int]] = {path: set() for path in wanted}
    problems: list[str] = []
    for name in foreign:
        row, layer = _find(table, name)
        if row is None:
            problems.append(f"unexpected: {name!r} is in no row of the table")
            continue
        problems.extend(_place(row, layer, name, foreign[name], ours, filled))
    problems.extend(_missing(table, ours, filled, foreign))
    if problems:
        more = [f"… and {len(problems) - LINES} more"] if len(problems) > LINES else []
        raise InputError(
            f"the weights do not fit the model ({len(problems)} problems), use those of its own "
            "family and size:\n  " + "\n  ".join([*problems[:LINES], *more])
        )
    return unflatten_paths(ours)


def revert(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Our parameters → foreign weights, the inverse of `convert`; rows without a path are left out.

    Raises:
      InputError: naming our paths that no row takes.
    """
    ours = {path: np.asarray(leaf) for path, leaf in flatten_paths(params).items()}
    foreign: dict[str, np.ndarray] = {}
    taken: set[str] = set()
    for row in table:
        if not row.targets or not all(path in ours for path in row.targets):
            continue
        taken.update(row.targets)
        arrays = [ours[path] for path in row.targets]
        for layer in range(len(arrays[0]) if row.stacked else 1):
            parts = [a[layer] for a in arrays] if row.stacked else arrays
            foreign[row.foreign(layer)] = np.ascontiguousarray(row.transform.back(*parts))
    if left := sorted(set(ours) - taken):
        raise InputError(f"the weight table has no row for {', '.join(left)}; give it one")
    return foreign


def _find(table: Table, name: str) -> tuple[Row | None, int]:
    for row in table:
        layer = row.match(name)
        if layer is not None:
            return row, layer
    return None, 0


def _place(
    row: Row,
    layer: int,
    name: str,
    array: Any,
    ours: dict[str, np.ndarray],
    filled: dict[str, set[int]],
) -> list[str]:
    """Puts one foreign tensor where it belongs; returns what is wrong with it."""
    array = np.asarray(array)
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16):
        return [] if not row.targets else [f"wrong dtype: {name!r} is {array.dtype}, not floating"]
    try:
        parts = row.transform.there(array)
    except (ValueError, IndexError):
        return [f"wrong shape: {name!r} is {list(array.shape)}, not {row.transform.says}"]
    problems = []
    for path, part in zip(row.targets, parts, strict=True):
        if path not in ours:
            problems.append(f"unexpected: {name!r} is for {path}, which this model does not have")
            continue
        slot = ours[path]
        if row.stacked and layer >= len(slot):
            problems.append(
                f"unexpected: {name!r} is for layer {layer} of {path}: [{len(slot)}, …]"
            )
            continue
        shape = slot.shape[1:] if row.stacked else slot.shape
        if part.shape != shape or not math.prod(shape) == array.size / len(parts):
            problems.append(
                f"wrong shape: {name!r} is {list(array.shape)}, which gives {list(part.shape)} "
                f"for {path}; it needs {list(shape)}"
            )
        elif row.stacked:
            slot[layer] = part
        else:
            slot[...] = part
        filled[path].add(layer)
    return problems


def _missing(
    table: Table,
    ours: dict[str, np.ndarray],
    filled: dict[str, set[int]],
    foreign: Mapping[str, Any],
) -> list[str]:
    """A line for each foreign tensor that is not there, and for each path that no row gives."""
    problems, reachable = [], set()
    for row in table:
        for path in set(row.targets) & set(ours):
            reachable.add(path)
            for layer in range(len(ours[path]) if row.stacked else 1):
                name = row.foreign(layer)
                if layer not in filled[path] and name not in foreign:
                    problems.append(f"missing: {name!r}, for {path}")
    unreachable = sorted(set(ours) - reachable)
    return problems + [f"missing: no row of the table gives {path}" for path in unreachable]
