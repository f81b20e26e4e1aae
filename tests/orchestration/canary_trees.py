"""Archives whose names, ids and reports are canaries, each with rows and files of every bad kind."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from canaries import FRONT, IDS, NAMES, WORDS
from PIL.PngImagePlugin import PngInfo

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from samples_dicom import DicomStudy, dicom_file, write_dicom
from source_samples import encoded, grey_pixels

LABELS = ("effusion", "nodule", "No Finding")
SPLITS = ("train",) * 50 + ("val",) * 18 + ("test",) * 12
"""Of 80 patients with two pairs each; the first forty of these patients are canaries."""


@dataclass(frozen=True)
class Tree:
    """An archive that was planted."""

    source: str
    root: Path
    pairs: int
    reasons: frozenset[str]
    """Reasons for which rows must end in its quarantine."""
    allowed: tuple[str, ...]
    """Places in its dataset in which a canary may stand, relative to the dataset's folder."""


TEXT_COLUMNS = tuple(f"*.parquet!{name}" for name in ("report", "findings", "impression"))
QUARANTINE = ("quarantine.parquet!path", "quarantine.parquet!pair_id")


def patient_of(place: int) -> str:
    return IDS[place] if place < len(IDS) else f"P{place:03d}"


def report_of(place: int) -> str:
    """A report that names its patient twice, so that frequency alone would make an entry of the name."""
    heart = ("normal", "enlarged", "not enlarged")[place % 3]
    name = NAMES[place] if place < len(NAMES) else "the patient"
    word = WORDS[place] if place < len(WORDS) else "opacity"
    return (
        f"FINDINGS: {name} was seen. The heart is {heart}, the lungs are clear, no {word}, no {word}.\n"
        f"IMPRESSION: {name} is well, heart {heart}."
    )


def marked_pixels(seed: int, height: int = 72, width: int = 80) -> np.ndarray:
    """A picture with the mark of all canaries as the grey values of its first row."""
    pixels = grey_pixels(seed, height, width)
    row = (FRONT.encode() * width)[:width]
    pixels[0] = np.frombuffer(row, np.uint8)
    return pixels


def manifest_tree(root: Path) -> Tree:
    """A table of paths with PNG files whose metadata name the patient."""
    (root / "images").mkdir(parents=True)
    head = ["pair_id", "patient_id", "path", "report", "split", "labels"]
    rows = []

    def image(name: str, data: bytes) -> str:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"images/{name}"

    for place, split in enumerate(SPLITS):
        for number in range(2):
            text = PngInfo()
            text.add_text("PatientName", NAMES[place % len(NAMES)], zip=bool(number))
            picture = encoded(marked_pixels(2 * place + number), pnginfo=text)
            file = image(f"{NAMES[place % len(NAMES)]}/{place}-{number}.png", picture)
            pair = f"{patient_of(place)}-{number}"
            rows.append([pair, patient_of(place), file, report_of(place), split, LABELS[place % 3]])
    name, word = NAMES[7], WORDS[7]
    good, text = image(f"{name}-good.png", encoded(grey_pixels(400))), report_of(7)
    whole = encoded(grey_pixels(401))
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 9\n"
    files = {
        "missing_image": f"images/{name}-gone.png",
        "truncated_image": image(f"{name}-cut.png", whole[: len(whole) // 2]),
        "empty_file": image(f"{name}-empty.png", b""),
        "not_an_image": image(f"{name}-text.png", f"report of {name}: {word}".encode() * 9),
        "git_lfs_pointer": image(f"{name}-pointer.png", pointer.encode()),
        "html_page": image(f"{name}-page.png", f"<!DOCTYPE html><html>{name}</html>".encode()),
        "constant_image": image(f"{name}-flat.png", encoded(np.full((80, 80), 7, np.uint8))),
        "too_small": image(f"{name}-small.png", encoded(grey_pixels(3, 20, 20))),
        "outside_root": f"../{name}.png",
    }
    bad = [[f"{name}-{reason}", IDS[0], file, text, "train", ""] for reason, file in files.items()]
    bad += [
        [f"{name}-empty", IDS[0], good, "NaN", "train", ""],
        [f"{name}-nothing", IDS[0], good, f"INDICATION: {word}", "train", ""],
        [f"{name}-long", IDS[0], good, f"FINDINGS: {word} " * 4000, "train", ""],
        [f"{IDS[0]}-0", IDS[0], good, text, "train", ""],
        [f"{name}-nobody", "", good, text, "train", ""],
        [f"{name}-nowhere", IDS[0], good, text, word, ""],
        [f"{name}-cells", IDS[0], good, text, "train", "", word, name],
        [f"{name}-one", f"{name}-torn", good, text, "train", ""],
        [f"{name}-other", f"{name}-torn", good, text, "test", ""],
    ]
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([head, *rows, *bad])
    reasons = {*files, "empty_report", "nothing_described", "too_long_report", "duplicate_id"}
    reasons |= {"missing_patient", "unknown_split", "unreadable_row", "patient_in_two_splits"}
    ids = ("*/*.parquet!pair_id", "near_duplicates.parquet!pair_id")
    return Tree("manifest", root, len(rows), frozenset(reasons), (*TEXT_COLUMNS, *QUARANTINE, *ids))


def dicom_tree(root: Path) -> Tree:
    """A hospital's folder: names in headers, in private elements, in folders' names and in reports."""
    studies = [
        DicomStudy(
            patient_of(place),
            place + 1,
            report_of(place),
            tags={"AccessionNumber": IDS[place] if place < len(IDS) else f"ACC{place:05d}"},
        )
        for place in range(len(SPLITS))
    ]
    columns = [("split", SPLITS), ("labels", [LABELS[place % 3] for place in range(len(SPLITS))])]
    write_dicom(root, studies, names=NAMES, private=WORDS, columns=columns)
    for place, folder in enumerate(sorted(root.glob("PAT*"))):
        folder.rename(root / f"{NAMES[place % len(NAMES)]}-{place}")
    bad = root / f"{NAMES[3]}-bad"
    bad.mkdir()
    tags = {"PatientID": IDS[3], "PatientName": NAMES[3], "AccessionNumber": IDS[3]}
    whole = dicom_file(grey_pixels(500), **tags, SOPInstanceUID="1.2.3.1")
    (bad / f"{NAMES[3]}.dcm").write_bytes(whole[:-900])
    (bad / f"{WORDS[3]}.dcm").write_bytes(f"no DICOM, but {NAMES[3]}".encode() * 30)
    unread = {**tags, "AccessionNumber": f"{IDS[4]}"[:-1], "SOPInstanceUID": "1.2.3.2"}
    (bad / "unread.dcm").write_bytes(dicom_file(grey_pixels(501), **unread))
    burned = {**tags, "BurnedInAnnotation": "YES", "SOPInstanceUID": "1.2.3.3"}
    (bad / "burned.dcm").write_bytes(dicom_file(grey_pixels(502), **burned))
    # Pair ids are hashed here, so that only the reports' own columns and the quarantine may tell.
    return Tree("dicom", root, 2 * len(SPLITS), frozenset(), (*TEXT_COLUMNS, *QUARANTINE))
