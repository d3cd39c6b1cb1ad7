"""Shots by similarity: which, in which order, and from what was kept."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from flamingo_jax.data.prompt import Video
from flamingo_jax.errors import InputError
from flamingo_jax.eval import campaign, rices
from flamingo_jax.eval.asking import Trial
from flamingo_jax.eval.examples import Benchmark, Example
from flamingo_jax.eval.protocol import presets
from flamingo_jax.eval.tasks import benchmarks
from tests.eval.asked import Oracle
from tests.eval.tasks.writing import clips, draw, lines

Vectors = Mapping[str, Sequence[float]]
PROTOCOL = dataclasses.replace(presets.FLAMINGO, shots=(2,))


class Eyes(Oracle):
    """Sees the vector of a file's name, or of a text; counts what it encodes."""

    def __init__(self, vectors: Vectors, weights: str = "a"):
        super().__init__()
        self.vectors, self.weights, self.encoded = vectors, weights, 0

    def embed(self, images: Sequence[Any]) -> np.ndarray:
        self.encoded += len(images)
        paths = [one.path if isinstance(one, Video) else one for one in images]
        return np.array([self.vectors[pathlib.Path(path).stem] for path in paths], np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        self.encoded += len(texts)
        return np.array([self.vectors[text] for text in texts], np.float32)

    def digest(self, part: str) -> str:
        return f"{self.weights} {part}"


def examples(folder: pathlib.Path, names: str) -> list[Example]:
    """A picture each, and a question of the same name."""
    paths = [folder / f"{name}.png" for name in names]
    draw(*(path for path in paths if not path.exists()))
    return [Example(path.stem, path, f"{path.stem}?", answers=("x",)) for path in paths]


def medium(example: Example) -> Any:
    return example.medium


# A query, and support at angles of 60°, 0°, 120° and 30° from it, of any length.
AROUND = {"q": (2, 0), "a": (1, 3**0.5), "b": (0.1, 0), "c": (-1, 3**0.5), "d": (9 * 3**0.5, 9)}


def test_neighbours_by_cosine(tmp_path: pathlib.Path) -> None:
    finder = rices.Finder(Eyes(AROUND), medium)
    queries, support = examples(tmp_path, "q"), examples(tmp_path, "abcd")
    assert finder.neighbours(rices.VISION, queries, support, 4).tolist() == [[1, 3, 0, 2]]
    assert finder.neighbours(rices.VISION, queries, support, 2).tolist() == [[1, 3]]
    assert finder.neighbours(rices.VISION, queries, support, 99).shape == (1, 4)


def test_text_and_both(tmp_path: pathlib.Path) -> None:
    # Cosines of pictures 1, 0, 0.8 and of questions 0, 1, 0.8: the means are 0.5, 0.5 and 0.8.
    across, along, between = (0, 1), (1, 0), (0.8, 0.6)
    seen = {"q": along, "a": along, "b": across, "c": between}
    read = {"q?": along, "a?": across, "b?": along, "c?": between}
    finder = rices.Finder(Eyes({**seen, **read}), medium)
    queries, support = examples(tmp_path, "q"), examples(tmp_path, "abc")
    found = {
        selection: finder.neighbours(selection, queries, support, 3).tolist()
        for selection in (rices.VISION, rices.TEXT, rices.BOTH)
    }
    assert found == {"rices": [[0, 2, 1]], "rices_text": [[1, 2, 0]], "rices_both": [[2, 0, 1]]}


def test_questions_are_compared_with_their_context() -> None:
    vectors = {"A hint. q?": (1, 0), "a?": (0, 1), "A hint. a?": (1, 0)}
    query = Example("q", None, "q?", "A hint.")
    support = [Example("a", None, "a?"), Example("b", None, "a?", "A hint.")]
    finder = rices.Finder(Eyes(vectors), medium)
    assert finder.neighbours(rices.TEXT, [query], support, 1).tolist() == [[1]]


@pytest.mark.parametrize("sought", [1, 2, 1024])
def test_of_equal_ones_the_first(sought: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rices, "SOUGHT", sought)
    names = "abcdefgh"
    # All but c and f look the same up to the last bits, as the same picture in other batches does.
    vectors = {name: (1, 1e-7 * place) for place, name in enumerate(names)}
    eyes = Eyes({**vectors, "c": (1, 0.1), "f": (1, 0.2), "q": (1, 0), "p": (3, 0), "o": (1, 1)})
    queries, support = examples(tmp_path, "qpo"), examples(tmp_path, names)
    found = rices.Finder(eyes, medium).neighbours(rices.VISION, queries, support, 8)
    same = [0, 1, 3, 4, 6, 7]
    assert found.tolist() == [[*same, 2, 5], [*same, 2, 5], [5, 2, *same]]


def pictures(folder: pathlib.Path, rows: Sequence[tuple[str, str]]) -> Benchmark:
    """A set whose shots come from its queries: (key, picture) each."""
    for _, picture in rows:
        path = folder / f"custom/media/{picture}.png"
        if not path.exists():
            draw(path)
    records = [
        {"id": key, "image": f"{picture}.png", "question": f"{key}?", "answer": f"is {key}"}
        for key, picture in rows
    ]
    lines(folder / "custom/queries.jsonl", records)
    return benchmarks.load("custom", folder)


def test_the_most_similar_stands_last_and_the_query_nowhere(tmp_path: pathlib.Path) -> None:
    # q1 and q2 ask about one picture.
    rows = [("q1", "q"), ("a", "a"), ("q2", "q"), ("b", "b"), ("c", "c"), ("d", "d")]
    read = pictures(tmp_path, rows)
    request = campaign.Request(
        dataclasses.replace(PROTOCOL, shots=(0, 2, 4), text_shots={}),
        selections=("random", "rices"),
    )
    model = Eyes(AROUND)
    campaign.open_folder(tmp_path / "out", request.identity())
    campaign.ask_all(model, [read], request, tmp_path / "out")
    results = campaign.conclude([read], request, tmp_path / "out", {})
    settings = results["benchmarks"]["custom"]["settings"]
    # Without shots there is nothing to select.
    assert [(one["shots"], one["selection"]) for one in settings] == [
        *((0, "random"), (2, "random"), (2, "rices"), (4, "random"), (4, "rices"))
    ]
    by_setting = {(one["shots"], one["selection"]): one["prompts"][0] for one in settings}
    assert by_setting[2, "rices"]["shots"] == ["d", "b"]
    assert by_setting[4, "rices"]["shots"] == ["c", "a", "d", "b"]
    assert by_setting[2, "rices"]["text"] == (
        "<image>Question: d? Answer: is d<EOC><image>Question: b? Answer: is b<EOC>"
        "<image>Question: q1? Answer:"
    )
    for line in (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        others = {"q1", "q2"} if row["key"] in ("q1", "q2") else {row["key"]}
        assert len(row["shown"]) == row["shots"] and not others & set(row["shown"])
    # Support and queries are the same pictures here, in another order: once each, for both counts.
    assert model.encoded == 2 * len(rows)
    with pytest.raises(InputError, match="5 shots are asked for, and the query 'q1' has 4 neigh"):
        near = Trial(read, PROTOCOL, 0).asker
        near.prompts(read.queries[0], 5, range(6))


def test_a_hundred_questions_about_one_picture(tmp_path: pathlib.Path) -> None:
    rows = [(f"q{number}", "q") for number in range(100)]
    read = pictures(tmp_path, [*rows, ("a", "a"), ("b", "b")])
    trial = Trial(read, PROTOCOL, 0)
    finder = rices.Finder(Eyes(AROUND), medium)
    near = trial.neighbours(finder, trial.setting(2, "rices"))
    for place, query in enumerate(trial.chosen.queries):
        shown = trial.prompts(place, 2, near)[0].shots
        assert not ({query.key} & {*shown}) and len(shown) == 2
        if query.key.startswith("q"):
            assert shown == ("a", "b")


class Blind(Eyes):
    """Has nothing encoded any more."""

    def embed(self, images: Sequence[Any]) -> np.ndarray:
        raise AssertionError("encoded again")

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("encoded again")


@dataclasses.dataclass
class Kept:
    """A folder of features of a query and four examples, found once."""

    folder: pathlib.Path
    queries: list[Example]
    support: list[Example]

    def find(self, model: Oracle, selection: str = rices.VISION) -> list[list[int]]:
        finder = rices.Finder(model, medium, self.folder / "features")
        return finder.neighbours(selection, self.queries, self.support, 4).tolist()

    def files(self) -> list[pathlib.Path]:
        """The largest, of the support, last."""
        return sorted((self.folder / "features").iterdir(), key=lambda path: path.stat().st_size)


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> Kept:
    found = Kept(tmp_path, examples(tmp_path, "q"), examples(tmp_path, "abcd"))
    assert found.find(Eyes(AROUND)) == [[1, 3, 0, 2]]
    return found


def test_features_are_kept(kept: Kept) -> None:
    assert kept.find(Blind(AROUND)) == [[1, 3, 0, 2]]
    assert [path.suffix for path in kept.files()] == [".npy", ".npy"]
    stored = np.load(kept.files()[-1])
    assert stored.dtype == np.float32
    wanted = np.array([AROUND[name] for name in "abcd"], np.float32)
    np.testing.assert_allclose(stored, wanted / np.linalg.norm(wanted, axis=1)[:, None], rtol=1e-6)
    texts = Eyes({f"{name}?": vector for name, vector in AROUND.items()})
    assert kept.find(texts, rices.TEXT) == [[1, 3, 0, 2]] and texts.encoded == 5
    assert kept.find(Blind(AROUND), rices.TEXT) == [[1, 3, 0, 2]]


def test_another_file_or_encoder_is_encoded_anew(kept: Kept) -> None:
    turned = {**AROUND, "c": (1, 0.01)}
    other = Eyes(turned, weights="b")
    assert kept.find(other) == [[1, 2, 3, 0]] and other.encoded == 5
    assert kept.find(Blind(AROUND)) == [[1, 3, 0, 2]]  # the first encoder's are still there
    path = kept.support[2].medium
    assert isinstance(path, pathlib.Path)
    about = path.stat()
    draw(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 10**9))
    changed = Eyes(turned)
    assert kept.find(changed) == [[1, 2, 3, 0]] and changed.encoded == 4  # the query's is the same


@pytest.mark.parametrize("what", ["empty", "cut", "fewer", "text"])
def test_half_a_file_is_not_taken(what: str, kept: Kept) -> None:
    path = kept.files()[-1]
    whole = path.read_bytes()
    if what == "fewer":
        np.save(path, np.load(path)[:3])
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-5], "text": b"no array"}[what])
    (path.parent / "half.tmp").write_bytes(whole[:-5])  # what a kill leaves
    model = Eyes(AROUND)
    assert kept.find(model) == [[1, 3, 0, 2]] and model.encoded == 4
    assert path.read_bytes() == whole


