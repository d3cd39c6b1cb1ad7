"""The page of benchmarks: it shows the folder's figures and answers, and nothing in it runs."""

import collections
import html.parser
import json
import pathlib
import re
from typing import Any

import pytest

from flamingo_jax.errors import InputError
from flamingo_jax.eval import published
from flamingo_jax.report import benchmark_files, benchmark_queries, benchmarks
from tests.report.evaluated import COCO, EVERY, FILES, FRUIT, MANY, VQA, make_evaluation

VOID = {"img", "link", "meta", "br", "input"}


class Read(html.parser.HTMLParser):
    """What a browser makes of a page: its text by section, its tables, its data, its elements."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.section = ""
        self.text: dict[str, str] = collections.defaultdict(str)
        self.rows: dict[str, list[list[str]]] = collections.defaultdict(list)
        self.data: dict[str, dict[str, Any]] = {}
        self.names: collections.Counter[str] = collections.Counter()
        self.links: list[str] = []
        self._script = ""
        self.feed(page)
        self.close()
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names[tag] += 1
        self.links += [given[name] or "" for name in ("src", "href") if name in given]
        assert not any(name.startswith("on") for name in given)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"] or ""
        elif tag == "tr":
            self.rows[self.section].append([])
        elif tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        elif tag == "script":
            self._script = given.get("class") or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            if self._script == "query-data":
                self.data[self.section.removeprefix("benchmark-")] = json.loads(data)
            return
        self.text[self.section] += data
        if {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An evaluation of five benchmarks; not to be written to but by the page itself."""
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "few shots")


@pytest.fixture(scope="module")
def read(folder: pathlib.Path) -> Read:
    return Read(benchmarks.write(folder).read_text(encoding="utf-8"))


