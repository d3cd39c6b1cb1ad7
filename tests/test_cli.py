"""The command line: its help is enough to find the way, bad input is one line and exit code 2."""

import inspect
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

import flamingo_jax
from flamingo_jax import __main__ as cli
from flamingo_jax.data.prepare.filters import FilterOptions
from flamingo_jax.data.prepare.job import Job
from flamingo_jax.data.sources import SourceSpec
from flamingo_jax.errors import InputError, Preempted
from flamingo_jax.planning import child_processes

ROOT = pathlib.Path(__file__).resolve().parents[1]
FURTHER = {"prepare": ["prepare_features"]}  # functions of run.py that a verb calls besides its own

EXPERIMENT = '''
from flamingo_jax import config

def get_config(variant="full"):
    """A config that no stage can train: only its reading is tested."""
    config.pick(variant, ("full", "tiny"))
    return config.base()
'''


def run_cli(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flamingo_jax", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--help"])
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed on stderr, which is one line, and nothing on stdout."""
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Replaces run.py by functions that note how they were called, and return 0."""
    noted: list[tuple] = []
    fake = types.ModuleType("flamingo_jax.run")
    for verb in cli.VERBS:
        for name in (verb, *FURTHER.get(verb, ())):

            def note(*args, verb=verb, **options):
                noted.append((verb, args, options))
                return 0

            setattr(fake, name, note)
    monkeypatch.setitem(sys.modules, "flamingo_jax.run", fake)
    monkeypatch.setattr(flamingo_jax, "run", fake, raising=False)
    return noted


@pytest.fixture
def experiment(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return str(path)


def test_help_shows_the_way(capsys):
    text = help_of(capsys)
    for name, verb in cli.VERBS.items():
        assert any(name in line and verb.summary in line for line in text.splitlines()), name
    assert "train --config=experiments/openmoji.py --workdir=runs/openmoji" in text
    assert "VERB --help" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_each_verb(verb: str, capsys):
    text = help_of(capsys, verb)
    assert " ".join(cli.VERBS[verb].description.split()) in " ".join(text.split())
    for example in cli.VERBS[verb].examples:
        assert f"flamingo_jax {example}" in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_examples_are_read(verb: str, calls):
    import shlex

    for example in cli.VERBS[verb].examples:
        assert cli.main(shlex.split(example)) == 0
        assert calls[-1][0] == verb


def test_help_is_quick():
    def seconds() -> float:
        start = time.perf_counter()
        assert run_cli("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_its_function(verb: str, calls, monkeypatch):
    """What the command line calls fits the signature of the real function of run.py."""
    import shlex

    cli.main(shlex.split(cli.VERBS[verb].examples[0]))
    _, args, options = calls[-1]
    monkeypatch.undo()
    from flamingo_jax import run

    inspect.signature(getattr(run, verb)).bind(*args, **options)


def test_train_passes_everything_on(calls):
    argv = ["train", "--config=a.py:tiny", "--config.train.steps=10", "--workdir", "w", "--check"]
    argv += ["--config.mesh.fsdp", "-1", "--config.name=a=b", "--config.name=c=d"]
    assert cli.main(argv) == 0
    overrides = {"train.steps": "10", "mesh.fsdp": "-1", "name": "c=d"}
    assert calls == [
        ("train", ("a.py:tiny", overrides, "w", True), {"membership": None, "profile": ""})
    ]


def test_inspect_passes_everything_on(calls):
    argv = ["inspect", "--config=a.py:tiny", "--stage=language", "--config.seed=1", "--out=o"]
    assert cli.main([*argv, "--rows=3"]) == cli.main(["inspect", "w"]) == 0
    given = ("", "a.py:tiny", {"seed": "1"}, "language", "o", 3)
    assert calls == [("inspect", given, {}), ("inspect", ("w", "", {}, "", "", 12), {})]


def test_generate_passes_everything_on(calls):
    argv = ["generate", "--checkpoint=c", "--max_new_tokens=7", "--beams=3", "--temperature=0.5"]
    argv += ["--top_p=0.9", "--seed=4", "--stream", "--", "a.png", "--config.x=1"]
    assert cli.main(argv) == 0
    [(_, args, options)] = calls
    assert args == ("c", ["a.png", "--config.x=1"])
    assert options == {
        **{"max_new_tokens": 7, "beams": 3, "temperature": 0.5, "top_p": 0.9},
        **{"seed": 4, "stream": True, "chat": False},
    }


def test_prepare_passes_everything_on(calls):
    argv = ["prepare", "obelics", "--path=p", "--files=f", "--out=o", "--split=validation"]
    argv += ["--option", "min_images=2", "missing=page", "--option=seed=3", "--shard-size=7"]
    argv += ["--workers=3", "--min-side=5", "--max-aspect=2.5", "--keep-single-colour"]
    argv += ["--min-images=2", "--max-images=9", "--eval-images", "a", "b", "--eval-images=c"]
    assert cli.main(argv) == 0
    [(_, args, options)] = calls
    spec = SourceSpec("obelics", "p", "f", options={"min_images": 2, "missing": "page", "seed": 3})
    kept = FilterOptions(
        min_side=5, max_aspect=2.5, single_colour=False, min_images=2, max_images=9
    )
    job = Job(spec, "validation", kept, ("a", "b", "c"), shard_size=7)
    assert (args, options) == ((job, "o", 3), {})
    cli.main(["prepare", "pairs", "--out=o"])  # what was given before is not kept
    job, _, workers = calls[-1][1]
    assert job == Job(SourceSpec("pairs")) and workers == 1


def test_prepare_features_passes_everything_on(calls):
    argv = ["prepare", "features", "--config=a.py", "--workdir=w", "--out=o", "--shard-size=7"]
    assert cli.main([*argv, "--config.seed=1"]) == 0
    [(_, args, options)] = calls
    assert args == ("o",)
    assert options == {
        **{"config_spec": "a.py", "overrides": {"seed": "1"}, "workdir": "w"},
        **{"stage": "flamingo", "shard_size": 7},
    }


@pytest.mark.parametrize("flag", ["--path=p", "--workers=2", "--min-side=5", "--split=validation"])
def test_prepare_features_takes_no_flags_of_documents(flag: str, calls, capsys):
    argv = ["prepare", "features", "--config=a.py", "--workdir=w", "--out=o", flag]
    assert cli.main(argv) == 2
    assert flag.partition("=")[0] in capsys.readouterr().err and not calls


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "flamingo: "),
        (["trian"], "did you mean train?"),
        (["train", "--workdir=w"], "--config"),
        (["train", "--config=a.py"], "--workdir"),
        (["train", "--config=a.py", "--workdir=w", "--chekc"], "--chekc"),
        (["train", "--config=a.py", "--workdir=w", "--config.seed"], "--config.seed=VALUE"),
        (["train", "--config.seed", "--workdir=w"], "--config.seed=VALUE"),
        (["train", "--config.=1", "--workdir=w"], "--config.FIELD=VALUE"),
        (["report"], "DIR"),
        (["prepare", "pairs", "--path=p"], "--out"),
        (["prepare", "pairs", "--out=o", "--workers=0"], "--workers: 0 is not at least 1"),
        (["prepare", "pairs", "--out=o", "--max-aspect=wide"], "--max-aspect"),
        (
            ["report", "w", "--config.seed=1"],
            "only train, plan, prepare, inspect, evaluate takes --config.seed",
        ),
        (["inspect"], "give either DIR or --config=FILE"),
        (["inspect", "w", "--config=a.py"], "give either DIR or --config=FILE"),
        (["inspect", "w", "--config.seed=1"], "belong to --config=FILE"),
        (["inspect", "w", "--stage=language"], "belong to --config=FILE"),
        (["inspect", "--config=a.py", "--rows=0"], "--rows: 0 is not at least 1"),
        (["generate", "--checkpoint=c"], "ITEM"),
        (["generate", "--checkpoint=c", "--beams=0", "a"], "--beams: 0 is not at least 1"),
        (["generate", "--checkpoint=c", "--top_p=nan", "a"], "--top_p: nan is not from 0 to 1"),
        (["generate", "--checkpoint=c", "--seed=x", "a"], "--seed"),
    ],
)
def test_bad_flags(argv: list[str], said: str, calls, capsys):
    assert cli.main(argv) == 2
    line = one_line(capsys)
    assert said in line
    assert line.startswith(f"flamingo {argv[0]}: " if argv and argv[0] in cli.VERBS else "flamingo")
    assert not calls


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("the folder\n'w' is no run; give another"), 2, "'w' is no run"),
        (Preempted("saved step 7; the same command goes on"), 143, "saved step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, calls, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(sys.modules["flamingo_jax.run"], "inspect", fail)
    assert cli.main(["inspect", "w"]) == code
    line = one_line(capsys)
    assert line.startswith("flamingo inspect: ") and said in line


def test_a_defect_keeps_its_traceback(calls, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["flamingo_jax.run"], "inspect", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "w"])


