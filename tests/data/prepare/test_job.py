"""A folder of prepared documents: what is in it, and that its bytes depend on nothing else."""

import collections
import dataclasses
import json
import operator
import os
import pathlib
import signal
from collections.abc import Callable
from multiprocessing import active_children

import pytest

from flamingo_jax.data import sources
from flamingo_jax.data.document import Document, Medium
from flamingo_jax.data.faults import BadRecord, Dropped
from flamingo_jax.data.prepare import filters, manifest, writer
from flamingo_jax.data.prepare.job import Job, default_between, prepare
from flamingo_jax.data.readers import codec
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError, Preempted

Contents = Callable[[pathlib.Path], dict[str, bytes]]


def documents(folder: pathlib.Path) -> list[Document]:
    source = sources.open_source(SourceSpec("prepared", str(folder)))
    return [source[place] for place in range(len(source))]


def expected(job: Job) -> tuple[list[Document], collections.Counter[str]]:
    """What the filters leave of a source, record after record."""
    source = sources.open_source(job.source, job.split)
    kept, reasons = [], collections.Counter()
    for place in range(len(source)):
        try:
            kept.append(filters.apply(source[place], job.options).document)
        except BadRecord as error:
            reasons[error.reason] += 1
    return kept, reasons


def speaks_of_one(text: str) -> bool:
    return "1" in text


def test_what_is_prepared_is_what_the_filters_leave(job: Job, tmp_path: pathlib.Path) -> None:
    told = []
    found = prepare(job, str(tmp_path / "out"), advance=lambda *values: told.append(values))
    kept, _ = expected(job)
    assert documents(tmp_path / "out") == kept
    assert found.counts["documents"] == len(kept) == found.counts["images"] + 1
    assert found.counts["characters"] == sum(
        len(item) for document in kept for item in document.items if isinstance(item, str)
    )
    assert (found.dropped, found.bad) == ({"small image": 1}, {"not an image": 1})
    assert found.bytes == sum(os.path.getsize(path) for path in found.paths)
    assert found.paths == sorted(found.paths) and len(found.paths) == 3
    assert [done for done, _, _ in told] == [0, 4, 8, 11]
    assert {total for _, total, _ in told} == {11}

    account = json.loads(pathlib.Path(found.paths[1]).with_suffix(".json").read_bytes())
    [[index, reason, detail]] = account["rejects"]
    assert (index, reason) == (5, "not an image") and "5.jpg" in detail


