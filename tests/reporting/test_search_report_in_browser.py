"""The report of a search opened in a real browser, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from search_samples import confirm, searched, several, space_of
from watched_page import look_at

from orchestration.reporting.search_report import write_search_report

USE = """
  const visible = (all) => [...all].filter((one) => one.offsetParent !== null);
  const charts = () => visible(document.querySelectorAll(".chart"));
  seen.charts = charts().length;
  seen.empty = charts().filter((one) => !one.querySelector(marks)).map((one) => one.ariaLabel);
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
"""


@pytest.mark.parametrize(
    ("width", "objectives"), [(1280, None), pytest.param(600, several(), marks=pytest.mark.slow)]
)
def test_a_browser_draws_every_chart_without_an_error_and_asks_nobody_for_anything(
    tmp_path: Path, width: int, objectives: list[dict[str, str]] | None
) -> None:
    told = confirm(searched(), named=True)
    write_search_report(tmp_path / "search", space_of(objectives), told.state, command="a command")
    seen = look_at((tmp_path / "search" / "report.html").read_text(), USE, tmp_path, width)
    assert "is better than the recipe’s own values" in seen["verdict"]
    assert seen["resources"] == []
    assert seen["charts"] >= 10
    assert seen["empty"] == []
    assert seen["emptyAfter"] == 0
    assert seen["importance"]
    assert seen["ascending"] == [str(trial) for trial in range(27)]
    assert seen["descending"] == seen["ascending"][::-1]
    assert seen["sorted"] == "descending"
