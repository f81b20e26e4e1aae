"""The report of an evaluation opened in a real browser, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_samples import examples, whole
from watched_page import look_at

from orchestration.reporting.evaluation_report import evaluation_report

USE = """
  const charts = [...document.querySelectorAll(".chart")];
  seen.charts = charts.length;
  seen.empty = charts.filter((one) => !one.querySelector(marks)).map((one) => one.ariaLabel);
  const pictures = [...document.querySelectorAll("img")];
  pictures.forEach((one) => { one.loading = "eager"; });
  while (!pictures.every((one) => one.complete)) await pause();
  seen.pictures = pictures.filter((one) => one.naturalWidth > 0).length;
  const all = document.querySelector("#classification details");
  seen.folded = all.querySelector("table").offsetParent === null || !all.open;
  all.querySelector("summary").click();
  await pause();
  seen.unfolded = all.open;
"""


@pytest.mark.parametrize("width", [1280, pytest.param(600, marks=pytest.mark.slow)])
def test_a_browser_draws_every_chart_and_picture_without_an_error_and_asks_nobody_for_anything(
    tmp_path: Path, width: int
) -> None:
    told = whole()
    shown = examples()
    seen = look_at(evaluation_report(told.summary, told.of, shown), USE, tmp_path, width)
    assert seen["verdict"] == "The pre-trained model is better than the untrained one on 3 of 4 tasks."
    assert seen["charts"] >= 15
    assert seen["empty"] == []
    assert seen["pictures"] == 13
    assert seen["folded"]
    assert seen["unfolded"]