class Killed(Exception):
    """Ends a process."""


def test_processes_encode_a_share_each(tmp_path: pathlib.Path, monkeypatch) -> None:
    """None waits for another; what a killed one has made is taken by the others."""
    monkeypatch.setattr(rices, "KEPT", 2)
    monkeypatch.setattr(rices, "ENCODED", 1)
    names = "abcdefgh"
    vectors = {name: (1.0, float(place)) for place, name in enumerate(names)}
    queries = support = examples(tmp_path, names)

    class Watched(Eyes):
        """Says what it saw; may be killed by it."""

        def __init__(self, death: str = ""):
            super().__init__(vectors)
            self.seen, self.death = "", death

        def embed(self, images: Sequence[Any]) -> np.ndarray:
            name = pathlib.Path(images[0]).stem
            self.seen += name
            if name == self.death:
                raise Killed
            return super().embed(images)

    def find(model: Watched, begin: float, cache: str = "features") -> list[list[int]]:
        finder = rices.Finder(model, medium, tmp_path / cache, begin)
        return finder.neighbours(rices.VISION, queries, support, 3).tolist()

    alone, killed, again, other = Watched(), Watched("h"), Watched(), Watched()
    wanted = find(alone, 0.0, cache="alone")
    assert alone.seen == names
    with pytest.raises(Killed):
        find(killed, 0.5)
    assert killed.seen == "efgh"
    assert find(other, 0.0) == wanted and other.seen == "abcdgh"
    assert find(again, 0.75) == wanted and again.seen == ""


