"""The page in a real browser: no error, no request, and the script does its work."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from flamingo_jax import report
from flamingo_jax.report import benchmarks, datasets, laid
from tests.report.evaluated import make_evaluation

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
         "--disable-background-networking", "--virtual-time-budget=2000", "--dump-dom",
         "--enable-logging=stderr")  # fmt: skip

WATCH = """<script>
window.problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message)), true);
window.addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
</script>"""

EXERCISE = """<script>
const seen = {};
const chart = [...document.querySelectorAll(".chart")].find(
  (each) => each.querySelector("b").textContent === "Stage flamingo");
const plots = chart.querySelector(".plots");
const hover = () => {
  const box = plots.getBoundingClientRect();
  plots.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2 }));
  return [...chart.querySelectorAll(".tip span")].map((each) => each.textContent);
};
const inside = () => {
  const tip = chart.querySelector(".tip").getBoundingClientRect();
  return tip.left >= 0 && tip.right <= window.innerWidth;
};
seen.before = hover();
seen.inside = inside();
chart.querySelector('[data-legend="clips"]').click();
seen.after = hover();
const off = [...chart.querySelectorAll("path.off")];
seen.hidden = off.length > 0 && off.every((each) => each.dataset.legend === "clips");
const scale = () => chart.querySelector(".plot:not([hidden])").dataset.scale;
seen.scales = [scale()];
chart.querySelector(".scale-button").click();
seen.scales.push(scale());
const choose = (key, value) => {
  const select = document.querySelector(`select[data-filter="${key}"]`);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const shown = ".sample-group:not([hidden]) .sample:not([hidden])";
const cards = () => [...document.querySelectorAll(shown)];
choose("group", document.querySelector(".sample-group").dataset.group);
choose("sort", "wrong");
seen.sorted = cards().map((each) => each.dataset.correct).join("");
choose("correct", "0");
seen.wrong = cards().length;
seen.narrow = document.documentElement.scrollWidth <= window.innerWidth;
seen.problems = problems;
document.body.dataset.seen = JSON.stringify(seen);
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    return found


def opened(
    browser: str, page: pathlib.Path, profile: pathlib.Path, width: int = 1200
) -> tuple[str, str]:
    """(the page as it stands after its scripts, what the browser complained of)."""
    command = [
        browser,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},900",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_script_works(browser: str, finished: pathlib.Path, tmp_path: pathlib.Path, width: int):
    text = report.write(finished).read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    watched = text.replace("<title>", WATCH + "<title>", 1)
    page.write_text(watched.replace("</body>", EXERCISE + "</body>"), encoding="utf-8")
    dom, complaints = opened(browser, page, tmp_path / "profile", width)
    assert not complaints
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, "the exercise did not come to its end"
    seen = json.loads(html.unescape(found[1]))
    names = ("pages", "alts", "descriptions", "clips")
    both = [told for name in names for told in (name, f"{name}, validation")]
    assert seen["before"] == both and seen["after"] == both[:-2] and seen["hidden"]
    assert seen["scales"] == ["linear", "log"]
    assert seen["sorted"] == "0011111111" and seen["wrong"] == 2
    assert seen["inside"], "the tooltip leaves the window"
    assert seen["narrow"], "the page is wider than its window"
    assert seen["problems"] == []


def test_a_comparison_opens_without_complaint(
    browser: str, fake_run, finished: pathlib.Path, tmp_path: pathlib.Path
):
    page = report.compare([finished, fake_run(tmp_path / "b", 1)], tmp_path / "compare.html")
    dom, complaints = opened(browser, page, tmp_path / "profile")
    assert not complaints and "2 runs compared" in dom


POINT = """<script>
const seen = {};
const row = [...document.querySelectorAll(".row")].find((each) => each.querySelector(".clip"));
const token = row.querySelector('.token[data-medium="2"]');
const lit = () => [...row.querySelectorAll(".lit")].map((each) => each.dataset.medium).join("");
token.dispatchEvent(new PointerEvent("pointerenter"));
seen.token = lit();
token.dispatchEvent(new PointerEvent("pointerleave"));
seen.left = lit();
row.querySelector('.row-medium[data-medium="1"]').dispatchEvent(new PointerEvent("pointerenter"));
seen.picture = lit();
const border = (each) => getComputedStyle(each.querySelector(".seen")).borderTopColor;
const pictures = [...row.querySelectorAll(".row-medium")];
const chips = [1, 2].map((n) => row.querySelector(`.token.image[data-medium="${n}"]`));
seen.colours = pictures.map(border);
seen.chips = chips.map((each) => getComputedStyle(each).backgroundColor);
seen.drawn = [...document.images].every((each) => each.naturalWidth > 0);
seen.narrow = document.documentElement.scrollWidth <= window.innerWidth;
seen.problems = problems;
document.body.dataset.seen = JSON.stringify(seen);
</script>"""


def a_mixture() -> datasets.Mixture:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 64, 64, 3), np.uint8)
    image = laid.Picture(pixels[0][:1], pixels[1][:1], "0000/" + "0123456789" * 20, (640, 480))
    clip = laid.Picture(pixels[0], pixels[1], "film.mp4", (320, 240), clip=True)
    tokens = [laid.Piece("text" * 40, 0, True), laid.Piece("<image>", 1, False, "image")]
    tokens += [laid.Piece(" more", 1, True), laid.Piece("<image>", 2, False, "image")]
    rows = [laid.LaidRow(n, n, "k" * 90, tuple(tokens), 40, (image, clip)) for n in range(3)]
    drop = datasets.Drop("not an image", 3, example="document 7: " + "x" * 300)
    measured = datasets.Statistics(
        9, [5, 70, 900_000], [5, 40, 40], [0, 1, 9], [0, 1, 2], [(3, 4)], [drop]
    )
    made = datasets.Dataset(
        *("pages", "obelics", "/data/" + "shards/" * 40, 9, "page", 5, 40, 2, 8, 1.0),
        measured,
        rows,
    )
    return datasets.Mixture("mine", [made, made])


