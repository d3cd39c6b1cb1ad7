"""An evaluation that is killed and goes on, is refused another's folder, is asked in parts."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign
from flamingo_jax.eval.asking import Shard
from flamingo_jax.eval.examples import Benchmark
from tests.eval.asked import Oracle
from tests.eval.own_set import (
    ANSWERS,
    FLAMINGO,
    QUERIES,
    REQUEST,
    ask,
    concluded,
    of,
    own,
    settings,
)

# Blocks of four queries, as four batches of one make a block: 4 + 4 + 2 of each setting.
BLOCKS = (4, 4, 2)


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Benchmark:
    return own(tmp_path_factory.mktemp("own"))


@dataclasses.dataclass(frozen=True)
class Whole:
    """An evaluation that nothing disturbed: its answers' file, results and prompts, in order."""

    data: bytes
    results: bytes
    asked: tuple[str, ...]

    def unasked(self, data: bytes) -> list[str]:
        """The prompts of blocks that have not all their lines in a file."""
        known = set(data[: data.rfind(b"\n") + 1].splitlines())
        every, missing, start = self.data.splitlines(), [], 0
        while start < len(every):
            for size in BLOCKS:
                if not known.issuperset(every[start : start + size]):
                    missing += self.asked[start : start + size]
                start += size
        return missing


