"""The verb `plan` from end to end: what it prints and writes, its exit codes, its bad input."""

import importlib.util
import json
import pathlib
import re

import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax.errors import InputError
from flamingo_jax.plan import command, measured, page, printing
from flamingo_jax.plan.command import Ask

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = str(pathlib.Path(__file__).parent / "samples" / "small.py") + ":one"
TINY = str(ROOT / "experiments" / "flamingo_3b.py") + ":tiny"
LOCAL = ("plan", f"--config={SMALL}", "--topology=local", "--devices=2", "--features")
has_libtpu = importlib.util.find_spec("libtpu") is not None


def speed(folder: pathlib.Path, **changes) -> None:
    """A run that took 3 steps of 0.5 s after 2 of 0.4 s, a half of all its time waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "stage": "flamingo",
            "step": 2 + 3 * i,
            "seconds": 2 * n * each,
            "compute_seconds": n * each,
            "steps_per_second": 0.5 / each,
            "tokens_per_second": 128 * 0.5 / each,
            "images_per_second": 16 * 0.5 / each,
        }
        for i, (n, each) in enumerate(((2, 0.4), (3, 0.5)))
    ]
    (folder / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"device_kind": "cpu", "devices": 2, "mesh": {"replica": 1, "fsdp": 2, "tensor": 1}}
    (folder / "run.json").write_text(json.dumps(facts | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(exit code, plan.json, the page) of a real plan that belongs to a run."""
    workdir = tmp_path_factory.mktemp("run")
    speed(workdir)
    code = cli.main([*LOCAL, f"--workdir={workdir}"])
    folder = workdir / "plan"
    return code, json.loads((folder / "plan.json").read_text()), (folder / "index.html").read_text()


def test_a_plan_that_fits(made):
    code, plan, _ = made
    assert code == 0 and plan["verdict"] == "fits"
    assert plan["mesh"] == {"replica": 1, "fsdp": 2, "tensor": 1}
    memory, flops = plan["memory"], plan["flops"]
    kinds = dict(memory["by_kind"])
    assert sum(kinds.values()) == memory["peak"] < memory["capacity"]
    for kind in ("trainable", "frozen", "batch"):
        assert kinds[kind] == memory["analytic"][kind]
    assert flops["hardware"] == flops["model"] and flops["again"] == 0  # nothing is computed again
    assert plan["work"] == {"tokens": 8 * 16, "images": 16}
    assert plan["buffers"] and plan["traffic"] and plan["moves"]


def test_its_measured_steps_stand_beside_it(made):
    (told,) = made[1]["measured"]
    assert told["seconds"] == pytest.approx(0.45)
    assert (told["least"], told["most"], told["steps"]) == (pytest.approx(0.4), 0.5, 5)
    assert (told["tokens"], told["images"], told["differs"]) == (128, 16, [])


def test_neither_the_page_nor_the_terminal_leaves_anything_out(made, capsys):
    _, plan, html = made
    printing.tell(plan)
    told = capsys.readouterr().out
    assert plan["name"] + " on local: FITS" in told
    for text in (told, html):
        for word in ("trainable", "moments", "activations", "all-gather", "0.45 s", "fsdp"):
            assert word in text, word
        assert "optimal_seconds" not in text
    assert not re.search(r'(src|href)="(?!#|data:)', html)  # nothing is loaded from anywhere
    assert html == page.render(plan)
    row = printing.markdown(plan).splitlines()[2]
    assert row.count("|") == len(printing.MARKDOWN) + 1
    assert "| fits |" in row


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "either --topology"),
        (("--topology=v5e:4x4", "--chips=4", "--kind=v5e"), "either --topology"),
        (("--chips=4",), "either --topology"),
        (("--topology=v9:4x4",), "no topology 'v9:4x4'"),
        (("--chips=12", "--kind=v5e"), "no slice of v5e has 12 chips"),
        (("--topology=v5e:4x4", "--devices=2"), "--topology=local, of no other"),
        (("--topology=local", "--datasets=m3w,coco"), "no dataset 'coco'"),
        (("--topology=local", "--stage=language"), "no stage 'language'"),
        (("--topology=local", "--devices=2", "--sweep=colour"), "does not know 'colour'"),
        (("--topology=local", "--devices=3", "--sweep=remat"), "no layout for 3 devices"),
        (("--topology=local", "--devices=2", "--seconds=0.1"), "give more --seconds"),
        (("--topology=local", "--config.mesh.tensr=2"), "did you mean 'tensor'"),
    ],
)
def test_bad_input_is_one_line(flags, words, capsys, tmp_path):
    assert cli.main(["plan", f"--config={SMALL}", f"--out={tmp_path}", *flags]) == 2
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if not line.startswith("compiling flamingo")]
    assert len(lines) == 1 and words in lines[0], lines


