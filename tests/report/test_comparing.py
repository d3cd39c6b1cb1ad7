"""Runs over each other: means over seeds are exact, other runs stay apart, differences are told."""

import json
import pathlib
import statistics

import pytest

from flamingo_jax import __main__ as cli
from flamingo_jax import report
from flamingo_jax.errors import InputError
from flamingo_jax.report import comparing, tables

BETTER = (0.0, 1.5, -2.25)  # points added to the seeds' percentages


@pytest.fixture(scope="module")
def seeds(fake_run, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("seeds")
    return [
        fake_run(folder / f"seed{seed}", seed, better=better) for seed, better in enumerate(BETTER)
    ]


@pytest.fixture(scope="module")
def other(fake_run, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("other")
    return fake_run(folder / "short", better=-8, **{"train.optimizer.lr": "2e-3"})


def first_values(workdirs: list[pathlib.Path]) -> list[float]:
    found = []
    for workdir in workdirs:
        results = json.loads((workdir / "results.json").read_text())
        found.append(results["tasks"]["openmoji"]["checks"][0]["value"])
    return found


def test_seeds_are_one_group_with_exact_mean_and_range(seeds: list[pathlib.Path]):
    (group,) = tables.grouped(tables.read_all(seeds))
    assert group.what == "3 seeds" and group.seeds == "0, 1, 2"
    spread = tables.rows([group])[0].spread(0, "value")
    values = first_values(seeds)
    assert (spread.mean, spread.low, spread.high) == (
        statistics.fmean(values), min(values), max(values)
    )  # fmt: skip
    assert spread.text("%", 3) == "92.8% (90.8–94.5)"


def test_the_table_of_one_run(seeds: list[pathlib.Path]):
    head, rule, *lines = report.table(seeds[:1]).splitlines()
    assert head.split() == ["check", "n", "value", "control", "chance"]
    assert set(rule) == {"─", " "} and len(lines) == 5
    assert lines[0].split("  ")[0] == "combinations: right one of 16 names"
    assert lines[0].split()[-5:] == ["150", "93.0%", "8.7%", "shuffled", "6.3%"]
    assert lines[2].startswith("combinations: shuffled minus right [nats/token]")


def test_the_command_prints_the_table_in_markdown(seeds: list[pathlib.Path], capsys):
    for workdirs in (seeds, seeds[:1]):
        assert cli.main(["report", "--markdown", *map(str, workdirs)]) == 0
        assert capsys.readouterr().out == report.table(workdirs, markdown=True)


def test_the_table_of_seeds_in_markdown(seeds: list[pathlib.Path]):
    head, rule, *lines = report.table(seeds, markdown=True).splitlines()
    assert "value, mean of 3 seeds (min–max)" in head
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert cells[1:3] == ["150", "92.8% (90.8–94.5)"] and cells[-1] == "6.3%"
    assert all(line.count("|") == head.count("|") for line in (rule, *lines))
    assert "&lt;script>" in lines[-1]  # as the title has it, shown and not obeyed


def test_other_configs_stay_apart(seeds: list[pathlib.Path], other: pathlib.Path):
    groups = tables.grouped(tables.read_all([*seeds, other]))
    assert [len(group.runs) for group in groups] == [3, 1]
    assert [group.name for group in groups] == ["seed0", "short"]
    head = report.table([*seeds, other]).splitlines()[0]
    assert "seed0: value, mean of 3 seeds" in head and "short: value" in head
    assert comparing.config_rows(groups) == [
        ["seed", "0, 1, 2", "0"],
        ["train.optimizer.lr", "0.0001", "0.002"],
    ]


def test_a_figure_that_some_runs_lack_is_told(fake_run, tmp_path: pathlib.Path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", 1, flamingo_steps=330)]
    line = report.table(runs).splitlines()[2]
    assert "93.0% [1 of 2 runs]" in line
    text = report.compare(runs).read_text(encoding="utf-8")
    assert "[1 of 2 runs]" in text and "unfinished" in text


def test_the_page_lays_curves_over_each_other(seeds: list[pathlib.Path], other: pathlib.Path):
    path = report.compare([seeds[0], other])
    assert path == seeds[0] / "report" / "compare.html"
    text = path.read_text(encoding="utf-8")
    charts = [
        json.loads(piece.split("</script>")[0])
        for piece in text.split('class="chart-data">')[1:]
    ]  # fmt: skip
    assert all(
        {line["legend"] for line in chart["lines"]} == {"seed0", "short"} for chart in charts
    )
    titles = text.split("<figcaption><b>")[1:]
    found = [title.split("</b>")[0] for title in titles]
    for title in ("language: text", "contrastive: names", "flamingo: clips",
                  "pages: shuffled minus right", "Gates of attention: the largest",
                  "Right of 16 names, by shots"):  # fmt: skip
        assert title in found
    assert "train.optimizer.lr" in text and "93.0%" in text and "85.0%" in text


def test_the_page_goes_where_it_is_told(seeds: list[pathlib.Path], tmp_path: pathlib.Path):
    path = report.compare(seeds, tmp_path / "somewhere" / "seeds.html")
    assert path == tmp_path / "somewhere" / "seeds.html"
    assert "92.8%" in path.read_text(encoding="utf-8")


def test_bad_input_is_one_sentence(seeds: list[pathlib.Path], tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="two runs or more"):
        report.compare(seeds[:1])
    with pytest.raises(InputError, match="given twice"):
        report.compare([seeds[0], seeds[0] / ".." / seeds[0].name])
    with pytest.raises(InputError, match="no folder"):
        report.table([tmp_path / "absent"])
    with pytest.raises(InputError, match="no workdir"):
        report.table([])


def test_the_summary_prints_table_alarms_path_and_timings(
    fake_run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    run = fake_run(tmp_path / "run", alarm=True)
    report.summary(run)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:7] == report.table([run]).splitlines()
    assert printed[7].startswith("ALARM    stage flamingo, step 300: a shuffled picture costs 0.02")
    assert printed[7].endswith("; later in the run it did cost more")
    assert str(run / "report" / "index.html") in printed[8]
    assert (run / "report" / "index.html").is_file()
    assert printed[9] == (
        "timings  language 2 min 30 s · contrastive 1 min 15 s · flamingo 3 min 05 s · "
        "evaluation 51 s · together 7 min 41 s · peak memory 3.1 GB"
    )
    assert len(printed) == 10


def test_a_terminal_is_not_commanded(fake_run, tmp_path: pathlib.Path):
    run = fake_run(tmp_path / "run")
    text = (run / "results.json").read_text().replace("unseen concepts: first", "a\\u001b[2Jb\\nc")
    (run / "results.json").write_text(text)
    printed = report.table([run])
    assert "\x1b" not in printed and len(printed.splitlines()) == 7