def results(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def rows_of(folder: pathlib.Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["benchmark"] == name]


def rewrite(folder: pathlib.Path, change: Any) -> None:
    value = results(folder)
    change(value)
    (folder / "results.json").write_text(json.dumps(value), encoding="utf-8")


def test_hostile_texts_stay_texts(read: Read, folder: pathlib.Path):
    assert "</script><b>bold</b><!-- \"'&" in read.text["benchmark-vqav2"]
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "bold</b>" not in page and "\x1b" not in page
    [row] = [row for row in read.data["vqav2"]["settings"][0]["rows"] if row[0] == 0]
    assert "</script><b>bold</b>" in row[1] and "\x1b" not in row[1]
    assert set(read.names) <= {
        *("html", "head", "meta", "title", "link", "style", "body", "main", "header", "p", "h1"),
        *("dl", "div", "dt", "dd", "details", "summary", "pre", "nav", "a", "section", "h2", "h3"),
        *("table", "thead", "tbody", "tr", "th", "td", "b", "span", "figure", "figcaption", "ul"),
        *("button", "i", "svg", "path", "script", "li", "code"),
    }
    assert all(link.startswith(("#", "data:")) for link in read.links)
    assert not re.search(r"https?://", re.sub(r'"[^"]*"', "", page.replace("\\u003c", "")))


def test_figures_stand_beside_published_ones_of_the_same_shots(read: Read, folder: pathlib.Path):
    rows = read.rows["benchmark-coco"]
    head = ["model", "selection", "0 shots", "4 shots", "8 shots", "source"]
    assert rows[0] == head
    for setting in results(folder)["benchmarks"]["coco"]["settings"]:
        over = setting["figures"]["cider"]
        own = [trial["figures"]["cider"] for trial in setting["trials"]]
        low, high = (sum(figure[end] for figure in own) / 2 for end in ("low", "high"))
        wanted = f"{over['mean']:.1f} ± {over['std']:.1f}{low:.1f}–{high:.1f}"
        place = {"random": 1, "rices": 2}[setting["selection"]]
        assert rows[place][head.index(f"{setting['shots']} shots")] == wanted
    assert [row[0] for row in rows[1:3]] == ["openmoji"] * 2
    by_row = {(row[0], row[1]): row[2:] for row in rows[3:]}
    assert by_row["Flamingo 80B", "random"] == ["84.3", "103.2", "108.8", "Flamingo v1, table 3"]
    assert by_row["OpenFlamingo 9B", "RICES"][:3] == ["76.8", "93.1", "99.8"]
    assert by_row["best before Flamingo", ""][:3] == ["32.2", "–", "–"]
    assert "COCO" in by_row["IDEFICS 9B", "random"][3]
    assert "fine-tuned model had 143.3 (Flamingo v1, table 3)" in read.text["benchmark-coco"]
    known = {
        (p.model, p.selection, p.variant) for p in published.of("coco") if p.shots in (0, 4, 8)
    }
    all_of_them = next(n for n, row in enumerate(rows) if row[0] == "setting") - 3
    assert all_of_them == len(known)
    vqa = {(row[0], row[1]): row for row in read.rows["benchmark-vqav2"]}
    assert "split test-dev" in vqa["Flamingo 3B", "random"][-1]  # ours is of val
    assert "No figures with these numbers" in read.text["benchmark-custom"]


def test_all_figures_and_prompts(read: Read, folder: pathlib.Path):
    rows = read.rows["benchmark-coco"]
    head, *body = rows[next(n for n, row in enumerate(rows) if row[0] == "setting") :]
    wanted = ["setting", "CIDEr", "BLEU-4", "ROUGE-L", "trials", "scored queries", "time"]
    assert head == wanted and len(body) == 5
    assert body[2][0] == "4 shots, RICES" and body[2][4:] == ["2", "6", "1 min 01 s"]
    for setting in results(folder)["benchmarks"]["custom"]["settings"]:
        [prompt] = setting["prompts"]
        assert prompt["text"] in read.text["benchmark-custom"]
    assert "red apple\ngreen pear\nblue boat" in read.text["benchmark-custom"]


def test_overview_and_what_is_left_out(read: Read):
    rows = {(row[0], row[2]): row for row in read.rows["overview"]}
    assert rows["COCO captions", "random"][3].startswith("72.4 ± 0.6")
    assert rows["VizWiz", "random"][3:] == ["–", "–", "–"]
    assert "3 examples left out: their clip is not there." in read.text["benchmark-custom"]
    hidden = read.text["benchmark-vizwiz"]
    assert "Not scored: the split's references are not public." in hidden
    assert "vizwiz-4-random-0.json" in read.text["submissions"]
    assert all(f"#benchmark-{made.name}" in read.links for made in EVERY)


def test_every_answer_is_there_with_its_score_and_shots(read: Read, folder: pathlib.Path):
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    scores = {tuple(row[k] for k in ("shots", "selection", "trial", "key")): row["figures"]
              for row in map(json.loads, lines) if row["benchmark"] == "coco"}  # fmt: skip
    data = read.data["coco"]
    keys = [item[0] for item in data["items"]]
    settings = {setting["name"]: setting["rows"] for setting in data["settings"]}
    titles = {"random": "random", "rices": "RICES"}
    found = 0
    for row in rows_of(folder, "coco"):
        name = f"{row['shots']} shots, {titles[row['selection']]}, trial {row['trial']}"
        [given] = [r for r in settings[name] if keys[r[0]] == row["key"]]
        place = (row["shots"], row["selection"], row["trial"], row["key"])
        assert given[1] == row["answer"] and given[2] == scores[place]["cider"]
        assert given[3].strip() == row["text"].strip()
        assert [keys[place] for place in given[5]] == row["shown"]
        found += 1
    assert found == sum(map(len, settings.values())) == 60
    queries = json.loads((folder / "queries.json").read_text(encoding="utf-8"))["coco"]
    for item in data["items"][:6]:
        picture = queries[item[0]]["picture"]
        assert (item[1] is None) == (picture is None)
        assert item[1] is None or (folder / "report" / item[1]).samefile(folder / picture)
    assert data["items"][6][:2] == ["support-1", None]


def test_references_are_counted():
    given = ["yes"] * 7 + ["no", "yes ", ""]
    assert benchmark_queries.references(given) == ["yes ×8", "no"]
    many = benchmark_queries.references([str(n) for n in range(20)])
    assert len(many) == 9 and many[-1] == "and 12 more"


def test_classes_taken_for_others_are_counted(read: Read, folder: pathlib.Path):
    queries = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    for made in (FRUIT, MANY):
        wanted: dict[tuple[int, str, int], collections.Counter] = {}
        for row in rows_of(folder, made.name):
            place = (row["shots"], row["selection"], row["trial"])
            pair = (queries[made.name][row["key"]]["label"], row["answer"])
            wanted.setdefault(place, collections.Counter())[pair] += 1
        settings = read.data[made.name]["settings"]
        assert len(settings) == len(wanted) == 10
        for setting, counts in zip(settings, wanted.values(), strict=True):
            if made is FRUIT:
                cells = {(setting["classes"][r], setting["classes"][g]): n
                         for r, g, n in setting["cells"]}  # fmt: skip
                assert cells == counts
            else:  # of many classes the confused pairs alone
                assert {(r, g): n for r, g, n in setting["pairs"]} == {
                    pair: n for pair, n in counts.items() if pair[0] != pair[1]
                }
    assert "cells" not in read.data["coco"]["settings"][0]
    best = read.data["custom"]["settings"][0]["rows"][0][4]
    assert len(best) == 5 and best[0][1] == max(score for _, score in best)


def test_a_page_is_bounded(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setattr(benchmark_queries, "MOST_ROWS", 100)
    monkeypatch.setattr(benchmark_queries, "FEWEST_QUERIES", 1)
    page = Read(str(benchmarks.render(folder)))
    data = page.data["coco"]
    assert all(len(setting["rows"]) == 2 for setting in data["settings"])
    assert "The first 2 of 6 queries are here" in page.text["benchmark-coco"]
    assert sum(n for *_, n in page.data["custom"]["settings"][0]["cells"]) == 6  # of all of them


@pytest.mark.parametrize("missing", FILES[1:])
def test_a_missing_file_is_no_more_than_that(missing: str, tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO, FRUIT), 2, (0, 4), trials=1)
    (folder / missing).unlink()
    page = Read(benchmarks.write(folder).read_text(encoding="utf-8"))
    assert page.rows["benchmark-coco"][1][2] == "72.069.5–74.5"  # one trial has no spread
    if missing == "predictions.jsonl":
        assert "No queries: predictions.jsonl" in page.text["benchmark-coco"] and not page.data
        return
    [item, answer, score, *_] = page.data["coco"]["settings"][0]["rows"][0]
    assert page.data["coco"]["items"][item][0] == "coco-0" and answer
    assert (score is None) == (missing == "scores.jsonl")


def test_damaged_lines_are_told(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 2, (0,), trials=1)
    with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write("{not json}\n[1]\n" + json.dumps({"benchmark": "gone", "shots": 4}) + "\n")
        file.write('{"benchmark": "coco", "shots": 0, "torn')
    (folder / "queries.json").write_text("[]", encoding="utf-8")
    page = Read(str(benchmarks.render(folder)))
    told = page.text[""]
    assert "predictions.jsonl: 2 damaged lines left out." in told
    assert "1 line of no benchmark and setting" in told
    assert "queries.json is left out" in told
    assert len(page.data["coco"]["settings"][0]["rows"]) == 2


def test_scores_that_are_not_finite_are_none(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (FRUIT,), 1, (0,), trials=1)
    place = {"benchmark": "custom", "shots": 0, "selection": "random", "trial": 0}
    line = {**place, "key": "custom-0", "answer": "white dog", "shown": []}
    scores = [float("-inf"), float("nan"), -3.0, -2.0, -1.0]
    (folder / "predictions.jsonl").write_text(json.dumps({**line, "scores": scores}) + "\n")
    figures = {**place, "key": "custom-0", "figures": {"top1": float("nan")}}
    (folder / "scores.jsonl").write_text(json.dumps(figures) + "\n")
    [row] = Read(str(benchmarks.render(folder))).data["custom"]["settings"][0]["rows"]
    assert row[2] is None
    assert row[4] == [["white dog", -1.0], ["grey stone", -2.0], ["blue boat", -3.0]]


def test_answers_to_none_of_the_queries(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 2, (0,), trials=1)
    (folder / "queries.json").write_text('{"coco": {"another": {}}}')
    page = Read(str(benchmarks.render(folder)))
    assert "No queries" in page.text["benchmark-coco"] and not page.data


def test_answers_of_several_processes(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 4, (0,), trials=1)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[::2]), encoding="utf-8")
    (folder / "predictions-00001.jsonl").write_text("".join(lines[1::2]), encoding="utf-8")
    (folder / "times-00001.json").write_text('{"coco, 0 shots (random), trial 0": {"seconds": 99}}')
    page = Read(str(benchmarks.render(folder)))
    assert [row[0] for row in page.data["coco"]["settings"][0]["rows"]] == [0, 1, 2, 3]
    assert "1 min 39 s" in page.text["benchmark-coco"]  # they work side by side: the slowest


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "report/nowhere.jpg", "", 7])
def test_pictures_from_elsewhere_are_not_shown(name: Any, tmp_path: pathlib.Path):
    (tmp_path / "secret.jpg").write_bytes(b"")
    (tmp_path / "e").mkdir()
    assert benchmark_queries.picture(tmp_path / "e", name) is None


