"""The page of a dataset: what it says, what it must not hold, and pictures on request alone."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import DatasetInfo
from mpma.data.dataset_writing import write_dataset
from mpma.data.phantom.generate import generate_pair
from mpma.data.quality import REASONS, QualityConfig
from mpma.data.quality_info import QualityInfo
from orchestration import ingest_command
from orchestration.quality_page import quality_lines, quality_values, write_quality_page
from orchestration.reporting.quality_report import CONFIDENTIAL, headline, lead, quality_report
from orchestration.reporting.quality_thumbnails import Shot, Thumbnails
from orchestration.reporting.quality_wording import REMEDIES, strength

SECRETS = ("secret-id", "Somebody", "hidden words", "folder-of-a-name")
ATTACK = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def jpeg(pixels: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if size is None else image.resize(size)).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in which pictures cross splits, reports repeat, test differs and some rows are refused."""
    root = tmp_path_factory.mktemp("archive")
    pictures = root / "folder-of-a-name"
    pictures.mkdir()
    rows: list[list[str]] = []

    def add(name: str, content: bytes, split: str, report: str, patient: str | None = None) -> None:
        (pictures / f"{name}.jpg").write_bytes(content)
        who = patient or f"Somebody {name}"
        path = f"folder-of-a-name/{name}.jpg"
        rows.append([f"secret-id-{name}", who, path, report, split, "AP" if split == "test" else "PA", "x"])

    grey = [generate_pair(number, 2, 96).grey for number in range(60)]
    for number in range(60):
        split = "train" if number < 40 else "val" if number < 48 else "test"
        shown = grey[number] if split != "test" else np.clip(grey[number] // 2 + 120, 0, 255).astype(np.uint8)
        report = (
            f"Report {number} with hidden words." if split != "test" else f"Report {number} " + "word " * 40
        )
        add(f"{number}", jpeg(shown), split, report)
    add("again", jpeg(grey[3], (80, 80)), "test", "A copy of a picture.")
    add("valagain", jpeg(grey[4]), "val", "Normal chest!")
    add("same", jpeg(grey[5]), "train", "normal chest")
    for number in range(9):
        add(f"small{number}", jpeg(grey[number], (40, 50)), "train", "Too small, hidden words.")
    for number in range(2):
        add(f"silent{number}", jpeg(grey[number]), "train", "")
    add("torn", jpeg(grey[0])[:700], "train", "Torn, hidden words.")
    rows.append(["secret-id-none", "Somebody", "folder-of-a-name/none.jpg", "Not there.", "train", "PA", ""])
    with (root / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "patient_id", "path", "report", "split", "view", "labels"])
        writer.writerows(rows)
    return root


def request(root: Path, out: Path, **changes: Any) -> ingest_command.Request:
    values: dict[str, Any] = {
        "source": "manifest",
        "root": str(root),
        "roots": (str(root),),
        "out": str(out),
        "overrides": [],
        "row_filter": None,
        "split": "0.8/0.1/0.1",
        "split_seed": 0,
        "key_file": str(out.parent / "key"),
        "short_side": 512,
        "image_format": "jpeg",
        "jpeg_quality": 95,
        "min_words": None,
        "min_side": None,
        "vocabulary_size": 30_000,
        "max_tokens": 128,
        "overwrite": False,
        "check": False,
        "as_json": False,
        "address": None,
        "cpus": None,
    }
    return ingest_command.Request(**(values | changes))


