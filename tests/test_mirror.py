"""Small files of a run in a bucket: what is pushed, what is fetched, and by which process."""

import pytest

from flamingo_jax import mirror, storage
from flamingo_jax.errors import InputError
from flamingo_jax.logs import MetricsLog
from flamingo_jax.mirror import Mirror

ADDRESS = "gs://bucket/runs/one"


@pytest.fixture
def open_mirror(bucket, tmp_path):
    """open_mirror(machine, process): its working folder and its mirror."""

    def open_one(machine="a", process=0):
        folder = tmp_path / machine / str(process)
        folder.mkdir(parents=True, exist_ok=True)
        return folder, Mirror(folder, storage.to_path(ADDRESS), process)

    return open_one


def held(bucket) -> dict[str, bytes]:
    return {n.removeprefix("runs/one/"): bucket.find(n).data for n in bucket.names("runs/one/")}


def test_what_changed_is_copied_whole(bucket, open_mirror):
    folder, one = open_mirror()
    log = MetricsLog(folder / "metrics.jsonl")
    log.append({"step": 1})
    (folder / "samples").mkdir()
    (folder / "samples" / "a.png").write_bytes(b"picture")
    (folder / ".tokenizer").mkdir()
    (folder / ".tokenizer" / "meta.json").write_text("{}")
    (folder / "config.json.new").write_text("{}")
    one.push()
    assert held(bucket) == {"metrics.jsonl": b'{"step": 1}\n', "samples/a.png": b"picture"}
    before = bucket.find("runs/one/samples/a.png").generation
    log.append({"step": 2})
    one.push()
    assert held(bucket)["metrics.jsonl"] == b'{"step": 1}\n{"step": 2}\n'
    assert bucket.find("runs/one/samples/a.png").generation == before, "it did not change"


def test_a_fresh_machine_gets_what_the_bucket_has(bucket, open_mirror):
    kept = {"metrics.jsonl": b"1\n", "tokenizer/meta.json": b"{}", "rows-1.jsonl": b"x\n"}
    heavy = {"checkpoints/flamingo/3/a": b"", "frozen/d/a": b"", "tensorboard/flamingo/e": b""}
    for name, data in {
        **kept,
        **heavy,
        "logs/process-0.log": b"l",
        "logs/process-1.log": b"m",
    }.items():
        bucket.write(f"runs/one/{name}", data)
    folder, one = open_mirror("b")
    (folder / "finished").write_text("of another life")
    one.fetch()
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert found == {**kept, "logs/process-0.log": b"l"}
    before = dict(bucket.objects)
    one.push()
    assert bucket.objects == before, "what was fetched is not copied back"

    folder, other = open_mirror("b", process=1)
    other.fetch()
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == ["logs/process-1.log", "rows-1.jsonl", "tokenizer/meta.json"]


def test_each_process_copies_its_own(bucket, open_mirror):
    folder, one = open_mirror(process=1)
    for name in ("results.json", "metrics.jsonl", "rows.jsonl", "rows-1.jsonl", "rows-2.jsonl"):
        (folder / name).write_text("1\n")
    one.push()
    assert held(bucket) == {"rows-1.jsonl": b"1\n"}


def test_what_a_killed_process_did_not_copy(bucket, open_mirror):
    """Its log tells how it died, and stays; of rows the bucket is the truth."""
    folder, one = open_mirror()
    (folder / "logs").mkdir()
    (folder / "logs" / "process-0.log").write_text("started\n")
    (folder / "metrics.jsonl").write_text("1\n2\n")
    one.push()
    (folder / "logs" / "process-0.log").write_text("started\nSIGSEGV\n")
    (folder / "metrics.jsonl").write_text("1\n2\n3\n")
    bucket.write("runs/one/metrics.jsonl", b"1\n")  # gone on with elsewhere
    _, again = open_mirror()
    again.fetch()
    assert (folder / "metrics.jsonl").read_text() == "1\n"
    again.push()
    assert held(bucket)["logs/process-0.log"] == b"started\nSIGSEGV\n"


def test_what_is_removed_is_removed_on_both_sides(bucket, open_mirror):
    folder, one = open_mirror()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "meta.json").write_text("{}")
    (folder / "finished").write_text("")
    one.push()
    one.remove("tokenizer", there=True)
    one.remove("finished", there=False)
    one.remove("absent", there=True)
    assert held(bucket) == {"finished": b""} and not list(folder.iterdir())


def test_nothing_is_copied_without_the_lease(bucket, open_mirror, tmp_path):
    def lost():
        raise ValueError("taken over")

    (tmp_path / "a").write_text("a")
    with pytest.raises(ValueError, match="taken over"):
        Mirror(tmp_path, storage.to_path(ADDRESS), 0, lost).push()
    assert not bucket.names()


def test_a_copy_to_read_writes_nothing_but_its_report(bucket, monkeypatch):
    bucket.write("runs/one/metrics.jsonl", b"1\n2\n")
    bucket.write("runs/one/rows.jsonl", b"1\n")
    folder, copy_back = mirror.reading_copy(ADDRESS)
    assert [entry.name for entry in folder.iterdir()] == ["metrics.jsonl"]
    bucket.write("runs/one/metrics.jsonl", b"1\n")  # the run goes back
    before = dict(bucket.objects)
    copy_back()
    assert bucket.objects == before
    folder, copy_back = mirror.reading_copy(ADDRESS)
    assert (folder / "metrics.jsonl").read_text() == "1\n"
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("<html>")
    copy_back()
    assert held(bucket).keys() == {"metrics.jsonl", "rows.jsonl", "report/index.html"}
    with pytest.raises(InputError, match="there is no run at 'gs://bucket/none'"):
        mirror.reading_copy("gs://bucket/none")


def test_it_copies_by_itself(bucket, open_mirror, monkeypatch):
    monkeypatch.setattr(mirror, "SECONDS", 0.05)
    folder, one = open_mirror()
    one.start()
    (folder / "a").write_text("a")
    for _ in range(600):
        if bucket.names():
            break
        one._ended.wait(0.05)
    one.stop()
    assert held(bucket) == {"a": b"a"}