@pytest.mark.skipif(has_libtpu, reason="the extra `plan` is installed")
def test_without_libtpu_it_says_what_is_needed(capsys, tmp_path):
    flags = ["plan", f"--config={SMALL}", "--topology=v5e:2x2", f"--out={tmp_path}"]
    assert cli.main(flags) == 2
    assert "pip install 'flamingo-jax[plan]'" in capsys.readouterr().err


def test_chips_become_a_topology():
    request, name = command._request(Ask(TINY, chips=256, kind="v5p"))
    assert (request.topology, request.stage, name) == ("v5p:4x8x8", "flamingo", "flamingo-3b")
    request, _ = command._request(Ask(TINY, topology="v5e:2x2*2"))
    assert request.overrides == {"mesh.slices": "2"}


def test_runs_that_differ_are_told_so(made, tmp_path):
    plan = made[1]
    speed(tmp_path, device_kind="TPU v4", devices=4, mesh={"replica": 1, "fsdp": 4, "tensor": 1})
    told = measured.read(tmp_path, plan, "flamingo")
    assert told["differs"] == ["chip", "number of devices", "mesh"]
    floor = {"floor": {"seconds": 0.3}, "estimate": {"least": 0.5, "most": 0.9}}
    assert measured.beside(plan | floor, [told])[0][3:5] == ["", ""]
    assert measured.beside(plan | floor, plan["measured"])[0][3:5] == ["1.50", "0.50 to 0.90"]
    with pytest.raises(InputError, match="no measured steps of stage 'language'"):
        measured.read(tmp_path, plan, "language")


@pytest.mark.slow
def test_what_does_not_fit_ends_with_3(tmp_path, capsys):
    """More rows than the machine has memory for: compiled, never run."""
    rows = "--config.train.datasets.m3w.batch=4194304"
    assert cli.main([*LOCAL, rows, f"--out={tmp_path}"]) == 3
    told = capsys.readouterr().out
    assert "DOES NOT FIT" in told and "Largest buffers" in told


@pytest.mark.slow
def test_a_sweep_ends_with_overrides_that_are_the_plan(tmp_path, capsys):
    assert cli.main([*LOCAL, "--sweep=remat,mesh", f"--out={tmp_path}"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["best"]["flags"] in capsys.readouterr().out
    assert plan["overrides"] == plan["best"]["overrides"]
    assert plan["remat"] == plan["overrides"]["model.remat"] == "none"
    kept = {path.stem for path in (tmp_path / "candidates").iterdir()}
    tried = {row["name"] for row in plan["candidates"] if row["verdict"]}
    assert kept == tried and plan["best"]["name"] in tried
    assert len(plan["candidates"]) == 3 * 4


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu, reason="needs the extra `plan`: libtpu")
def test_a_tpu_that_is_not_there(tmp_path):
    flags = ["plan", f"--config={SMALL}", "--topology=v5e:2x2", "--features", f"--out={tmp_path}"]
    assert cli.main(flags) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["chips"] == 4 and plan["versions"]["libtpu"]
    assert plan["rates"].keys() == {"floor", "estimate, least", "estimate, most"}
    assert plan["rates"]["floor"]["seconds"] <= plan["estimate"]["least"]