def test_nothing_is_lost_without_filters(
    job: Job, pictures: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = prepare(dataclasses.replace(job, options=filters.KEEP_ALL), str(tmp_path / "out"))
    assert found.counts["documents"] == found.counts["records"]
    for place, document in enumerate(documents(tmp_path / "out")):
        media = [item for item in document.items if isinstance(item, Medium)]
        data = [(pictures / f"{place}.jpg").read_bytes()] if place != 7 else []
        assert [medium.data for medium in media] == data
        assert document.items[-1] == f"picture {place}"


@pytest.mark.parametrize("workers", [2, 3])
def test_the_same_bytes_whatever_the_number_of_workers(
    workers: int, job: Job, tmp_path: pathlib.Path, contents: Contents
) -> None:
    prepare(job, str(tmp_path / "one"))
    prepare(job, str(tmp_path / "many"), workers=workers)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_equal_records_make_equal_files(tmp_path: pathlib.Path) -> None:
    """No time, no randomness: also where a file has many chunks and some compress well."""
    records = [
        codec.encode(Document((Medium(os.urandom(n * 37), str(n)), "text " * n), str(n)))
        for n in range(300)
    ]
    for name in ("a", "b"):
        with writer._opened(tmp_path / name) as write:
            for record in records:
                write(record)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_finished_folder_is_left_as_it_is(
    job: Job, tmp_path: pathlib.Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(job, str(tmp_path / "out"))
    before = contents(tmp_path / "out")
    monkeypatch.setattr(writer, "make_record", None)  # nothing is made again
    assert prepare(job, str(tmp_path / "out")) == first
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("suffix", [".array_record", ".json"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[-1:],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: data.replace(b'"documents": 3', b'"documents": 4'),
        None,
    ],
)
def test_damage_is_seen_and_mended(
    harm: Callable | None, suffix: str, job: Job, tmp_path: pathlib.Path, contents: Contents
) -> None:
    prepare(job, str(tmp_path / "out"))
    before = contents(tmp_path / "out")
    victim = tmp_path / "out" / f"shard-00001-of-00003{suffix}"
    if harm is None:
        victim.unlink()
    else:
        victim.write_bytes(harm(victim.read_bytes()))
    if suffix == ".array_record" and victim.exists() and harm is not None:
        if victim.read_bytes() != before[victim.name]:
            with pytest.raises(InputError, match="shard-00001"):
                manifest.read(tmp_path / "out", verify=True)
    prepare(job, str(tmp_path / "out"))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda job, other: dataclasses.replace(job, shard_size=5), "shard_size=4"),
        (
            lambda job, other: dataclasses.replace(
                job, options=dataclasses.replace(job.options, min_side=65)
            ),
            "filters.min_side=64",
        ),
        (
            lambda job, other: dataclasses.replace(
                job, options=dataclasses.replace(job.options, language=speaks_of_one)
            ),
            "filters.language=",
        ),
        (
            lambda job, other: dataclasses.replace(
                job, source=dataclasses.replace(job.source, path=str(other))
            ),
            "source.path=",
        ),
        (lambda job, other: dataclasses.replace(job, evaluation_images=(str(other),)), "eval"),
    ],
)
def test_another_plan_is_refused(
    change: Callable,
    field: str,
    job: Job,
    pictures: pathlib.Path,
    tmp_path: pathlib.Path,
    contents: Contents,
) -> None:
    prepare(job, str(tmp_path / "out"))
    before = contents(tmp_path / "out")
    other = tmp_path / "other"
    other.symlink_to(pictures)
    with pytest.raises(InputError, match=field) as caught:
        prepare(change(job, other), str(tmp_path / "out"))
    assert "another --out" in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_a_source_that_grew_is_refused(job: Job, tmp_path: pathlib.Path) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"text": "a", "split": "train"}\n')
    job = dataclasses.replace(job, source=SourceSpec("folder", str(tmp_path)))
    prepare(job, str(tmp_path / "out"))
    captions.write_text(captions.read_text() * 2)
    with pytest.raises(InputError, match="records=1 and is now to have 2"):
        prepare(job, str(tmp_path / "out"))


def test_evaluation_images_are_left_out(
    job: Job, pictures: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "a.jpg").write_bytes((pictures / "3.jpg").read_bytes())
    with_them = dataclasses.replace(job, evaluation_images=(str(evaluation),))
    found = prepare(with_them, str(tmp_path / "out"), workers=2)
    assert found.dropped["near an evaluation image"] == 1
    assert "3.jpg" not in {document.key for document in documents(tmp_path / "out")}
    assert found.plan["evaluation"]["images"] == 1
    # Another image there is another plan.
    (evaluation / "b.jpg").write_bytes((pictures / "4.jpg").read_bytes())
    with pytest.raises(InputError, match=r"evaluation\.images=1"):
        prepare(with_them, str(tmp_path / "out"))


