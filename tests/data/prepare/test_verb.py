"""`flamingo prepare` and `flamingo inspect` of what it made."""

import os
import pathlib
import signal
from collections.abc import Callable

import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax.data.prepare import filters, manifest, writer
from flamingo_jax.data.prepare.job import Job, prepare


@pytest.fixture
def argv(pictures: pathlib.Path, tmp_path: pathlib.Path) -> list[str]:
    out = f"--out={tmp_path / 'out'}"
    return ["prepare", "folder", f"--path={pictures}", out, "--shard-size=4"]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr; progress goes before it."""
    return capsys.readouterr().err.splitlines()[-1]


def test_the_verb_makes_what_the_function_makes(
    argv: list[str], job: Job, tmp_path: pathlib.Path, contents: Callable, capsys
) -> None:
    assert cli.main([*argv, "--workers=2"]) == 0
    prepare(job, str(tmp_path / "expected"))
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    said = capsys.readouterr()
    assert "prepare 11/11" in said.err and "9 kept" in said.err

    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    summary = capsys.readouterr().out
    assert summary == said.out
    found = manifest.read(tmp_path / "out")
    assert "9 documents of 11 records, 8 images, 0 clips" in summary
    assert f"3 shards, {found.bytes / 1e6:.1f} MB" in summary
    for line in ("1  small image", "1  not an image", '"min_side": 64', '"name": "folder"'):
        assert line in summary, line


def test_filters_by_flags(argv: list[str], pictures: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert cli.main([*argv, "--min-side=0", "--max-aspect=0", "--keep-single-colour"]) == 0
    assert manifest.read(tmp_path / "out").counts["documents"] == 11
    other = f"--out={tmp_path / 'near'}"
    assert cli.main([*argv, other, "--eval-images", str(pictures)]) == 0
    found = manifest.read(tmp_path / "near")
    assert found.counts["documents"] == 1 and found.counts["images"] == 0  # the plain text
    assert found.plan["evaluation"]["distance"] == 6


def test_options_of_the_source(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": " a "}\n{"text": "long enough"}\n')
    argv = ["prepare", "texts", f"--path={tmp_path / 'texts.jsonl'}", f"--out={tmp_path / 'out'}"]
    assert cli.main([*argv, "--option", "min_characters=5"]) == 0
    found = manifest.read(tmp_path / "out")
    assert found.counts["documents"] == 1
    assert found.plan["source"]["options"] == {"min_characters": 5}
    for option, said in (
        ("min_characters", "no NAME=VALUE"),
        ("=3", "no NAME=VALUE"),
        ("min_characters=few", "it takes a int"),
        ("colour=1", "has no option 'colour'"),
        ("min_characters=6", "source.options.min_characters=5 and is now to have 6"),
    ):
        assert cli.main([*argv, f"--option={option}"]) == 2
        assert said in complaint(capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--min-side=32", "filters.min_side=64 and is now to have 32"),
        ("--shard-size=5", "shard_size=4"),
        ("--split=test", "no split 'test'"),
        ("--min-images=-1", "--min-images: -1 is not at least 0"),
        ("--max-aspect=0.5", "max_aspect is 0.5"),
        ("--eval-images=absent", "no evaluation images in 'absent'"),
    ],
)
def test_bad_input_is_one_line(change: str, said: str, argv: list[str], capsys) -> None:
    assert cli.main(argv) == 0
    assert cli.main([*argv, change]) == 2
    line = complaint(capsys)
    assert line.startswith("flamingo prepare: ") and said in line


def test_stopped_by_a_signal(
    argv: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    kept = writer.make_shard

    def stop(source, layout, number, *rest):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return kept(source, layout, number, *rest)

    monkeypatch.setattr(writer, "make_shard", stop)
    assert cli.main(argv) == 143
    assert "the same command goes on" in complaint(capsys)
    assert cli.main(["inspect", str(tmp_path / "out")]) == 2
    assert "half prepared" in complaint(capsys)
    monkeypatch.undo()
    assert cli.main(argv) == 0
    assert manifest.read(tmp_path / "out", verify=True).counts["records"] == 11


def test_the_flags_have_the_defaults_of_the_filters(argv: list[str], tmp_path: pathlib.Path):
    assert cli.main(argv) == 0
    planned = manifest.read(tmp_path / "out").plan["filters"]
    default = vars(filters.PAPER) | {"language": ""}
    assert planned == default
