"""The page of a dataset opened in a real browser, where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from watched_page import look_at

from mpma.data.dataset_writing import write_dataset
from mpma.data.images import encode_grey
from mpma.data.phantom.generate import generate_pair
from orchestration.reporting.example_pictures import grey_uri
from orchestration.reporting.quality_report import quality_report
from orchestration.reporting.quality_thumbnails import GroupShots, Shot, Thumbnails

USE = """
  const charts = [...document.querySelectorAll(".chart")];
  seen.charts = charts.map((one) => one.ariaLabel);
  seen.empty = charts.filter((one) => !one.querySelector(marks)).map((one) => one.ariaLabel);
  const pictures = [...document.querySelectorAll("img")];
  pictures.forEach((one) => { one.loading = "eager"; });
  while (!pictures.every((one) => one.complete)) await pause();
  seen.pictures = pictures.filter((one) => one.naturalWidth > 0).length;
"""


@pytest.mark.parametrize("width", [1280, pytest.param(600, marks=pytest.mark.slow)])
def test_a_browser_draws_every_chart_and_thumbnail_without_an_error_and_asks_nobody_for_anything(
    tmp_path: Path, width: int
) -> None:
    grey = [generate_pair(number, 1, 64).grey for number in range(24)]

    def row(number: int) -> dict[str, object]:
        pixels = grey[number % 24] if number < 20 else np.clip(grey[number % 24] // 2 + 120, 0, 255)
        data, wide, high = encode_grey(pixels.astype(np.uint8))
        return {
            "pair_id": f"{number}",
            "patient_id": f"p{number}",
            "study_id": f"s{number}",
            "image": data,
            "width": wide,
            "height": high,
            "view": "AP" if number % 3 or number >= 20 else "PA",
            "report": "word " * (number + 1),
            "findings": "",
            "impression": "",
            "labels": ["effusion"] * (number % 2) + ["opacity"] * (number % 3 == 0),
            "source": "a" if number < 20 else "b",
            "license": "",
        }

    made = write_dataset(
        tmp_path / "made", {"train": map(row, range(20)), "val": map(row, range(20, 26)), "test": [row(26)]}
    )
    reasons = {"too_small": 4, "empty_report": 17}
    quarantine = made.info.quarantine.model_copy(update={"rows": 21, "reasons": reasons})
    info = made.info.model_copy(update={"quarantine": quarantine, "synthetic": False})
    shots = [Shot(grey_uri(pixels), "64 × 64") for pixels in grey[:3]]
    thumbnails = Thumbnails({"too_small": shots}, [GroupShots(0, "across_splits", 9, shots)])
    seen = look_at(quality_report("made", info, thumbnails=thumbnails), USE, tmp_path, width)
    assert seen["verdict"].startswith("3 held-out pairs show a picture that is also in train.")
    assert seen["empty"] == []
    assert len(seen["charts"]) == 7
    assert seen["pictures"] == 6
