"""The page in a real browser: no error, no request, and the script does its work."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from flamingo_jax import report

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
