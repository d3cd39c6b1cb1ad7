"""The page of a run: complete, escaped, self-contained; an unfinished or damaged run is told of."""

import html
import html.parser
import json
import pathlib
import re
import shutil
from typing import Any

import pytest
from PIL import Image

from flamingo_jax import report
from flamingo_jax.errors import InputError

VOID = {"meta", "link", "img", "path"}
FILES = ("config.json", "run.json", "metrics.jsonl", "speed.jsonl", "events.jsonl", "results.json")
TAG = "<script>alert('x')</script>"


class Reader(html.parser.HTMLParser):
    """Collects elements and text; fails where an element is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.source = text
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def charts(self) -> dict[str, dict[str, list[float]]]:
        """{title: {line: its values}} of every chart."""
        figures = r'<figure class="chart"><figcaption><b>(.*?)</b>.*?"chart-data">(.*?)</script>'
        found = re.findall(figures, self.source, re.DOTALL)
        return {
            html.unescape(title): {line["name"]: line["y"] for line in json.loads(data)["lines"]}
            for title, data in found
        }


def read(workdir: pathlib.Path) -> Reader:
    path = report.write(workdir)
    assert path == workdir / "report" / "index.html"
    return Reader(path.read_text(encoding="utf-8"))


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copied(run: pathlib.Path, to: pathlib.Path, *without: str) -> pathlib.Path:
    shutil.copytree(run, to)
    for name in without:
        (to / name).unlink()
    return to


def test_every_check_curve_picture_and_token_is_there(finished: pathlib.Path):
    page = read(finished)
    task = json.loads((finished / "results.json").read_text())["tasks"]["openmoji"]
    for check in task["checks"]:
        assert check["title"] in page.text
        digits = 1 if check["unit"] == "%" else 2
        for field in ("value", "control", "chance"):
            if check[field] is not None:
                assert f"{check[field]:.{digits}f}" in page.text
    for token in task["page"]["tokens"]:
        assert token in page.text
    for sample in task["samples"]:
        assert sample["truth"] in page.text and sample["generated"] in page.text
    pictures = [attrs for tag, attrs in page.elements if tag == "img"]
    media = len(task["page"]["images"])
    assert len(pictures) == len(task["samples"]) + 2 * media  # beside the page and in the mask
    cards = [a["class"] or "" for t, a in page.elements if t == "figure"]
    wrong = sum(not sample["correct"] for sample in task["samples"])
    assert cards.count("sample wrong") == wrong
    assert cards.count("sample right") == len(task["samples"]) - wrong


def test_curves_hold_the_logged_values(finished: pathlib.Path):
    charts = read(finished).charts()
    metrics = rows(finished / "metrics.jsonl")
    for stage, name in (("language", "text"), ("contrastive", "names"), ("flamingo", "clips")):
        for kind, told in (("train", name), ("validation", f"{name}, validation")):
            mine = [r for r in metrics if r["stage"] == stage and r["kind"] == kind]
            lines = charts[f"Stage {stage}"]
            assert lines[told] == pytest.approx([r[f"{name}/loss"] for r in mine], rel=1e-4)
    train = [r for r in metrics if r["stage"] == "flamingo" and r["kind"] == "train"]
    mine = [r for r in metrics if r["stage"] == "contrastive" and r["kind"] == "validation"]
    values = [row["names/retrieval"] for row in mine]
    lines = charts["Stage contrastive: retrieval"]
    assert lines["names, validation"] == pytest.approx(values, rel=1e-4)
    for title, key in (("Gates of attention", "attention"), ("Gates of dense layers", "dense")):
        for layer in range(4):
            values = [row[f"gate_{key}/{layer}"] for row in train]
            assert charts[title][f"layer {layer}"] == pytest.approx(values, rel=1e-4)
    checked = [r for r in metrics if r["stage"] == "flamingo" and r["kind"] == "validation"]
    for name in ("pages", "alts", "descriptions", "clips"):
        values = [row[f"{name}/shuffled_minus_right"] for row in checked]
        assert charts["Shuffled minus right picture"][name] == pytest.approx(values, rel=1e-4)
    assert charts["Right of 16 names, by shots"]["right picture"] == [60.0, 52.0, 50.0, 58.0]


def test_the_mask_is_drawn_as_the_model_attends(finished: pathlib.Path, tmp_path: pathlib.Path):
    page = json.loads((finished / "results.json").read_text())["tasks"]["openmoji"]["page"]

    def drawn(workdir: pathlib.Path) -> list[list[bool]]:
        text = report.write(workdir).read_text(encoding="utf-8")
        table = re.search(r'<table class="mask">.*?</table>', text, re.DOTALL)
        assert table
        lines = re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
        return [['class="on"' in cell for cell in re.findall(r"<td[^>]*>", row)] for row in lines]

    media, tied = len(page["images"]), page["media_of_token"]
    matrix = drawn(finished)
    assert matrix[:media] == [[m == medium for m in tied] for medium in range(1, media + 1)]
    assert matrix[media] == [bool(bit) for bit in page["loss_mask"]]

    upto = copied(finished, tmp_path / "upto")
    config = json.loads((upto / "config.json").read_text())
    config["model"]["xattn"]["attend"] = "upto"
    (upto / "config.json").write_text(json.dumps(config))
    assert drawn(upto)[:media] == [[m >= medium for m in tied] for medium in range(1, media + 1)]


def test_nothing_is_loaded_and_nothing_escapes(finished: pathlib.Path):
    page = read(finished)
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    text = (finished / "report" / "index.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policy and "default-src 'none'" in (policy[0] or "")
    # The command, an alarm, a check, a token and samples of the run hold an element of their own.
    assert TAG in page.text and TAG not in text
    assert sum("alert" in script for script in page.scripts) == 0


def test_header_tables_and_foot(finished: pathlib.Path):
    page = read(finished)
    for told in (
        "openmoji", "finished", "python -m flamingo_jax train", "jax\u00a00.10.2", "8 cpu",
        "0123456789ab with changes", "7 min 41 s", "Resumed 1 time: flamingo step 300.",
        "2.26M of 6.61M trained", "231 GFLOP/s", "model TFLOP/s", "8 latents",
        "OpenMoji, CC BY-SA 4.0",
    ):  # fmt: skip
        assert told in page.text
    assert "unfinished" not in page.text and 'role="alert"' not in page.text


def test_an_unfinished_run_says_what_is_missing_and_alarms(fake_run, tmp_path: pathlib.Path):
    run = fake_run(tmp_path / "run", flamingo_steps=330, alarm=True)
    page = read(run)
    assert "unfinished" in page.text and "stage flamingo, step 330 of 740" in page.text
    assert "No checks: results.json is not there yet" in page.text
    assert ("div", {"class": "alarm", "role": "alert"}) in page.elements
    assert "costs 0.02 nats a token" in page.text and "did cost more" not in page.text
    assert "text, validation" in page.charts()["Stage language"]

    kept = rows(run / "events.jsonl")
    kept.append({"time": 1.8e9, "stage": "flamingo", "step": 330, "kind": "preempted", "text": ""})
    (run / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "preempted" in read(run).text


def test_a_run_with_more_steps_than_it_was_finished_with_is_unfinished(fake_run, tmp_path):
    run = fake_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["train"]["steps"] *= 2
    (run / "config.json").write_text(json.dumps(config))
    assert "stage flamingo, step 740 of 1,480" in read(run).text


@pytest.mark.parametrize("name", FILES)
def test_any_file_may_be_missing(finished: pathlib.Path, tmp_path: pathlib.Path, name: str):
    whole = read(finished)
    part = read(copied(finished, tmp_path / "run", name))
    told = [a for t, a in part.elements if "left-out" in (a.get("class") or "")]
    before = [a for t, a in whole.elements if "left-out" in (a.get("class") or "")]
    assert not before
    assert told or name in ("speed.jsonl",)  # run.json tells of the stages' times too


@pytest.mark.parametrize("name", FILES)
def test_each_file_alone_is_enough_for_a_report(
    finished: pathlib.Path, tmp_path: pathlib.Path, name: str
):
    alone = tmp_path / "run"
    alone.mkdir()
    shutil.copy(finished / name, alone / name)
    assert read(alone).text


def test_a_torn_last_line_is_nothing_and_a_damaged_one_before_is_told(
    finished: pathlib.Path, tmp_path: pathlib.Path
):
    run = copied(finished, tmp_path / "run")
    before = read(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines) + lines[-1][: len(lines[-1]) // 2])
    torn = read(run)
    assert torn.charts() == before.charts() and "damaged" not in torn.text

    middle = len(lines) // 2
    (run / "metrics.jsonl").write_text("".join([*lines[:middle], "{oops\n", *lines[middle:]]))
    damaged = read(run)
    assert damaged.charts() == before.charts()
    assert "metrics.jsonl: 1 damaged line left out." in damaged.text


def test_damaged_json_leaves_its_part_out(finished: pathlib.Path, tmp_path: pathlib.Path):
    run = copied(finished, tmp_path / "run")
    (run / "results.json").write_text('{"tasks": {"bad": {"checks": [{"title": "no key"}]}}}')
    (run / "run.json").write_text("{")
    text = read(run).text
    assert "the task 'bad' is left out" in text and "run.json is left out" in text


def test_values_that_are_no_numbers_do_not_stop_the_report(finished, tmp_path: pathlib.Path):
    run = copied(finished, tmp_path / "run")
    metrics = rows(run / "metrics.jsonl")
    metrics[3]["text/loss"] = float("nan")
    metrics[4]["text/loss"] = float("inf")
    metrics[5]["text/loss"] = "oops"
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    assert read(run).charts()["Stage language"]["text"][3:6] == [None, None, None]


def test_pictures_stay_inside_the_workdir_and_small(finished, tmp_path: pathlib.Path):
    run = copied(finished, tmp_path / "run")
    Image.effect_noise((1200, 900), 80).save(run / "samples" / "large.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (run / "samples" / "text.png").write_text("no picture")
    results = json.loads((run / "results.json").read_text())
    samples = results["tasks"]["openmoji"]["samples"]
    names = ("../outside.png", "samples/text.png", "samples/absent.png", "samples/large.png")
    for sample, name in zip(samples, names, strict=False):
        sample["image"] = name
    (run / "results.json").write_text(json.dumps(results))
    page = read(run)
    assert sum(a.get("class") == "no-picture" for _, a in page.elements) == 3
    sources = [a["src"] or "" for t, a in page.elements if t == "img"]
    assert (run / "samples" / "large.png").stat().st_size > 500_000
    assert max(map(len, sources)) < 150_000


def test_what_is_no_run_gives_one_sentence(tmp_path: pathlib.Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("absent", "empty", "file"):
        with pytest.raises(InputError, match=name) as problem:
            report.write(tmp_path / name)
        assert "\n" not in str(problem.value)


def test_a_report_that_cannot_be_written_gives_one_sentence(finished, tmp_path: pathlib.Path):
    run = copied(finished, tmp_path / "run")
    shutil.rmtree(run / "report", ignore_errors=True)
    (run / "report").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        report.write(run)