@pytest.mark.parametrize(
    ("config", "field", "said"),
    [
        ("{experiment}", "train.stpes=3", "did you mean 'steps'?"),
        ("{experiment}", "trian.steps=3", "did you mean 'train'?"),
        ("{experiment}", "train.steps=many", "--config.train.steps=many"),
        ("{experiment}", "train=3", "is a group of fields"),
        ("{experiment}", "stages=('lanugage',)", "'lanugage'"),
        ("{experiment}:huge", "seed=0", "unknown variant 'huge'"),
        ("{experiment}.absent", "seed=0", "there is no config file"),
    ],
)
def test_bad_config(config, field, said, experiment, tmp_path, capsys):
    config = config.format(experiment=experiment)
    argv = [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.{field}"]
    assert cli.main(["train", *argv]) == 2
    line = one_line(capsys)
    assert line.startswith("flamingo train: ") and said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("report", "{absent}"),
        ("inspect", "{absent}"),
        ("prepare", "folder", "--path={absent}", "--out={absent}/out"),
        ("generate", "--checkpoint={absent}", "a prompt"),
    ],
)
def test_missing_folder(argv, tmp_path, capsys):
    absent = str(tmp_path / "absent")
    assert cli.main([word.format(absent=absent) for word in argv]) == 2
    line = one_line(capsys)
    assert line.startswith(f"flamingo {argv[0]}: ") and absent in line


def test_as_a_process(experiment: str, tmp_path: pathlib.Path):
    done = run_cli(
        "train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.sede=1"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("flamingo train: ") and done.stderr.count("\n") == 1, done.stderr
    assert "did you mean 'seed'?" in done.stderr


@pytest.mark.parametrize("device", ["", "accel0", "vfio/3"])
def test_libtpu_is_told_where_there_is_no_tpu(device, tmp_path, monkeypatch):
    """And nothing where there may be one: its own environment is the truth."""
    for name in child_processes.NO_TPU:
        monkeypatch.setenv(name, "")  # as it was comes back after the test
        monkeypatch.delenv(name)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # of every machine that could pass devices on
    if device:
        (tmp_path / device).touch()
    child_processes.without_tpu(tmp_path)
    for name, value in child_processes.NO_TPU.items():
        assert os.environ.get(name) == (None if device else value)
    planned = child_processes.environment("v5p:2x2x1")
    assert not child_processes.NO_TPU.keys() & planned.keys()