@pytest.mark.parametrize("width", [1200, 390])
def test_rows_of_datasets(browser: str, tmp_path: pathlib.Path, width: int):
    page = report.write_datasets(a_mixture(), tmp_path)
    text = page.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1)
    page.write_text(text.replace("</body>", POINT + "</body>"), encoding="utf-8")
    dom, complaints = opened(browser, page, tmp_path / "profile", width)
    assert not complaints
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, "the exercise did not come to its end"
    seen = json.loads(html.unescape(found[1]))
    assert (seen["token"], seen["left"], seen["picture"]) == ("2", "", "111")
    assert seen["colours"] == seen["chips"] and len(set(seen["colours"])) == 2
    assert seen["drawn"] and seen["problems"] == []
    assert seen["narrow"], "the page is wider than its window"


BROWSE = """<script>
const seen = {};
const box = document.querySelector("#benchmark-coco .queries");
const [setting, order] = box.querySelectorAll("select");
const search = box.querySelector("input");
const cards = () => [...box.querySelectorAll(".query")];
const keys = () => cards().map((each) => each.querySelector(".key").textContent);
const scores = () => cards().map((each) => Number(each.querySelector(".score").textContent));
const set = (field, value, event) => {
  field.value = value;
  field.dispatchEvent(new Event(event));
};
const choose = (select, value) => set(select, value, "change");
const find = (text) => set(search, text, "input");
const count = () => box.querySelector(".query-count").textContent;
seen.first = keys();
seen.settings = [...setting.options].map((each) => each.textContent);
choose(order, "worst");
seen.worst = scores();
choose(order, "best");
seen.best = scores();
choose(order, "order");
seen.count = count();
box.querySelectorAll(".pager button")[1].click();
seen.second = [keys()[0], count()];
find("COCO-29");
seen.found = [keys(), count()];
find("no such text");
seen.none = [cards().length, count()];
find("");
choose(setting, 1);
const shots = cards()[0].querySelector("details");
shots.open = true;
const other = document.querySelector("#benchmark-custom");
const [of] = other.querySelectorAll("select");
const total = () => [...other.querySelectorAll(".confused td")].reduce(
  (sum, each) => sum + Number(each.textContent), 0);
seen.classes = [total()];
choose(of, 2);
seen.classes.push(total());
seen.pairs = document.querySelectorAll("#benchmark-imagenet .pairs tbody tr").length > 0;
const said = document.querySelector("#benchmark-vqav2 .said").textContent;
seen.hostile = said.includes("<" + "/script><b>");
seen.bars = document.querySelectorAll("#benchmark-coco path.error").length;
setTimeout(() => {
  seen.shots = shots.querySelectorAll("li").length;
  const pictures = [...document.querySelectorAll("#benchmark-coco .query > img")];
  for (const each of pictures) each.loading = "eager";
  setTimeout(() => {
    seen.pictures = pictures.length > 0 && pictures.every((each) => each.naturalWidth > 0);
    seen.narrow = document.documentElement.scrollWidth <= window.innerWidth;
    seen.problems = problems;
    document.body.dataset.seen = JSON.stringify(seen);
  }, 500);
}, 100);
</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_queries_of_benchmarks(browser: str, tmp_path: pathlib.Path, width: int):
    folder = make_evaluation(tmp_path / "evaluation", queries=30, shots=(0, 4), trials=1)
    page = benchmarks.write(folder)
    text = page.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1)
    page.write_text(text.replace("</body>", BROWSE + "</body>"), encoding="utf-8")
    dom, complaints = opened(browser, page, tmp_path / "profile", width)
    assert not complaints
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, "the exercise did not come to its end"
    seen = json.loads(html.unescape(found[1]))
    assert seen["first"] == [f"coco-{n}" for n in range(24)]
    assert seen["settings"] == ["0 shots, random", "4 shots, random", "4 shots, RICES"]
    assert seen["worst"] == sorted(seen["worst"]) and seen["worst"][0] < seen["best"][0]
    assert seen["best"] == sorted(seen["best"], reverse=True)
    assert seen["count"] == "1–24 of 30" and seen["second"] == ["coco-24", "25–30 of 30"]
    assert seen["found"] == [["coco-29"], "1–1 of 1"]
    assert seen["none"] == [0, "No query holds that text."]
    assert seen["shots"] == 4 and seen["classes"] == [30, 30] and seen["pairs"]
    assert seen["hostile"] and seen["bars"] == 2
    assert seen["pictures"], "pictures beside the page are not shown"
    assert seen["narrow"], "the page is wider than its window"
    assert seen["problems"] == []