def test_the_language_filter_reaches_workers_by_its_name(job: Job, tmp_path: pathlib.Path) -> None:
    options = dataclasses.replace(job.options, language=lambda text: True)
    with pytest.raises(InputError, match="language filter"):
        prepare(dataclasses.replace(job, options=options), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    options = dataclasses.replace(job.options, language=operator.truth)
    assert prepare(dataclasses.replace(job, options=options), str(tmp_path / "b"), workers=2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [Preempted("stop"), KeyboardInterrupt()])
def test_stopped_and_gone_on_with(
    error: BaseException, workers: int, job: Job, tmp_path: pathlib.Path, contents: Contents
) -> None:
    prepare(job, str(tmp_path / "whole"))

    def advance(done: int, total: int, note: str) -> None:
        if done:
            raise error

    with pytest.raises(type(error)):
        prepare(job, str(tmp_path / "out"), workers, advance)
    assert not active_children()
    with pytest.raises(InputError, match="half prepared"):
        documents(tmp_path / "out")
    prepare(job, str(tmp_path / "out"), workers)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_worker_is_told_of(job: Job, tmp_path: pathlib.Path, contents: Contents) -> None:
    def advance(done: int, total: int, note: str) -> None:
        for child in active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    many = dataclasses.replace(job, shard_size=1)
    with pytest.raises(InputError, match="worker process was killed"):
        prepare(many, str(tmp_path / "out"), 2, advance)
    prepare(many, str(tmp_path / "out"))
    prepare(many, str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_cannot_begin(job: Job, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        prepare(dataclasses.replace(job, source=SourceSpec("folder", "absent")), str(tmp_path))
    with pytest.raises(InputError, match="at least 1"):
        prepare(dataclasses.replace(job, shard_size=0), str(tmp_path / "out"))
    with pytest.raises(InputError, match="has no record"):
        prepare(dataclasses.replace(job, split="validation"), str(tmp_path / "out"))
    (tmp_path / "mine.txt").write_text("not prepare's")
    with pytest.raises(InputError, match=r"mine\.txt"):
        prepare(job, str(tmp_path))
    with pytest.raises(InputError, match="cannot be written"):
        prepare(job, str(tmp_path / "mine.txt" / "out"))
    only_pairs = tmp_path / "pairs"
    only_pairs.mkdir()
    (only_pairs / "captions.jsonl").write_text('{"image": "a", "text": "b", "split": "train"}')
    with pytest.raises(InputError, match="none of 1 records can be kept: 1 times missing image"):
        source = SourceSpec("folder", str(only_pairs))
        prepare(dataclasses.replace(job, source=source), str(tmp_path / "none"))


def test_a_full_disk_is_told_of(job: Job, tmp_path: pathlib.Path, contents: Contents) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(InputError, match="cannot be written"):
            prepare(job, str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not any(name.startswith(".") for name in contents(tmp_path / "out"))
    prepare(job, str(tmp_path / "out"))
    prepare(job, str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_at_once_are_refused(job: Job, tmp_path: pathlib.Path) -> None:
    def advance(done: int, total: int, note: str) -> None:
        with pytest.raises(InputError, match="another process prepares"):
            prepare(job, str(tmp_path / "out"))

    assert prepare(job, str(tmp_path / "out"), advance=advance).counts["records"] == 11


@pytest.mark.parametrize("held", [True, False])
def test_shared_corpora(held: bool, shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Real pages and pairs: what is read from the shards is what the source and filters give."""
    data = shared / "data"
    pages = sorted((data / "interleaved" / "obelics").glob("val*.parquet"))
    tars = sorted((data / "pairs" / "stamps").glob("*.tar"))
    if not pages or not tars:
        pytest.skip(f"there are no pages or pairs in {data}")
    for source in (
        SourceSpec("obelics", str(pages[0]), str(data / "interleaved")),
        SourceSpec("pairs", str(tars[0])),
    ):
        options = filters.PAPER if held else filters.KEEP_ALL
        job = Job(source, options=options, shard_size=37)
        out = tmp_path / source.name
        found = prepare(job, str(out))
        kept, reasons = expected(job)
        assert documents(out) == kept and kept
        assert reasons == collections.Counter(found.dropped) + collections.Counter(found.bad)
        # Prepared once more they are the same documents, in one shard.
        again = Job(SourceSpec("prepared", str(out)), options=filters.KEEP_ALL)
        prepare(again, str(tmp_path / f"{source.name}-again"))
        assert documents(tmp_path / f"{source.name}-again") == kept


def test_texts_are_joined_as_the_corpus_does() -> None:
    assert default_between(SourceSpec("mmc4")) == " "
    assert default_between(SourceSpec("obelics")) == "\n\n"
    assert default_between(SourceSpec("obelics", options={"between": "\n"})) == "\n"


def test_dropped_is_not_bad() -> None:
    account = writer._Account()
    account.reject(3, Dropped("small image", "a"))
    account.reject(4, BadRecord("broken", "b"))
    assert (dict(account.dropped), dict(account.bad)) == ({"small image": 1}, {"broken": 1})
    for place in range(writer.LISTED * 2):
        account.reject(place, BadRecord("broken"))
    assert len(account.rejects) == writer.LISTED
