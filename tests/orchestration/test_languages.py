"""Reports in any language and script come out of an ingest byte for byte as they went in."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.images import encode_grey
from mpma.data.pairs import SPLITS, model_text
from mpma.data.sources import build_source
from orchestration.ingesting import carry_out, prepare

REPORTS = {
    "Spanish": "silueta cardíaca normal . niño con engrosamiento peribronquial , sin derrame .",
    "Spanish with headings": "HALLAZGOS: Sin infiltrados.\nIMPRESIÓN: Tórax normal.",
    "German": "Befund: Kein Pleuraerguß, Herz nicht vergrößert.\nBeurteilung: Unauffälliger Thorax.",
    "German in capitals": "HERZGRÖSSE UND LUNGENGEFÄSSE REGELRECHT.",
    "French": "Cœur de taille normale, pas d’épanchement.",
    "Polish": "Płuca bez zagęszczeń, przepona gładka, kąty żebrowo-przeponowe wolne.",
    "Turkish": "KALP İRİLİĞİ YOK, ıslak gölge izlenmedi.",
    "Vietnamese": "Phổi không thấy tổn thương; bóng tim không to.",
    "decomposed": unicodedata.normalize("NFD", "Größe und Öffnung, épanchement, niño."),
    "Greek": "Οι πνεύμονες είναι καθαροί.",
    "Russian": "Лёгочные поля чистые. Заключение: норма.",
    "Arabic": "الرئتان صافيتان، وحجم القلب طبيعي\N{ARABIC QUESTION MARK}",
    "Hebrew with marks of direction": "\N{RIGHT-TO-LEFT MARK}הריאות נקיות (AP).",
    "Hindi": "फेफड़े साफ हैं। हृदय का आकार सामान्य है।",
    "Thai": "ปอดทั้งสองข้างปกติ",
    "Chinese": "双肺纹理清晰，心影不大。\n印象：未见异常。",
    "Japanese": "肺野に異常影なし。心胸郭比４８％。",
    "Korean": "양측 폐야는 깨끗하다.",
    "beyond the first plane": "Clear 𝑛 = 2 🫁.",
    "lost before": "Tama\N{REPLACEMENT CHARACTER}o card\N{REPLACEMENT CHARACTER}aco normal.",
}


def dataset(source: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return carry_out(prepare(source, str(out), key=PUBLIC_KEY)).dataset


def images(folder: Path, count: int) -> list[bytes]:
    draws = np.random.default_rng(0)
    made = [encode_grey(draws.integers(0, 255, (70, 80), dtype=np.uint8))[0] for _ in range(count)]
    for number, content in enumerate(made):
        (folder / f"{number}.jpg").write_bytes(content)
    return made


def table(folder: Path, kind: str) -> Path:
    made = images(folder, len(REPORTS))
    rows = [(name, name, f"{number}.jpg", text) for number, (name, text) in enumerate(REPORTS.items())]
    if kind == "parquet":
        columns = [*zip(*rows, strict=True), made]
        names = ["id", "patient_id", "path", "report", "image"]
        place = folder / "pairs.parquet"
        pq.write_table(pa.table([pa.array(column) for column in columns], names), place)
        return place
    place = folder / "pairs.csv"
    with place.open("w", encoding="utf-8-sig" if kind == "csv with a mark" else "utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "patient_id", "path", "report"), *rows])
    return place


@pytest.mark.parametrize("kind", ["csv", "csv with a mark", "parquet"])
def test_reports_of_every_script_are_stored_byte_for_byte(kind, tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    source = build_source("manifest", table(tmp_path / "root", kind), ["splits=ignore"])
    made = dataset(source, tmp_path / "made", monkeypatch)
    rows = [row for split in SPLITS for row in made.read_rows(split, range(made.rows(split))).to_pylist()]
    assert {row["pair_id"]: row["report"].encode() for row in rows} == {
        name: text.encode() for name, text in REPORTS.items()
    }
    read = {row["pair_id"]: model_text(row["report"], row["findings"], row["impression"]) for row in rows}
    assert read == REPORTS
    assert made.info.quality is not None
    assert made.info.quality.reports is not None
    assert made.info.quality.reports.groups == 0


def test_another_encoding_becomes_utf_8(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    images(tmp_path / "root", 2)
    text = "Herz nicht vergrößert, kein Erguß."
    lines = f'id,patient_id,path,report\na,a,0.jpg,"{text}"\nb,b,1.jpg,niño: tórax normal\n'
    (tmp_path / "root" / "pairs.csv").write_bytes(lines.encode("latin-1"))
    source = build_source("manifest", tmp_path / "root" / "pairs.csv", ["encoding=latin-1"])
    made = dataset(source, tmp_path / "made", monkeypatch)
    found = [
        row["report"]
        for split in SPLITS
        for row in made.read_rows(split, range(made.rows(split))).to_pylist()
    ]
    assert sorted(found) == [text, "niño: tórax normal"]
