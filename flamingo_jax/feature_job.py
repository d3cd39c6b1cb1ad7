"""Encoding the media of a stage once, into a folder that training reads.

Media are taken in the order of the documents, first those of training, and each origin's media
once. One thread walks; others read documents and decode media some way ahead of the devices, which
encode batch after batch. In memory are the media and features under way, and a hash of 16 bytes of
every medium met. The same command goes on after a kill with the shard that was not finished.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from flamingo_jax import assemble, features, inputs
from flamingo_jax.data.document import Medium, Source
from flamingo_jax.data.faults import BadRecord
from flamingo_jax.data.featurefiles import layout, writer
from flamingo_jax.data.featurefiles.reader import FeatureFolder, open_features
from flamingo_jax.data.prepare import begun
from flamingo_jax.data.rows import DatasetSpec, render_version
from flamingo_jax.data.sources import SPLITS
from flamingo_jax.errors import InputError
from flamingo_jax.shapes import Params

AHEAD = 2
"""Batches of frames that are decoded before the devices ask for them."""
MERGED_AT = 1 << 16
"""Hashes of media that are held loosely before they are sorted into those met earlier."""

Advance = Callable[[int, int, str], None]
"""(documents done, documents in all, a note)."""
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclasses.dataclass(frozen=True)
class _Visit:
    """A dataset's split: its documents, how media are shown, and in which versions."""

    dataset: str
    split: str
    group: int
    source: Source
    spec: DatasetSpec
    versions: tuple[int, ...]

    @property
    def documents(self) -> int:
        """How many there are; of a source that knows its media, how many of those."""
        quick = getattr(self.source, "media", None)
        return len(self.source) if quick is None else sum(1 for _ in quick())

    def key(self, medium: Medium, version: int) -> tuple[int, int]:
        return layout.key_of(self.group, self.split, medium.key, version)


@dataclasses.dataclass(frozen=True, eq=False)
class _Wanted:
    """A version of a medium, where it goes to, and where its document is."""

    shard: int
    visit: _Visit
    medium: Medium
    version: int
    place: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """A decoded medium, or why there is none, with the digest of its data."""

    pixels: np.ndarray | BadRecord
    data: int


def prepare(
    run: inputs.Run,
    stage: assemble.Stage,
    vision: Params,
    out: str,
    shard_size: int = 1000,
    advance: Advance = lambda done, total, note: None,
) -> FeatureFolder:
    """Makes a folder of features, or goes on with it.

    Args:
      run: config, mesh and sources.
      stage: the Flamingo stage.
      vision: its encoder's parameters.
      out: the folder; made if absent.
      shard_size: media a shard.
      advance: told of progress.

    Raises:
      InputError: if the encoder is trained, nothing is to be encoded, a dataset has fresh
        augmentation, or `out` is in use, was begun otherwise or cannot be written.
    """
    if jax.process_count() > 1:
        raise InputError("prepare features runs in one process; start it on one host")
    inputs.check_frozen_encoder(stage, "prepare features")
    visits = _visits(run, stage)
    plan = _plan(run, stage, vision, visits, shard_size)
    encode = features.encoder(run.config, vision, run.mesh)
    folder = pathlib.Path(out).expanduser()
    with begun.writable(out):
        folder.mkdir(parents=True, exist_ok=True)
        with begun.locked(folder):
            begun.begin(folder, plan)
            digest = layout.digest(plan)
            accounts = writer.whole_shards(folder, digest)
            job = _Job(run, visits, folder, digest, shard_size, advance)
            accounts += job.shards(encode, features.batch_size(run.mesh), accounts)
            writer.finish(folder, plan, accounts)
    return open_features(folder)


def _visits(run: inputs.Run, stage: assemble.Stage) -> list[_Visit]:
    """What is gone over, in this order.

    Raises:
      InputError: if there are no media, or a dataset's are augmented anew at each visit.
    """
    groups = inputs.feature_groups(run.config, stage)
    if not groups:
        raise InputError(f"the stage {stage.name!r} has no dataset with media; see its layouts")
    for name in groups:
        spec = stage.datasets[name]
        if not spec.versions and not spec.augment.identity:
            raise InputError(
                f"dataset {name!r} is augmented anew at each visit, so that its features cannot be "
                "prepared; set config.data.versions to 1 or more, or config.data.augment to nothing"
            )
    return [
        _Visit(name, split, groups[name], source, spec, inputs.versions(spec, split))
        for split in SPLITS
        for name, source in inputs.open_sources(run, stage, split).items()
        if (spec := stage.datasets[name]).media
    ]