def test_parts_of_one_clip_are_kept_apart(tmp_path: pathlib.Path) -> None:
    clips(tmp_path, "a.mp4")
    parts = [Example("x", Video(tmp_path / "a.mp4", start=start)) for start in (0.0, 1.0)]
    for part in parts:
        model = Eyes({"a": (1, 0)})
        finder = rices.Finder(model, medium, tmp_path / "features")
        finder.neighbours(rices.VISION, [part], [part], 1)
        assert model.encoded == 1
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_what_cannot_be_found(tmp_path: pathlib.Path) -> None:
    finder = rices.Finder(Eyes({**AROUND, "q?": (1, 0)}), medium)
    [seen] = examples(tmp_path, "q")
    unseen, mute = Example("u", None, "q?"), dataclasses.replace(seen, key="m", question="")
    gone = dataclasses.replace(seen, key="g", medium=tmp_path / "gone.png")
    for selection, support, said in (
        (rices.VISION, unseen, "'u' has neither picture nor clip .* take random or rices_text"),
        (rices.BOTH, unseen, "'u' has neither picture nor clip"),
        (rices.TEXT, mute, "'m' has no question to find its like by; take random or rices"),
        (rices.BOTH, mute, "'m' has no question"),
        (rices.VISION, gone, "the medium of 'g': .*No such file"),
        ("near", seen, "there is no selection 'near'; random, rices, rices_text, rices_both"),
        (rices.RANDOM, seen, "there is no selection 'random'"),
    ):
        with pytest.raises(InputError, match=said):
            finder.neighbours(selection, [seen], [support], 1)
