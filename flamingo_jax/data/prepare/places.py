"""Where many machines put shards: a folder that all of them see, or one in a cloud."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from flamingo_jax.data.document import Source
from flamingo_jax.data.prepare import begun, duplicates, filters, manifest, writer
from flamingo_jax.data.readers import paths
from flamingo_jax.errors import InputError


class Place(Protocol):
    """A folder while it is prepared. Every machine opens its own; what is there is shared."""

    def begun(self, plan: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Begins the folder, or goes on with it; others are kept out within the block.

        Raises:
          InputError: see `begun.check_begun`; if it cannot be written.
        """
        ...

    def make(
        self,
        source: Source,
        layout: writer.Layout,
        number: int,
        options: filters.FilterOptions,
        index: duplicates.Index | None,
    ) -> dict[str, Any]:
        """The account of a shard, made if it is not there; see `writer.make_shard`.

        Raises:
          InputError: if the folder cannot be written.
        """
        ...

    def end(self, content: Mapping[str, Any]) -> None:
        """Writes the manifest.

        Raises:
          InputError: if the folder cannot be written.
        """
        ...

    def content(self) -> dict[str, Any] | None:
        """What the manifest holds; None if there is none yet."""
        ...


def open_place(out: str) -> Place:
    """The place of a local path or a URL.

    Raises:
      InputError: if the URL is of no protocol that is known, or its package is missing.
    """
    if paths.is_url(out):
        return CloudFolder(out)
    return Folder(pathlib.Path(out).expanduser().absolute())


class Folder:
    """A folder on a disk, which may be one that several machines mount; a `Place`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def begun(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """See `Place`."""
        with contextlib.ExitStack() as stack:
            with begun.writable(str(self._folder)):
                self._folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(begun.locked(self._folder))
                begun.begin(self._folder, plan)
            yield

    def make(
        self,
        source: Source,
        layout: writer.Layout,
        number: int,
        options: filters.FilterOptions,
        index: duplicates.Index | None,
    ) -> dict[str, Any]:
        """See `Place`."""
        layout = dataclasses.replace(layout, folder=self._folder)
        with begun.writable(str(self._folder)):
            return writer.make_shard(source, layout, number, options, index)

    def end(self, content: Mapping[str, Any]) -> None:
        """See `Place`."""
        with begun.writable(str(self._folder)):
            manifest.write(self._folder / manifest.MANIFEST, content)

    def content(self) -> dict[str, Any] | None:
        """See `Place`."""
        try:
            return json.loads((self._folder / manifest.MANIFEST).read_bytes())
        except FileNotFoundError:
            return None


class CloudFolder:
    """A folder of a store whose objects appear whole or not at all; a `Place`.

    A shard is made on the machine's own disk and copied, then its account. Nothing is locked: two
    pipelines of one plan write the same bytes, and one of another plan is refused by plan.json.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._files = paths.filesystem(url)

    @contextlib.contextmanager
    def begun(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """See `Place`."""
        with self._told():
            old = self._read(manifest.PLAN)
            found = self._files.ls(self._url, detail=False) if self._there() else []
            names = [str(path).rstrip("/").rpartition("/")[2] for path in found]
            begun.check_begun(self._url, old, names, plan)
            if old is None:
                self._write(manifest.PLAN, plan)
        yield

    def make(
        self,
        source: Source,
        layout: writer.Layout,
        number: int,
        options: filters.FilterOptions,
        index: duplicates.Index | None,
    ) -> dict[str, Any]:
        """See `Place`."""
        with self._told():
            if (there := self._kept(layout, number)) is not None:
                return there
        with tempfile.TemporaryDirectory(prefix="flamingo-prepare-") as folder:
            layout = dataclasses.replace(layout, folder=pathlib.Path(folder))
            with begun.writable(folder):
                account = writer.make_shard(source, layout, number, options, index)
            shard = layout.path(number)
            with self._told():
                for path in (shard, shard.with_suffix(".json")):  # a shard counts with its account
                    self._files.put_file(str(path), f"{self._url}/{path.name}")
            return account

    def end(self, content: Mapping[str, Any]) -> None:
        """See `Place`."""
        with self._told():
            self._write(manifest.MANIFEST, content)

    def content(self) -> dict[str, Any] | None:
        """See `Place`."""
        with self._told():
            data = self._read(manifest.MANIFEST)
            return None if data is None else json.loads(data)

    def _kept(self, layout: writer.Layout, number: int) -> dict[str, Any] | None:
        # The store has check sums of its own, and reading all of a shard back costs as much as
        # copying it: what is compared is its size.
        shard = layout.path(number)
        written = self._read(shard.with_suffix(".json").name)
        account = None if written is None else writer.read_account(written, layout, number)
        if account is None:
            return None
        try:
            size = self._files.info(f"{self._url}/{shard.name}")["size"]
        except FileNotFoundError:
            return None
        return account if size == account["bytes"] else None

    def _there(self) -> bool:
        self._files.invalidate_cache()  # listings are kept for the life of a process
        return self._files.exists(self._url)

    def _read(self, name: str) -> bytes | None:
        try:
            return self._files.cat_file(f"{self._url}/{name}", end=manifest.MAX_BYTES)
        except FileNotFoundError:
            return None

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        self._files.pipe_file(f"{self._url}/{name}", manifest.canonical(value))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # clouds have errors of their own
            raise InputError(
                f"{self._url!r} cannot be written ({error}); check your access, and run the same "
                "command again"
            ) from error
