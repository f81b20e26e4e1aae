"""The listing as a page: what stands in it, where it leads, and what a browser makes of it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from overview_samples import begin_run, begin_search, report

from mpma.data.storage import open_storage
from mpma.errors import UserError
from orchestration.overview.entries import entries_of
from orchestration.reporting.listing_report import Listed, check_file, write_listing

sys.path.append(str(Path(__file__).resolve().parents[1] / "reporting"))
from watched_page import look_at

USE = """
  const table = document.querySelector("table.sortable");
  const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const names = () => shown().map((row) => row.cells[0].textContent);
  table.querySelectorAll("th button")[2].click();
  seen.bySteps = names();
  const input = document.querySelector("input.filter");
  input.value = "FINISHED";
  input.dispatchEvent(new Event("input"));
  seen.finished = names();
  input.value = "";
  input.dispatchEvent(new Event("input"));
  seen.all = names();
"""


def _page(folder: Path, file: Path) -> str:
    listed = [
        Listed(place, list(entries_of(place)))
        for place in (open_storage(folder / "runs"), open_storage(folder / "searches"))
    ]
    write_listing(str(file), listed)
    return file.read_text()


def _filled(folder: Path) -> Path:
    (begin_run(folder / "runs", "done") / "finished.json").write_text("{}")
    begin_run(folder / "runs", "early")
    (folder / "runs" / "early" / "metrics.jsonl").write_text('{"step": 2, "loss/total": 1.0}\n')
    (begin_run(folder / "runs", "broken") / "config.yaml").write_bytes(b"\xff: [")
    search = begin_search(folder / "searches" / "a #1 <search>")
    (search / "report.html").write_text("a page")
    begin_search(folder / "searches" / "bare", end=False)
    return folder


def test_the_page_tells_states_figures_and_hashes_and_leads_to_the_reports_there_are(tmp_path: Path) -> None:
    _filled(tmp_path)
    (tmp_path / "pages").mkdir()
    page = _page(tmp_path, tmp_path / "pages" / "overview.html")
    for words in (
        "3 runs and 2 searches",
        "0.400<small>step 4</small>",
        "config.yaml is not YAML",
        "8 of 12",
    ):
        assert words in page
    assert "a #1 &lt;search&gt;" in page
    assert "<search>" not in page
    links = re.findall(r'<a href="([^"#][^"]*)"', page)
    assert links == ["../searches/a%20%231%20%3Csearch%3E/report.html"]
    assert len(page) < 100_000, "no library of charts in a page without any"
    assert (tmp_path / "pages" / "overview.html").stat().st_mode & 0o077 == 0


def test_a_page_of_one_search_leads_to_its_own_report(tmp_path: Path) -> None:
    search = begin_search(tmp_path / "search")
    (search / "report.html").write_text("a page")
    place = open_storage(search)
    write_listing(str(tmp_path / "one.html"), [Listed(place, list(entries_of(place)))])
    assert 'href="search/report.html"' in (tmp_path / "one.html").read_text()


@pytest.mark.parametrize("width", [1280, 600])
def test_a_browser_sorts_and_filters_and_asks_nobody_for_anything(tmp_path: Path, width: int) -> None:
    page = _page(_filled(tmp_path), tmp_path / "overview.html")
    seen = look_at(page, USE, tmp_path, width)
    assert seen["resources"] == []
    assert seen["bySteps"] == ["broken", "early", "done"]
    assert seen["finished"] == ["done"]
    assert seen["all"] == seen["bySteps"]


def test_a_file_that_cannot_be_the_page_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for file, words in (
        (tmp_path / "recipe.yaml", "ends with .html"),
        (tmp_path / "folder.html", "is a folder"),
        (tmp_path / "absent" / "page.html", "no folder"),
    ):
        with pytest.raises(UserError, match=words):
            check_file(str(file))


def test_the_program_writes_the_page_beside_the_lines_for_machines(tmp_path: Path) -> None:
    _filled(tmp_path)
    shutil.rmtree(tmp_path / "searches")
    code, said = report(tmp_path, "--html", "overview.html")
    assert code == 0
    assert said == "page: overview.html\n"
    assert "3 runs and 0 searches" in (tmp_path / "overview.html").read_text()
