"""The pipeline on Beam's own runner: the folder is the one that a single machine makes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator

import pytest

from flamingo_jax.data import sources
from flamingo_jax.data.prepare import beam, filters, flags, manifest, places, writer
from flamingo_jax.data.prepare.job import Job, prepare
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError

pytest.importorskip("apache_beam")
fsspec = pytest.importorskip("fsspec")

ROOT = pathlib.Path(__file__).resolve().parents[3]
CLOUD = "memory://prepared/out"


@pytest.fixture
def cloud() -> Iterator[Callable[[], dict[str, bytes]]]:
    """What lies in CLOUD, by name."""
    files = fsspec.filesystem("memory")
    folder = CLOUD.removeprefix("memory:/")

    def contents() -> dict[str, bytes]:
        return {path.rpartition("/")[2]: files.cat_file(path) for path in files.find(folder)}

    yield contents
    if files.exists(folder):
        files.rm(folder, recursive=True)


@pytest.fixture
def tars(pictures: pathlib.Path, tmp_path: pathlib.Path) -> Job:
    """The same pictures as two shards of pairs."""
    for shard, places_ in enumerate((range(6), range(6, 11))):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for place in places_:
                tar.add(pictures / f"{place}.jpg", f"{place:05d}.jpg")
                text = tmp_path / "text"
                text.write_text(f"picture {place}")
                tar.add(text, f"{place:05d}.txt")
    source = SourceSpec("pairs", str(tmp_path / "{0,1}.tar"), options={"max_characters": 40})
    return Job(source, shard_size=3)


@pytest.fixture
def evaluation(pictures: pathlib.Path, tmp_path: pathlib.Path) -> str:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((pictures / "3.jpg").read_bytes())
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", "pairs"])
def test_the_folder_of_one_machine(
    kind: str, job: Job, tars: Job, evaluation: str, tmp_path: pathlib.Path, contents, cloud
) -> None:
    chosen = job if kind == "folder" else tars
    chosen = dataclasses.replace(chosen, evaluation_images=(evaluation,))
    expected = prepare(chosen, str(tmp_path / "one"), workers=1)
    assert expected.dropped["near an evaluation image"] == 1
    found = beam.run(chosen, str(tmp_path / "many"), ["--runner=DirectRunner"])
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert found == json.loads((tmp_path / "one" / manifest.MANIFEST).read_bytes())
    assert manifest.read(tmp_path / "many", verify=True).counts == expected.counts
    # Either goes on with what the other began.
    assert prepare(chosen, str(tmp_path / "many")).shards == expected.shards

    assert beam.run(chosen, CLOUD) == found
    assert cloud() == contents(tmp_path / "one")


@pytest.mark.slow
def test_several_processes(tars: Job, tmp_path: pathlib.Path, contents) -> None:
    prepare(tars, str(tmp_path / "one"))
    arguments = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    beam.run(tars, str(tmp_path / "many"), arguments)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    # What a worker process says, not the one that started it.
    other = SourceSpec("pairs", str(tmp_path / "{0,1}.tar"), options={"seed": 1})
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "shard-00000-of-00004.array_record").mkdir()
    begun = manifest.canonical(beam.open_job(Job(other, shard_size=3)).plan)
    (tmp_path / "blocked" / manifest.PLAN).write_bytes(begun)
    with pytest.raises(InputError, match="cannot be written"):
        beam.run(Job(other, shard_size=3), str(tmp_path / "blocked"), arguments)


@pytest.mark.parametrize("where", [pytest.param("disk", marks=pytest.mark.slow), "cloud"])
def test_gone_on_with(
    where: str, job: Job, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, contents, cloud
) -> None:
    """A pipeline dies in its second shard; the next one makes only what is not there."""
    prepare(job, str(tmp_path / "one"))
    out = str(tmp_path / "out") if where == "disk" else CLOUD
    made: list[int] = []
    opened = writer._opened
    dead = [True]

    def watched(path: pathlib.Path):
        number = int(path.name.partition("shard-")[2][:5])
        if number == 1 and dead[0]:
            raise RuntimeError("the machine is gone")
        made.append(number)
        return opened(path)

    monkeypatch.setattr(writer, "_opened", watched)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        beam.run(job, out)
    there = contents(tmp_path / "out") if where == "disk" else cloud()
    assert manifest.MANIFEST not in there and made
    before, dead[0] = made.copy(), False
    beam.run(job, out)
    assert sorted(made) == [0, 1, 2] and made[: len(before)] == before
    there = contents(tmp_path / "out") if where == "disk" else cloud()
    assert there == contents(tmp_path / "one")
    beam.run(job, out)
    assert len(made) == 3  # a finished folder is left as it is


@pytest.mark.parametrize("suffix", [".array_record", ".json"])
@pytest.mark.parametrize("harm", [None, lambda data: data[:-1], lambda data: b""])
def test_a_shard_in_a_cloud_counts_with_its_account(
    harm: Callable | None, suffix: str, job: Job, tmp_path: pathlib.Path, cloud
) -> None:
    opened = beam.open_job(job)
    layout = writer.Layout(tmp_path, len(opened.source), job.shard_size, opened.digest)
    place = places.open_place(CLOUD)
    making = (opened.source, layout, 1, job.options, None)
    account = place.make(*making)
    before = cloud()
    assert len(before) == 2
    files = fsspec.filesystem("memory")
    path = f"{CLOUD}/{layout.path(1).with_suffix(suffix).name}"
    if harm is None:
        files.rm(path)
    else:
        files.pipe_file(path, harm(files.cat_file(path)))
    assert cloud() != before
    assert place.make(*making) == account
    assert cloud() == before


def test_another_plan_or_others_files_are_refused(job: Job, cloud) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{CLOUD}/mine.txt", b"not prepare's")
    with pytest.raises(InputError, match=r"'mine\.txt', which prepare did not begin"):
        beam.run(job, CLOUD)
    files.rm(f"{CLOUD}/mine.txt")
    beam.run(job, CLOUD)
    before = cloud()
    with pytest.raises(InputError, match="shard_size=4 and is now to have 5"):
        beam.run(Job(job.source, shard_size=5), CLOUD)
    files.pipe_file(f"{CLOUD}/{manifest.PLAN}", b"{")
    with pytest.raises(InputError, match=r"plan\.json' is damaged"):
        beam.run(job, CLOUD)
    assert cloud().keys() == before.keys()


def test_errors_of_workers(job: Job, tmp_path: pathlib.Path, monkeypatch) -> None:
    found = iter([[None] * 11, [None] * 10])  # first where the pipeline is started
    monkeypatch.setattr(sources, "open_source", lambda *given: next(found))
    with pytest.raises(InputError) as caught:
        beam.run(job, str(tmp_path / "out"))
    said = str(caught.value)
    assert said.startswith("a worker finds 10 records at ") and said.endswith("command again")


@pytest.mark.parametrize(
    "text",
    [
        "Job failed:\nTraceback …\nflamingo_jax.errors.InputError: there is no x; mend it\nwhile …",
        "bundle: InputError: there is no x; mend it [while running 'make shards-ptransform-1']",
        r"{'error': 'flamingo_jax.errors.InputError: there is no x; mend it\n\n'",
    ],
)
def test_the_sentence_in_what_runners_print(text: str) -> None:
    found = beam._sentence(RuntimeError(text))
    assert found is not None and found.startswith("there is no x; mend it")
    assert beam._sentence(RuntimeError("quota exceeded")) is None


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flamingo_jax.data.prepare.beam", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def test_the_command(job: Job, pictures: pathlib.Path, tmp_path: pathlib.Path, contents) -> None:
    prepare(job, str(tmp_path / "one"))
    out = f"--out={tmp_path / 'many'}"
    argv = ["--source=folder", f"--path={pictures}", out, "--shard-size=4"]
    done = run(*argv, "--runner=DirectRunner", "--job_name=x")
    assert done.returncode == 0, done.stderr
    assert "9 documents of 11 records in 3 shards" in done.stdout
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    done = run(*argv, "--min-side=32")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{beam.PROGRAM}: ") and "filters.min_side=64" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--path=absent", "no folder"),
        ("--shard-sizes=4", "did you mean --shard-size?"),
        ("--min_side=4", "did you mean --min-side?"),
        ("stray", "belongs to no flag"),
        ("--min-images=-1", "-1 is not at least 0"),
        ("--option=few", "no NAME=VALUE"),
        ("--split=test", "no split 'test'"),
        ("--out=ftp://host/out", "give a local path or a URL of"),
        ("--runner=DataflowRunner", "give --out=gs://BUCKET"),
        ("--runner=Fast", "Beam does not start: Unexpected pipeline runner: Fast"),
        ("--eval-images=absent", "no evaluation images in 'absent'"),
    ],
)
def test_bad_input_is_one_line(
    change: str, said: str, pictures: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    argv = ["--source=folder", f"--path={pictures}", f"--out={tmp_path / 'out'}", change]
    assert beam.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{beam.PROGRAM}: ") and said in line
    assert not (tmp_path / "out").exists()


def test_nothing_kept(pictures: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    argv = ["--source=folder", f"--path={pictures}", f"--out={tmp_path / 'out'}"]
    assert beam.main([*argv, "--eval-images", str(pictures), "--min-images=2"]) == 0  # one text
    spare = ["--source=texts", f"--path={tmp_path / 'a.jsonl'}", f"--out={tmp_path / 'none'}"]
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    assert beam.main(spare) == 2
    assert "none of 1 records can be kept" in capsys.readouterr().err.splitlines()[-1]


def test_without_beam(job: Job, tmp_path: pathlib.Path, monkeypatch) -> None:
    beam.import_beam.cache_clear()
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'flamingo_jax\[beam\]'"):
        beam.run(job, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_flags_are_those_of_the_verb(pictures: pathlib.Path) -> None:
    """What the flags leave out has the job's own defaults."""
    known, rest = beam.read_flags(["--source=mmc4", f"--path={pictures}", "--out=x"])
    spec = SourceSpec("mmc4", str(pictures))
    assert flags.make_job(known) == Job(spec, options=filters.FilterOptions(between=" "))
    assert not rest
