"""The report of an evaluation opened in a real browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from evaluation_samples import examples, whole

from orchestration.reporting.evaluation_report import evaluation_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WATCH = """<script>
const seen = { errors: [], blocked: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => seen.blocked.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...told) => seen.errors.push(told.join(" "));
</script>"""

LOOK = """<script>
(async () => {
  const pause = () => new Promise((done) => setTimeout(done, 50));
  while (document.body.dataset.drawn === undefined) await pause();
  const charts = [...document.querySelectorAll(".chart")];
  const marks = ".scatterlayer .trace, .barlayer .trace";
  seen.verdict = document.querySelector("h1").innerText;
  seen.charts = charts.length;
  seen.empty = charts.filter((one) => !one.querySelector(marks)).map((one) => one.ariaLabel);
  seen.resources = performance.getEntriesByType("resource").map((one) => one.name)
    .filter((one) => !one.startsWith("data:"));
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  const pictures = [...document.querySelectorAll("img")];
  pictures.forEach((one) => { one.loading = "eager"; });
  await Promise.all(pictures.map((one) => one.decode()));
  seen.pictures = pictures.filter((one) => one.naturalWidth > 0).length;
  const all = document.querySelector("#classification details");
  seen.folded = all.querySelector("table").offsetParent === null || !all.open;
  all.querySelector("summary").click();
  await pause();
  seen.unfolded = all.open;
  dispatchEvent(new Event("beforeprint"));
  await pause();
  seen.paper = getComputedStyle(document.body).backgroundColor;
  const told = document.createElement("pre");
  told.id = "seen";
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
})();
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("no browser is installed here (apt-get install chromium)")


def look_at(browser: str, page: str, folder: Path, width: int) -> dict[str, Any]:
    """Open a page that watches itself, use it, and return what was seen."""
    watched = folder / "watched.html"
    watched.write_text(page.replace("<style>", WATCH + "<style>", 1).replace("</body>", LOOK + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--dump-dom", watched.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(unescape(found.group(1)))
    return seen


@pytest.mark.parametrize("width", [1280, pytest.param(600, marks=pytest.mark.slow)])
def test_a_browser_draws_every_chart_and_picture_without_an_error_and_asks_nobody_for_anything(
    browser: str, tmp_path: Path, width: int
) -> None:
    told = whole()
    shown = examples()
    seen = look_at(browser, evaluation_report(told.summary, told.of, shown), tmp_path, width)
    assert seen["verdict"] == "The pre-trained model is better than the untrained one on 3 of 4 tasks."
    assert seen["errors"] == []
    assert seen["blocked"] == []
    assert seen["resources"] == []
    assert seen["charts"] >= 15
    assert seen["empty"] == []
    assert seen["pictures"] == 13
    assert not seen["wide"]
    assert seen["folded"]
    assert seen["unfolded"]
    assert seen["paper"] == "rgb(255, 255, 255)"