def test_names_of_pictures_are_quoted(tmp_path: pathlib.Path):
    (tmp_path / "report" / "pictures").mkdir(parents=True)
    (tmp_path / "report" / "pictures" / "a #1?.jpg").write_bytes(b"")
    found = benchmark_queries.picture(tmp_path, "report/pictures/a #1?.jpg")
    assert found == "pictures/a%20%231%3F.jpg"


def test_the_validation_split_is_told(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (VQA,), 2, (4,), ("random",), trials=1)
    rewrite(folder, lambda value: value["request"].update(split="validation", limit=0))
    page = Read(str(benchmarks.render(folder)))
    assert "examples of the training split" in page.text["benchmark-vqav2"]
    assert "validation, all of them" in page.text[""]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "results.json").unlink(), r"holds no results\.json; give a folder"),
        (lambda f: (f / "results.json").write_text("{"), "cannot be read .*evaluate again"),
        (lambda f: rewrite(f, lambda v: v.pop("benchmarks")), "there is no 'benchmarks'"),
        (lambda f: rewrite(f, lambda v: v.update(format=2)), "its format is 2, and 1 is read"),
        (
            lambda f: rewrite(f, lambda v: v["benchmarks"]["coco"].pop("settings")),
            "benchmark 'coco' is not as evaluations write it .*settings",
        ),
        (
            lambda f: rewrite(
                f, lambda v: v["benchmarks"]["coco"]["settings"][0].update(shots="x")
            ),
            "benchmark 'coco' is not as",
        ),
    ],
)
def test_what_is_no_evaluation_is_refused(damage: Any, message: str, tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 1, (0,), trials=1)
    damage(folder)
    with pytest.raises(InputError, match=message):
        benchmarks.write(folder)
    assert not (folder / "report" / "index.html").exists()