def _plan(
    run: inputs.Run,
    stage: assemble.Stage,
    vision: Params,
    visits: list[_Visit],
    shard_size: int,
) -> dict[str, Any]:
    """What the folder is made of, as JSON: two folders of one plan hold the same media."""
    plan = features.dependencies(run.config, stage, vision)
    plan["shard_size"] = shard_size
    sources = assemble.source_specs(run.config, stage.name)
    for visit in visits:
        row = plan["datasets"][visit.dataset]
        row["group"], row["source"] = visit.group, dataclasses.asdict(sources[visit.dataset])
        row.setdefault("documents", {})[visit.split] = len(visit.source)
    if "mean" in vision:
        plan["statistics"] = {
            name: np.asarray(vision[name], np.float32).tolist() for name in ("mean", "deviation")
        }
    return layout.plain(plan)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One call of `prepare`."""

    run: inputs.Run
    visits: list[_Visit]
    folder: pathlib.Path
    plan: str
    shard_size: int
    advance: Advance

    @property
    def threads(self) -> int:
        """How many read and decode."""
        return max(self.run.config.data.threads, 1)

    def shards(
        self,
        encode: Callable[[np.ndarray], jax.Array],
        batch: int,
        before: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Writes the shards that are missing after those that are there; their accounts."""
        counts = [visit.documents for visit in self.visits]
        firsts = [0, *itertools.accumulate(counts)]
        begin = tuple(before[-1]["after"]) if before else (0, 0)
        seen = _Seen()
        seen.extend(*(layout.part_rows(self.folder, account)[:2] for account in before))
        media = sum(account["media"] for account in before)
        self.advance(firsts[begin[0]] + begin[1], firsts[-1], f"{media} media")
        made = []
        ahead = AHEAD * batch // max(visit.spec.frames for visit in self.visits)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="media") as pool:
            walk = self._walk(begin, seen, len(before), pool)
            ready = ordered(pool, self._render, walk, max(ahead, self.threads))
            with contextlib.closing(ready):
                for number, items in itertools.groupby(ready, lambda item: item[0].shard):
                    with writer.new_shard(self.folder, number, self.plan) as shard:
                        sound = _sound(items, shard)
                        for (wanted, data), found in features.encoded(encode, sound, batch):
                            key = wanted.visit.key(wanted.medium, wanted.version)
                            shard.add(key, data, found)
                            done = firsts[wanted.place[0]] + wanted.place[1]
                            self.advance(done, firsts[-1], f"{media + shard.media} media")
                    media += shard.media
                    made.append(shard.account)
        self.advance(firsts[-1], firsts[-1], f"{media} media")
        return made

    def _walk(
        self, begin: tuple[int, int], seen: _Seen, shard: int, pool: ThreadPoolExecutor
    ) -> Iterator[_Wanted]:
        """All versions of all media not seen before, from a place on."""
        count = 0
        for number, visit in list(enumerate(self.visits))[begin[0] :]:
            first = begin[1] if number == begin[0] else 0
            for index, media in _documents(visit.source, first, pool, self.threads):
                for medium in media:
                    if seen.add(visit.key(medium, visit.versions[0])):
                        for version in visit.versions:
                            to = shard + count // self.shard_size
                            yield _Wanted(to, visit, medium, version, (number, index))
                        count += 1

    def _render(self, wanted: _Wanted) -> _Rendered:
        visit, medium = wanted.visit, wanted.medium
        data = layout.data_digest(medium)
        try:
            seed = self.run.config.seed
            return _Rendered(render_version(medium, visit.spec, seed, wanted.version), data)
        except BadRecord as error:
            return _Rendered(error, data)


def _sound(
    items: Iterable[tuple[_Wanted, _Rendered]], shard: writer.NewShard
) -> Iterator[tuple[tuple[_Wanted, int], np.ndarray]]:
    """Media with pixels; the others are recorded in the shard, and where all of them end."""
    for wanted, rendered in items:
        visit, medium = wanted.visit, wanted.medium
        shard.after = wanted.place
        shard.media += wanted.version == visit.versions[0]
        if isinstance(rendered.pixels, BadRecord):
            key = visit.key(medium, wanted.version)
            name = f"{visit.dataset}, {visit.split}: {medium.key}, version {wanted.version}"
            shard.reject(key, rendered.data, name, rendered.pixels)
        else:
            yield (wanted, rendered.data), rendered.pixels


def _documents(
    source: Source, first: int, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, list[Medium]]]:
    """(index, media) of the documents from one on; see `rows.enumerate_media`."""

    def media(index: int) -> list[Medium]:
        try:
            return [item for item in source[index].items if isinstance(item, Medium)]
        except BadRecord:  # whoever reads its row is told so again
            return []

    quick = getattr(source, "media", None)
    if quick is None:
        yield from ordered(pool, media, range(first, len(source)), ahead)
    else:
        yield from ((i, [medium]) for i, medium in enumerate(quick()) if i >= first)


def ordered(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Generator[tuple[_In, _Out]]:
    """(item, function(item)) in the items' order, made by threads up to `ahead` items before."""
    waiting: collections.deque[tuple[_In, Future[_Out]]] = collections.deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class _Seen:
    """The hashes of the media met so far: 16 bytes each, sorted, and the latest in a set."""

    def __init__(self) -> None:
        self._sorted = np.zeros((2, 0), np.uint64)
        self._latest: set[tuple[int, int]] = set()

    def add(self, key: tuple[int, int]) -> bool:
        """Adds a medium; was it new?"""
        if key in self._latest or self._has(key):
            return False
        self._latest.add(key)
        if len(self._latest) >= MERGED_AT:
            self.extend(np.array(list(self._latest), np.uint64).T)
            self._latest.clear()
        return True

    def extend(self, *keys: np.ndarray) -> None:
        """Adds u64[2, n] each, the halves of their hashes."""
        both = np.concatenate([self._sorted, *keys], axis=1)
        self._sorted = both[:, np.argsort(both[0], kind="stable")]

    def _has(self, key: tuple[int, int]) -> bool:
        high, low = (np.uint64(half) for half in key)
        begin = np.searchsorted(self._sorted[0], high)
        end = np.searchsorted(self._sorted[0], high, side="right")
        return bool((self._sorted[1, begin:end] == low).any())
