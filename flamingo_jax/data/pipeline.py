"""Batches of all datasets, by step: `pipeline[k]` is what step k sees, on any host, at any time.

The state of the data is the step number. Each dataset's documents are put into an endless order
(Grain: shuffled anew each epoch, random access), row i of that order is a pure function of
(seed, dataset, i), and step k takes rows k·B … k·B + B - 1, of which a host makes its part.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grain
import numpy as np

from flamingo_jax.data.document import Source
from flamingo_jax.data.faults import BadRecord, Reject, Rejects
from flamingo_jax.data.images import RESIZES
from flamingo_jax.data.order import endless
from flamingo_jax.data.randomness import generator
from flamingo_jax.data.rows import (
    LAYOUTS,
    TEXT_FIELDS,
    DatasetSpec,
    Features,
    Laid,
    empty_media,
    lay_row,
    show_media,
)
from flamingo_jax.data.tokenizer import Tokenizer
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Batch

TRIES = 100  # a record, and up to 99 others in its place: rules may drop most of a corpus
_CHUNK = 8  # rows that a thread makes in one go


class Pipeline:
    """The batches of a stage, {dataset: Batch} for each step.

    Attributes:
      prefetch: how many steps `iterate` reads ahead.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        specs: Mapping[str, DatasetSpec],
        tokenizer: Tokenizer,
        *,
        seed: int,
        steps: int,
        train: bool = True,
        rows: Mapping[str, tuple[int, int]] | None = None,
        first_step: Mapping[str, int] | None = None,
        features: Mapping[str, Features] | None = None,
        threads: int = 0,
        prefetch: int = 4,
        max_bad: float = 1.0,
    ) -> None:
        """Puts the datasets into order; reads nothing yet.

        Args:
          sources: {dataset: its documents}; one with an attribute `ordered` that is true is never
            shuffled: its order is part of what it teaches.
          specs: {dataset: how they become rows}; the order of this dict is that of the batches.
          tokenizer: the language model's.
          seed: the run's.
          steps: how many steps there are.
          train: shuffled and augmented; otherwise in the source's order, from the beginning again
            where it ends, clean, text always tied to the medium before it.
          rows: {dataset: (first, behind last)} rows of the global batch that this host makes;
            all, by default.
          first_step: {dataset: the step whose batch holds its first rows}; 0 by default.
          features: {dataset: cached features}; datasets it does not name give pixels.
          threads: how many rows are made at the same time; 0 = `usual_threads()`.
          prefetch: how many steps `iterate` reads ahead.
          max_bad: the share of a dataset's records, bad ones, from which on reading stops.

        Raises:
          InputError: if a source is empty, or a spec cannot be met.
        """
        self.prefetch = prefetch
        self._steps = steps
        pool = ThreadPoolExecutor(threads or usual_threads(), thread_name_prefix="rows")
        self._datasets: dict[str, _DatasetSteps] = {}
        for name, spec in specs.items():
            lookup = (features or {}).get(name)
            _check(name, spec, sources[name], tokenizer, train, lookup)
            shuffled = train and not getattr(sources[name], "ordered", False)
            self._datasets[name] = _DatasetSteps(
                endless(len(sources[name]), seed, name, shuffled),
                _RowReader(sources[name], spec, tokenizer, seed, train, lookup, max_bad),
                steps=steps,
                rows=(rows or {}).get(name, (0, spec.batch)),
                first_step=(first_step or {}).get(name, 0),
                pool=pool,
            )
        zipped = grain.experimental.ZipMapDataset(list(self._datasets.values()))
        self._graph = zipped.map(lambda batches: dict(zip(specs, batches, strict=True)))

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Batch]:
        """The batches of a step, whatever was read before."""
        if not 0 <= step < self._steps:
            raise IndexError(f"there is no step {step}; there are {self._steps}")
        return cast(dict[str, Batch], self._graph[step])

    def iterate(self, start_step: int = 0) -> Generator[dict[str, Batch]]:
        """Yields the batches of `start_step`, `start_step` + 1, … to the end, read ahead."""
        if start_step >= self._steps:
            return
        options = grain.ReadOptions(num_threads=self.prefetch, prefetch_buffer_size=self.prefetch)
        iterator = iter(self._graph[start_step:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def row_index(self, dataset: str, step: int, row: int) -> int:
        """The index in the source of the document in a row of a step's global batch.

        It takes the replacement of bad records into account for the rows this host has read.

        Raises:
          IndexError: for a step before the last one whose rejects were told: what replaced its
            records is forgotten then.
        """
        return self._datasets[dataset].document_index(step, row)

    def rejects(self, dataset: str, step: int) -> list[tuple[int, Reject]]:
        """(step, record that was not used) of this host's rows up to a step, each told once."""
        return self._datasets[dataset].rejects(step)


def usual_threads() -> int:
    """One more than there are processors, at most 16.

    Decoding keeps a processor busy, and one reads meanwhile. On two processors 16 threads made a
    sixth fewer pictures a second than 3: they wait for each other and for the caches.
    """
    return min((os.cpu_count() or 1) + 1, 16)


class _RowReader:
    """Makes row i of a dataset, with another document in the place of one that cannot be used."""

    def __init__(
        self,
        source: Source,
        spec: DatasetSpec,
        tokenizer: Tokenizer,
        seed: int,
        train: bool,
        features: Features | None,
        max_bad: float,
    ) -> None:
        self.source, self.spec, self.tokenizer = source, spec, tokenizer
        self.seed, self.train, self.features = seed, train, features
        self.rejects = Rejects(spec.name, max_bad)
        self._replaced: dict[int, int] = {}
        self._forgotten = 0  # rows before this one may have been replaced by nobody knows what
        self._lock = threading.Lock()

    def lay(self, index: int, document: int) -> Laid | BadRecord:
        """Row `index` of a document, without media, or why there is none."""
        try:
            found = self.source[document]
            return lay_row(found, self.spec, self.tokenizer, self.seed, index, self.train)
        except BadRecord as error:
            return error

    def read(
        self, index: int, document: int, laid: Laid | BadRecord, media: np.ndarray
    ) -> tuple[Laid, np.ndarray]:
        """Row `index`, which should show `document`.

        Args:
          index: the row's.
          document: the document's.
          laid: what `lay` gives of them.
          media: what the row's media are written into.

        Returns:
          The row that is shown, and its media's frames, i32[M].
        """
        reasons: set[str] = set()
        for attempt in range(TRIES):
            if attempt:
                rng = generator("substitute", self.seed, self.spec.name, index, attempt)
                document = int(rng.integers(len(self.source)))
                laid = self.lay(index, document)
            try:
                if isinstance(laid, BadRecord):
                    raise laid
                frames = show_media(
                    laid, self.spec, self.seed, index, media, self.train, self.features
                )
            except BadRecord as error:
                self.rejects.add(index, attempt, document, error)
                reasons.add(error.reason)
                continue
            self.rejects.used()
            if attempt:
                with self._lock:
                    self._replaced[index] = document
            return laid, frames
        raise InputError(
            f"dataset {self.spec.name!r}: {TRIES} records drawn one after the other cannot be used "
            f"({', '.join(sorted(reasons))}); check its source and options"
        )

    def replacement(self, index: int) -> int | None:
        """The document that row `index` shows in the place of a bad one."""
        with self._lock:
            if index < self._forgotten:
                raise IndexError(f"what row {index} shows is forgotten: later rejects were told")
            return self._replaced.get(index)

    def forget(self, before: int) -> None:
        """Forgets replacements of rows before `before`: a run of years has millions."""
        with self._lock:
            self._forgotten = max(self._forgotten, before)
            for index in [index for index in self._replaced if index < before]:
                del self._replaced[index]


class _DatasetSteps(grain.MapDataset):
    """One dataset by step: a host's rows of each global batch, made by a pool of threads."""

    _MUTATES_ELEMENT_SPEC = True

    def __init__(
        self,
        order: grain.MapDataset,
        reader: _RowReader,
        *,
        steps: int,
        rows: tuple[int, int],
        first_step: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        super().__init__(order)
        self._reader, self._length, self._rows = reader, steps, rows
        self._first_step, self._pool = first_step, pool

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        low, high = self._rows
        first = self._row(index, 0)
        count = high - low
        spec = self._reader.spec
        batch = Batch(
            tokens=np.zeros((count, spec.length), np.int32),
            positions=np.zeros((count, spec.length), np.int32),
            media=empty_media(spec, self._reader.features, (count,)),
            frames=np.zeros((count, spec.media), np.int32),
            media_of_token=np.zeros((count, spec.length), np.int32),
            loss_mask=np.zeros((count, spec.length), np.float32),
        )

        def fill(start: int) -> None:
            places = range(start, min(start + _CHUNK, count))
            numbers = [first + low + place for place in places]
            documents = [self._document(number) for number in numbers]
            # Texts first: between one picture and the next all that Python needs for a text has
            # left the processor's caches, and it takes twice as long.
            laid = [self._reader.lay(*both) for both in zip(numbers, documents, strict=True)]
            for place, number, document, row in zip(places, numbers, documents, laid, strict=True):
                media = cast(np.ndarray, batch.media)[place]
                shown, batch.frames[place] = self._reader.read(number, document, row, media)
                for field in TEXT_FIELDS:
                    getattr(batch, field)[place] = getattr(shown.row, field)

        list(self._pool.map(fill, range(0, count, _CHUNK)))
        return batch

    def _row(self, step: int, row: int) -> int:
        """The place in the endless order of a row of a step's global batch."""
        if step < self._first_step:
            name = self._reader.spec.name
            raise IndexError(f"dataset {name!r} begins at step {self._first_step}, not at {step}")
        return (step - self._first_step) * self._reader.spec.batch + row

    def rejects(self, step: int) -> list[tuple[int, Reject]]:
        """See `Pipeline.rejects`."""
        if step < self._first_step:
            return []
        size = self._reader.spec.batch
        first = self._row(step, 0)
        taken = self._reader.rejects.take(first + size)
        self._reader.forget(first)
        return [(self._first_step + reject.row // size, reject) for reject in taken]

    def _document(self, number: int) -> int:
        """The index of the document at a place in the endless order."""
        return cast(int, self._parent[number])

    def document_index(self, step: int, row: int) -> int:
        """See `Pipeline.row_index`."""
        number = self._row(step, row)
        replacement = self._reader.replacement(number)
        return self._document(number) if replacement is None else replacement


def _check(
    name: str,
    spec: DatasetSpec,
    source: Source,
    tokenizer: Tokenizer,
    train: bool,
    features: Features | None,
) -> None:
    where = f"dataset {name!r}"
    if spec.name != name:
        raise ValueError(f"{where} has a spec of the name {spec.name!r}")
    if spec.layout not in LAYOUTS:
        raise InputError(f"{where}: layout is {spec.layout!r}; one of {', '.join(LAYOUTS)}")
    if spec.resize not in RESIZES:
        raise InputError(f"config.data.resize is {spec.resize!r}; one of {', '.join(RESIZES)}")
    if not 0 < spec.fps <= 1000:
        raise InputError(f"{where}: fps is {spec.fps}; frames a second, above 0, at most 1000")
    if not len(source):
        raise InputError(f"{where}: its source holds no documents; check its path and split")
    shortest = {"text": 2, "contrastive": 3}.get(spec.layout, 2 + len(tokenizer.image))
    if spec.length < shortest:
        raise InputError(
            f"{where}: length={spec.length} cannot hold a row's control tokens and any text; "
            f"give at least {shortest}"
        )
    if features is not None and train and not spec.versions and not spec.augment.identity:
        raise InputError(
            f"{where}: cached features need a fixed number of augmented versions; "
            "set config.data.versions to 1 or more, or config.data.augment to nothing"
        )
