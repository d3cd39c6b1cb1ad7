"""What is made of a shard once and kept: where its records lie, in a file that is never trusted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.readers import paths
from flamingo_jax.errors import InputError

MAX_RECORDS = 1 << 40  # of a shard
_MAX_HEAD = 1 << 14  # bytes of the line of facts
_MAX_RATIO = 16  # bytes of an index for a byte of its shard; a line "1\n" takes four
_DTYPES = ("<i8", "<u4", "|u1")  # of arrays that are kept

Made = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Facts, which fit into a line, and arrays."""
I = TypeVar("I")


class Index(Generic[I]):
    """The index of a shard: at first its facts alone, the rest when it is asked for.

    Attributes:
      shard: what it is about.
      facts: what is told of it without its arrays.
      count: how many records the shard has, a fact too.
    """

    def __init__(
        self,
        shard: paths.Shard,
        form: str,
        count: str,
        make: Callable[[], Made],
        use: Callable[[dict[str, np.ndarray], int], I],
        cache: str = "",
    ) -> None:
        """Takes the facts from where they are kept, or makes the index.

        Args:
          shard: what it is about.
          form: names what `make` makes, see `Kept`.
          count: the fact that says how many records there are.
          make: reads the shard through; may raise BadRecord.
          use: (arrays, count) → index; ValueError, LookupError or TypeError if they make no sense,
            as a kept file may be a stranger's.
          cache: see `Kept`.

        Raises:
          InputError: if there is no such shard, or it cannot be indexed.
        """
        self.shard = shard
        self._count, self._make, self._use = count, make, use
        self._kept = Kept(shard, form, cache)
        self._lock = threading.Lock()
        self._index: I | None = None
        facts = self._kept.facts()
        if facts is None or not _is_count(facts.get(count)):
            facts = self._made()
        self.facts: dict[str, Any] = facts
        self.count: int = facts[count]

    def _made(self) -> dict[str, Any]:
        try:
            facts, arrays = self._make()
        except BadRecord as error:
            raise InputError(
                f"{self.shard.path!r} cannot be indexed: {error}; mend it or leave it out"
            ) from error
        self._kept.write(facts, arrays)
        self._index = self._use(arrays, facts[self._count])
        return facts

    def get(self) -> I:
        """The index, made again if its file is damaged or gone.

        Raises:
          BadRecord: if the shard cannot be read, or is not as it was when this was opened.
        """
        with self._lock:
            if self._index is None:
                with contextlib.suppress(LookupError, ValueError, TypeError):
                    self._index = self._use(self._kept.arrays() or {}, self.count)
            if self._index is None:
                try:
                    facts = self._made()
                except InputError as error:
                    raise BadRecord("shard cannot be read", str(error)) from error
                if facts != self.facts:
                    self._index = None
            if self._index is None:
                raise BadRecord("shard has changed", self.shard.path)
            return self._index


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_RECORDS


class Kept:
    """Facts and arrays made from a shard, kept in a file that counts while the shard is the same.

    A line of JSON under a hash, then the arrays. The file lies beside the shard as NAME.index; of
    a remote shard, or where that cannot be written, in a folder of the user's cache that is named
    by a hash of the shard's folder; or nowhere. A cache that is named takes the place of both.
    Several processes may write the same one at once.

    Args:
      shard: what it is about.
      form: names the maker and its version; a file of another form is as good as none.
      cache: a folder; "" = the environment's FLAMINGO_CACHE, if there is any.
    """

    def __init__(self, shard: paths.Shard, form: str, cache: str = "") -> None:
        whole = shard.path if paths.is_url(shard.path) else os.path.abspath(shard.path)
        folder, _, name = whole.rpartition("/")
        named = cache or os.environ.get("FLAMINGO_CACHE", "")
        users = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flamingo_jax")
        root = os.path.expanduser(named or users)
        self._places = [] if named or paths.is_url(whole) else [whole + ".index"]
        if named or os.path.isabs(root):  # it is not where nobody knows the user's home
            self._places.append(os.path.join(root, _hash(os.fsencode(folder)), name + ".index"))
        self._shard, self._form = shard, form
        self._place, self._head = "", {}

    def facts(self) -> dict[str, Any] | None:
        """The facts, for which only the first line is read; None if no file fits the shard."""
        same = [self._form, self._shard.size(), self._shard.stamp()]
        # A shard of which nobody knows when it changes has no file that is sure to fit.
        for place in self._places if self._shard.stamp() else ():
            try:
                with open(place, "rb") as file:
                    digest, _, text = file.readline(_MAX_HEAD).rstrip(b"\n").partition(b" ")
                head = json.loads(text) if digest.decode() == _hash(text) else {}
                fits = [head["form"], head["size"], head["stamp"]] == same
                if fits and isinstance(head["facts"], dict):
                    self._place, self._head = place, head
                    return head["facts"]
            except (OSError, ValueError, TypeError, LookupError, RecursionError):
                continue
        return None

    def arrays(self) -> dict[str, np.ndarray] | None:
        """The arrays that belong to the facts told; None if their file is damaged or gone."""
        try:
            with open(self._place, "rb") as file:
                file.readline(_MAX_HEAD)
                if os.fstat(file.fileno()).st_size > _MAX_HEAD + _MAX_RATIO * self._shard.size():
                    return None
                body = file.read()
            arrays, at = {}, 0
            if _hash(body) != self._head["body"]:
                return None
            for name, dtype, count in self._head["arrays"]:
                if dtype not in _DTYPES or not _is_count(count):
                    return None
                arrays[name] = np.frombuffer(body, dtype, count, at)
                at += arrays[name].nbytes
            return arrays
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def write(self, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the first file that can be written, whole or not at all."""
        body = b"".join(array.tobytes() for array in arrays.values())
        head = {"form": self._form, "size": self._shard.size(), "stamp": self._shard.stamp()}
        shapes = [[name, array.dtype.str, len(array)] for name, array in arrays.items()]
        head |= {"facts": dict(facts), "arrays": shapes, "body": _hash(body)}
        line = json.dumps(head).encode()
        for place in self._places:
            folder, name = os.path.split(place)
            temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
            with contextlib.suppress(OSError):
                os.makedirs(folder, exist_ok=True)
                try:
                    with open(temporary, "xb") as file:
                        file.write(_hash(line).encode() + b" " + line + b"\n" + body)
                    os.replace(temporary, place)
                    return
                finally:
                    with contextlib.suppress(OSError):
                        os.remove(temporary)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
