"""Two processes of a training ask a share of the benchmarks' queries each."""

import dataclasses
import json
import pathlib

import pytest

from flamingo_jax.logs import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.multihost]


def answers(folder: pathlib.Path) -> dict[tuple[int, str], str]:
    """{(shots, query): answer} of all processes; none is given twice."""
    rows = [row for path in sorted(folder.glob("predictions*.jsonl")) for row in read_rows(path)]
    found = {(row["shots"], row["key"]): row["answer"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_each_asks_its_share(training, tmp_path):
    whole = training.runs.experiment_in(tmp_path / "experiment")
    asked = dataclasses.replace(training, experiment=f"{whole}:asked", folder=tmp_path)
    asked.run("two", 2)
    asked.run("one", 1, devices=4)
    two, one = (tmp_path / name / "evaluations" / "00000012" for name in ("two", "one"))
    shares = [json.loads(line) for line in (two / "predictions-00001.jsonl").open()]
    assert 0 < len(shares) < 20
    assert answers(two).keys() == answers(one).keys() and len(answers(one)) == 20
    figures, others = (
        asked.workdir(name).rows("metrics", kind="evaluation") for name in ("two", "one")
    )
    assert [row["step"] for row in figures] == [row["step"] for row in others] == [5, 10, 12]
    assert all(row.keys() == other.keys() for row, other in zip(figures, others, strict=True))
    # Trained on as many devices, the parameters differ in their last bits alone.
    assert answers(two) == answers(one)
