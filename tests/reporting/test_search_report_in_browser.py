"""The report of a search opened in a real browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from search_samples import confirm, searched, several, space_of

from orchestration.reporting.search_report import write_search_report

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
  const visible = (all) => [...all].filter((one) => one.offsetParent !== null);
  const charts = () => visible(document.querySelectorAll(".chart"));
  const marks = ".scatterlayer .trace, .barlayer .trace";
  seen.verdict = document.querySelector("h1").innerText;
  seen.charts = charts().length;
  seen.empty = charts().filter((one) => !one.querySelector(marks)).map((one) => one.ariaLabel);
  seen.resources = performance.getEntriesByType("resource").map((one) => one.name);
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  const first = document.querySelector('input[name="step"]');
  first.click();
  await pause(); await pause();
  seen.importance = charts().some((one) => one.ariaLabel.startsWith("Importance"));
  seen.emptyAfter = charts().filter((one) => !one.querySelector(marks)).length;
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const column = () => rows().map((row) => row.cells[0].textContent);
  document.querySelector("table.sortable th button").click();
  seen.ascending = column();
  document.querySelector("table.sortable th button").click();
  seen.descending = column();
  seen.sorted = document.querySelector("table.sortable th").getAttribute("aria-sort");
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


def look_at(browser: str, page: Path, profile: Path, width: int) -> dict[str, Any]:
    """Open a copy of the page that watches itself, use it, and return what was seen."""
    text = page.read_text()
    watched = page.with_name("watched.html")
    watched.write_text(text.replace("<style>", WATCH + "<style>", 1).replace("</body>", LOOK + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=20000"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    done = subprocess.run(
        [*command, "--dump-dom", watched.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(unescape(found.group(1)))
    return seen


@pytest.mark.parametrize(
    ("width", "objectives"), [(1280, None), pytest.param(600, several(), marks=pytest.mark.slow)]
)
def test_a_browser_draws_every_chart_without_an_error_and_asks_nobody_for_anything(
    browser: str, tmp_path: Path, width: int, objectives: list[dict[str, str]] | None
) -> None:
    told = confirm(searched(), named=True)
    write_search_report(tmp_path / "search", space_of(objectives), told.state, command="a command")
    seen = look_at(browser, tmp_path / "search" / "report.html", tmp_path / "profile", width)
    assert "is better than the recipe’s own values" in seen["verdict"]
    assert seen["errors"] == []
    assert seen["blocked"] == []
    assert seen["resources"] == []
    assert seen["charts"] >= 10
    assert seen["empty"] == []
    assert seen["emptyAfter"] == 0
    assert seen["importance"]
    assert not seen["wide"]
    assert seen["ascending"] == [str(trial) for trial in range(27)]
    assert seen["descending"] == seen["ascending"][::-1]
    assert seen["sorted"] == "descending"
    assert seen["paper"] == "rgb(255, 255, 255)"