def test_a_page_that_cannot_be_written(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 1, (0,), trials=1)
    (folder / "report" / "index.html").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        benchmarks.write(folder)


def test_the_summary_is_a_line_a_setting(folder: pathlib.Path):
    lines = benchmarks.summary(results(folder), folder).splitlines()
    assert len(lines) == 2 + 5 * 5 + 1
    cells = re.split(r"\s{2,}", lines[2 + 2])
    assert cells[:4] == ["coco", "4", "RICES", "CIDEr"]
    assert cells[4:] == ["94.8", "92.3–97.3", "± 0.6 (2 trials)", "6", "1 min 01 s"]
    assert lines[-1] == "vizwiz is not scored: the split's references are not public"
    without = benchmarks.summary(results(folder)).splitlines()
    assert without[4].endswith("–") and "\x1b" not in "".join(without)
    empty = {"format": 1, "benchmarks": {}}
    assert benchmarks.summary(empty) == "No benchmark has been evaluated."
    with pytest.raises(InputError, match="there is no 'benchmarks'"):
        benchmarks.summary({})


def test_figures_that_have_no_value(tmp_path: pathlib.Path):
    folder = make_evaluation(tmp_path / "e", (COCO,), 1, (0, 4), ("random",), trials=1)

    def change(value: dict[str, Any]) -> None:
        first, second = value["benchmarks"]["coco"]["settings"]
        first["trials"][0]["figures"]["cider"].update(low=None, high=None)
        second["figures"]["cider"]["mean"] = float("nan")

    rewrite(folder, change)
    [entry] = benchmark_files.read(folder, []).entries
    assert entry.settings[0].figures["cider"].interval == ""
    assert "cider" not in entry.settings[1].figures
    page = Read(str(benchmarks.render(folder)))
    assert page.rows["benchmark-coco"][1][2:4] == ["72.0", "–"]
