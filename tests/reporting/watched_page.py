"""A page opened in a real browser that watches itself; for the reports' tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WATCH = """<script>
const seen = { errors: [], blocked: [] };
const pause = () => new Promise((done) => setTimeout(done, 50));
const marks = ".scatterlayer .trace, .barlayer .trace";
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => seen.blocked.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...told) => seen.errors.push(told.join(" "));
</script>"""

LOOK = """<script>
(async () => {
  while (document.body.dataset.drawn === undefined) await pause();
  seen.verdict = document.querySelector("h1").innerText;
  seen.resources = performance.getEntriesByType("resource").map((one) => one.name);
  seen.fetched = seen.resources.filter((one) => !one.startsWith("data:"));
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  USE
  dispatchEvent(new Event("beforeprint"));
  await pause();
  seen.paper = getComputedStyle(document.body).backgroundColor;
  const told = document.createElement("pre");
  told.id = "seen";
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
})();
</script>"""


def browser() -> str:
    """The browser that is installed; the test is skipped where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("no browser is installed here (apt-get install chromium)")


def look_at(page: str, use: str, folder: Path, width: int) -> dict[str, Any]:
    """Open a page, use it by a script that notes in `seen` what it finds, and return what was seen."""
    watched = folder / "watched.html"
    look = LOOK.replace("USE", use)
    watched.write_text(page.replace("<style>", WATCH + "<style>", 1).replace("</body>", look + "</body>"))
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    # The browser's clock runs ahead whenever the page waits for nothing but a timer or a promise, so a page's
    # script must wait by `pause`; the budget leaves room for a busy machine, and unused it costs nothing.
    command += ["--virtual-time-budget=200000", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--dump-dom", watched.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(unescape(found.group(1)))
    assert seen["errors"] == []
    assert seen["blocked"] == []
    assert seen["fetched"] == []
    assert not seen["wide"]
    assert seen["paper"] == "rgb(255, 255, 255)"
    return seen