@pytest.fixture(scope="module")
def whole(read, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    model = ask(read, REQUEST, folder)
    results, data = concluded(read, REQUEST, folder), (folder / "predictions.jsonl").read_bytes()
    assert len(model.asked) == data.count(b"\n") == QUERIES * 2 * 2
    values = [trial["figures"] for one in settings(results) for trial in one["trials"]]
    assert all(0 < value["vqa_accuracy"]["value"] < 100 for value in values)
    return Whole(data, results, tuple(model.asked))


def places(data: bytes) -> list[int]:
    """Where a kill may cut a file."""
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    beetle = data.index("жук".encode()) + 1
    in_block, whole_block, second = ends[1], ends[3], ends[5] + 20
    return [0, 1, beetle, in_block, whole_block - 1, whole_block, second, len(data) - 1, len(data)]


@pytest.mark.parametrize("place", range(9))
def test_killed_at_any_byte(place: int, read, whole: Whole, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "predictions.jsonl"
    campaign.open_folder(tmp_path, of(read, REQUEST))
    path.write_bytes(whole.data[: places(whole.data)[place]])
    left = whole.unasked(path.read_bytes())
    assert ask(read, REQUEST, tmp_path).asked == left
    assert concluded(read, REQUEST, tmp_path) == whole.results
    # And killed again, among the lines that came after: blocks asked twice stand there twice.
    again = path.read_bytes()
    path.write_bytes(again[: len(again) * 2 // 3])
    left = whole.unasked(path.read_bytes())
    assert left and ask(read, REQUEST, tmp_path).asked == left
    assert concluded(read, REQUEST, tmp_path) == whole.results
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert not ask(read, REQUEST, tmp_path).asked


class Killed(Exception):
    """What ends the process."""


class Mortal(Oracle):
    """Answers three times."""

    def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
        if len(self.shared) == 3:
            raise Killed
        return super().generate(prompts, max_new_tokens, **how)


def test_killed_while_it_answers(read, whole: Whole, tmp_path: pathlib.Path) -> None:
    asked = []
    for _ in range(3):
        model = Mortal(ANSWERS)
        with pytest.raises(Killed):
            ask(read, REQUEST, tmp_path, model)
        asked += model.asked
    asked += ask(read, REQUEST, tmp_path).asked
    assert tuple(asked) == whole.asked
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole.data
    assert concluded(read, REQUEST, tmp_path) == whole.results
    times = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    assert times["custom, 2 shots (random), trial 1"]["queries"] == QUERIES


def replaced(**fields: Any) -> campaign.Request:
    return dataclasses.replace(REQUEST, protocol=dataclasses.replace(FLAMINGO, **fields))


@pytest.mark.parametrize(
    ("request_", "digest", "said"),
    [
        (replaced(beams=1), "a", "request.protocol.beams was 3 and is 1"),
        (replaced(shots=(0, 4)), "a", r"request.protocol.shots was \[0, 2\] and is \[0, 4\]"),
        (dataclasses.replace(REQUEST, limit=5), "a", "request.limit was 0 and is 5"),
        (dataclasses.replace(REQUEST, batch=2), "a", "request.batch was 1 and is 2"),
        (REQUEST, "b", "model.digest was 'a' and is 'b'"),
    ],
)
def test_another_evaluation_is_refused(request_, digest, said, read, tmp_path) -> None:
    campaign.open_folder(tmp_path, of(read, REQUEST))
    campaign.open_folder(tmp_path, of(read, dataclasses.replace(REQUEST, keep_prefix=False)))
    before = (tmp_path / "evaluation.json").read_bytes()
    wanted = {**of(read, request_), "model": {"digest": digest, "dtype": ""}}
    with pytest.raises(InputError, match=f"is of another evaluation: {said}; give another folder"):
        campaign.open_folder(tmp_path, wanted)
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_another_benchmark_is_refused(read, tmp_path) -> None:
    campaign.open_folder(tmp_path, of(read, REQUEST))
    wanted = {**of(read, REQUEST), "benchmarks": {"coco": {"split": "test", "queries": 2}}}
    with pytest.raises(InputError, match=r"benchmarks\.coco was None and is \{'split': 'test'"):
        campaign.open_folder(tmp_path, wanted)


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions-00001.jsonl"])
def test_answers_of_unknown_origin_are_refused(name: str, read, tmp_path) -> None:
    (tmp_path / name).write_text("of someone else\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds predictions of unknown origin; give another"):
        ask(read, REQUEST, tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == "of someone else\n"


ROW = {"benchmark": "custom", "shots": 0, "selection": "random", "trial": 0, "key": "q0"}


@pytest.mark.parametrize(
    "line",
    [
        *(b"hello", b"\xff", b"[1]", b"null", b"{}", json.dumps(ROW).encode()),
        json.dumps({**ROW, "answer": "a", "shown": [], "trial": []}).encode(),
    ],
)
def test_lines_that_are_no_predictions(line: bytes, read, whole: Whole, tmp_path) -> None:
    campaign.open_folder(tmp_path, of(read, REQUEST))
    first = whole.data.splitlines(keepends=True)[0]
    (tmp_path / "predictions.jsonl").write_bytes(first + line + b"\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl, line 2 is no prediction"):
        ask(read, REQUEST, tmp_path)


def test_a_description_that_is_none(read, tmp_path) -> None:
    (tmp_path / "evaluation.json").write_text('{"model', encoding="utf-8")
    with pytest.raises(InputError, match=r"evaluation\.json is no evaluation's"):
        campaign.open_folder(tmp_path, of(read, REQUEST))


def test_two_processes_are_one(read, whole: Whole, tmp_path: pathlib.Path) -> None:
    first, second = Shard(0, 2), Shard(1, 2)
    asked = ask(read, REQUEST, tmp_path, shard=second).asked
    with pytest.raises(InputError, match=r"custom, 0 shots \(random\), trial 0: 'q0' and others"):
        concluded(read, REQUEST, tmp_path)
    # Of each setting's three blocks the second is the second process's.
    assert asked == [whole.asked[10 * setting + i] for setting in range(4) for i in range(4, 8)]
    # What the other process is just writing is its own affair.
    other = tmp_path / "predictions-00001.jsonl"
    torn = other.read_bytes() + b'{"benchmark": "cust'
    other.write_bytes(torn)
    asked += ask(read, REQUEST, tmp_path, shard=first).asked
    assert other.read_bytes() == torn
    assert sorted(asked) == sorted(whole.asked)
    assert concluded(read, REQUEST, tmp_path) == whole.results
    # Killed in parts, it may go on as a whole.
    other.write_bytes(torn[: len(torn) // 2])
    left = whole.unasked((tmp_path / "predictions.jsonl").read_bytes() + other.read_bytes())
    assert left and ask(read, REQUEST, tmp_path).asked == left
    assert concluded(read, REQUEST, tmp_path) == whole.results


def test_a_missing_answer_is_named(read, whole: Whole, tmp_path) -> None:
    (tmp_path / "predictions.jsonl").write_bytes(
        b"".join(line for line in whole.data.splitlines(keepends=True) if b'"q7"' not in line)
    )
    with pytest.raises(InputError, match=r"0 shots \(random\), trial 0: 'q7' and others have no"):
        campaign.conclude([read], REQUEST, tmp_path, {})
    assert not (tmp_path / "results.json").exists()