@pytest.fixture(scope="module")
def ingested(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The archive ingested in this process, with its page."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        out = tmp_path_factory.mktemp("datasets") / "mixed"
        ingest_command.execute(request(archive, out))
        yield out


def without_ray(patch: pytest.MonkeyPatch) -> None:
    import contextlib

    import ray

    from orchestration import cluster

    patch.setattr(ray, "is_initialized", lambda: False)
    patch.setattr(cluster, "connected", lambda *given, **named: contextlib.nullcontext())


def words(page: str) -> str:
    """What a person reads."""
    body = re.sub(r"<(script|style).*?</\1>", "", page.rpartition("<body>")[2], flags=re.S)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def own(page: str) -> str:
    """The page without plotly.js."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def info_of(out: Path) -> DatasetInfo:
    return Dataset.open(out).info


def quality_of(out: Path) -> QualityInfo:
    found = info_of(out).quality
    assert found is not None
    return found


def test_the_page_stands_in_the_directory_for_its_owner_alone_and_the_dataset_is_the_same(ingested):
    page = ingested / "quality.html"
    assert page.stat().st_mode & 0o777 == 0o600
    before = info_of(ingested)
    content = page.read_bytes()
    page.unlink()
    assert Dataset.open(ingested).info == before
    Dataset.open(ingested).verify()
    assert b"quality.html" not in (ingested / "dataset.json").read_bytes()
    page.write_bytes(content)
    page.chmod(0o600)


def test_counts_reasons_and_what_to_do_are_told(ingested):
    told = words((ingested / "quality.html").read_text())
    assert "2 held-out pairs show a picture that is also in train." in told
    assert "63 pairs of 63 patients are kept; 13 candidates were refused, 9 of them as too_small." in told
    assert "1 held-out report reads like one of train." in told
    for reason, count in {
        "too_small": 9,
        "empty_report": 2,
        "truncated_image": 1,
        "missing_image": 1,
    }.items():
        meaning = f"{REASONS[reason][:1].upper()}{REASONS[reason][1:]}."
        share = f"{100 * count / 76:.2g} %"
        assert f"{reason} {count} {share} {meaning} {REMEDIES[reason]}" in told
    assert "the same picture 3 6 0 3 2 1 1" in told
    assert "the same report 1 2 0 1 1 1 0" in told
    assert "quality.min_side_pixels=64" in told
    assert info_of(ingested).fingerprint in told


def test_what_differs_is_drawn_and_listed(ingested):
    page = (ingested / "quality.html").read_text()
    told = words(page)
    quality = quality_of(ingested)
    marked = [one for one in quality.drift if one.marked]
    assert {one.split for one in marked} == {"test"}
    assert {"grey_mean", "report_words", "view"} <= {one.characteristic for one in marked}
    assert f"{len(marked)} differences are above 0.2 and beyond chance" in told
    assert "test view AP 0 % 100 % +3.14 large" in told
    figures = [
        json.loads(one)
        for one in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    ]
    histogram = quality.histograms["report_words"]
    (place,) = (
        place
        for place, figure in enumerate(figures)
        if "<b>words of the report</b>" in json.dumps(figure["layout"])
    )
    drawn = {trace["text"][0].split(",")[0]: trace for trace in figures[place]["data"]}
    assert set(drawn) == {"train", "val", "test"}
    for split, trace in drawn.items():
        shares = 100 * np.array(histogram.counts[split]) / sum(histogram.counts[split])
        assert trace["y"][:-1] == pytest.approx(shares)
        assert trace["x"][: len(shares)] == histogram.edges


def test_neither_the_page_nor_the_terminal_names_anybody_and_no_picture_is_shown_unasked(
    archive, ingested, capsys, monkeypatch, tmp_path
):
    page = (ingested / "quality.html").read_text()
    assert not any(secret in page for secret in SECRETS)
    assert "<img" not in own(page)
    assert "data:image" not in own(page)
    assert CONFIDENTIAL not in words(page)
    assert "Counts only: no picture, no text and no identifier." in words(page)
    assert not re.search(r"https?://", own(page))
    without_ray(monkeypatch)
    key = str(ingested.parent / "key")
    ingest_command.execute(request(archive, tmp_path / "mixed", key_file=key))
    shown = capsys.readouterr()
    assert not any(secret in shown.out + shown.err for secret in SECRETS)
    assert (
        "one picture under several patients: 3 groups, 2 across splits; also in train: 1 of val, 1 of test\n"
        "one report in several splits: 1 group; also in train: 1 of val\n"
    ) in shown.out
    assert re.search(
        r"\ndrift: \d+ differences to train above 0\.2 and beyond chance, the largest in \w", shown.out
    )
    assert f"quality: {tmp_path / 'mixed' / 'quality.html'}" in shown.out
    assert info_of(tmp_path / "mixed").quality == quality_of(ingested)
    assert (tmp_path / "mixed" / "quality.html").read_text() == page


def test_thumbnails_stand_there_on_request_and_the_page_says_what_it_holds(
    archive, tmp_path, monkeypatch, capsys
):
    without_ray(monkeypatch)
    out = tmp_path / "mixed"
    ingest_command.execute(request(archive, out, with_thumbnails=True, as_json=True))
    page = (out / "quality.html").read_text()
    assert words(page).strip().startswith(CONFIDENTIAL)
    assert not any(secret in page for secret in SECRETS)
    refused, repeats = (
        re.search(rf'<section id="{name}">.*?</section>', page, re.S).group(0)  # type: ignore[union-attr]
        for name in ("refused", "repeats")
    )
    # Six of nine that are too small, both without a report; the torn and the missing one have no pixels.
    assert refused.count("<img") == 6 + 2
    assert "40 x 50, the least side is 64" in refused
    assert repeats.count("<img") == 3 * 2
    assert re.findall(r"group \d+ · [^<]*", repeats) == [
        "group 0 · in several splits",
        "group 1 · in several splits",
        "group 2 · several patients, one split",
    ]
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", repeats)
    assert captions[:2] == ["train, patient 1", "test, patient 2"]
    numbers = pq.read_table(out / "near_duplicates.parquet", filters=[("kind", "==", "picture")])["group"]
    assert set(numbers.to_pylist()) == {0, 1, 2}
    told = json.loads(capsys.readouterr().out)
    assert told["quality"]["pictures"]["held_out"] == {"val": 1, "test": 1}


def test_thresholds_are_those_that_were_asked_for(archive, tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    out = tmp_path / "mixed"
    asked = ["quality.drift_effect=5", "quality.min_side_pixels=30"]
    ingest_command.execute(request(archive, out, overrides=asked))
    assert "too_small" not in info_of(out).quarantine.reasons
    assert quality_of(out).drift_effect == 5
    told = words((out / "quality.html").read_text())
    assert "quality.min_side_pixels=30" in told
    assert "No difference is above the threshold and beyond chance." in told
    assert "drift:" not in capsys.readouterr().out


def rows_of(numbers: range, split: str) -> list[dict[str, Any]]:
    return [
        {
            "pair_id": f"{number}",
            "patient_id": f"p{number}",
            "study_id": f"s{number}",
            "image": jpeg(generate_pair(number, 4, 64).grey),
            "width": 64,
            "height": 64,
            "view": "PA",
            "report": f"Report {number}.",
            "findings": "",
            "impression": "",
            "labels": [ATTACK],
            "source": ATTACK,
            "license": ATTACK,
        }
        for number in numbers
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place = tmp_path_factory.mktemp("plain") / "plain"
    return write_dataset(place, {"train": rows_of(range(8), "train"), "val": rows_of(range(8, 12), "val")})


def test_words_of_the_archive_never_become_markup(plain):
    page = quality_report("plain", plain.info)
    assert ATTACK not in page
    assert "<img" not in own(page)


def test_a_dataset_without_defects_says_so(plain):
    told = words(quality_report("plain", plain.info))
    assert (
        headline(plain.info)
        == "No picture crosses the splits, and no difference between them is beyond chance."
    )
    assert lead(plain.info) == "12 pairs of 12 patients are kept."
    assert "Nothing was refused: every candidate is kept." in told
    assert "SYNTHETIC" in told
    values = quality_values(plain.info)
    assert quality_lines(values, "out") == ["quality: out/quality.html"]


def test_synthetic_pictures_need_no_warning(plain):
    shots = Thumbnails({"too_small": [Shot("data:image/png;base64,AA==", "1 x 1")]})
    assert CONFIDENTIAL not in words(quality_report("plain", plain.info, thumbnails=shots))
    real = plain.info.model_copy(update={"synthetic": False})
    assert CONFIDENTIAL in words(quality_report("plain", real, thumbnails=shots))


def test_a_marker_from_before_gives_a_page_and_no_lines(plain):
    before = plain.info.model_copy(update={"quality": None})
    told = words(quality_report("plain", before))
    assert "Pictures and splits were not compared." in told
    assert "What stands twice" not in told
    assert quality_values(before) is None
    assert quality_lines(None, "out") == []


def test_one_split_alone_is_told_as_such(tmp_path):
    made = write_dataset(tmp_path / "made", {"train": rows_of(range(3), "train")})
    assert headline(made.info) == "All pairs are in train; there is no split to compare it with."
    told = words(quality_report("made", made.info))
    assert "There is no second split to compare." in told


def test_a_page_is_written_anew_over_an_old_one(plain):
    first = write_quality_page(plain, thresholds=QualityConfig())
    assert first.endswith("plain/quality.html")
    assert "quality.max_pixels=" in Path(first).read_text()
    write_quality_page(plain)
    assert "quality.max_pixels=" not in Path(first).read_text()
    assert not list(Path(plain.path).glob("*.unfinished"))


def test_every_reason_has_a_remedy():
    assert set(REMEDIES) == set(REASONS)


def test_effects_are_named_as_cohen_named_them():
    named = [strength(effect) for effect in (0.1, -0.2, 0.49, 0.5, -0.79, 0.8, 3.0)]
    assert named == ["slight", "small", "small", "medium", "medium", "large", "large"]
