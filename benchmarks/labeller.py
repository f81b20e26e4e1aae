"""What the report labeller gets right: on synthetic reports of known truth, and on Open-I's coded reports.

    python -m benchmarks.labeller [--data-root ../shared/data] [--out benchmarks/results/labeller.jsonl]

Prints one JSON line per finding and set, and the table of docs/labeller.md; with `--out` it writes the lines.
Sets: `phantom` (3,000 reports, as written), `phantom_decoded` (the same as a decoder of lower-case word
pieces writes them), `open_i_rest` (patients of the val and test splits, whose reports were not looked at
while the rules were written) and `open_i_train` (those that were). Open-I's truth are the MeSH terms its
indexers gave to each report; the terms of a finding stand in MESH.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.phantom.findings import LABELS
from mpma.data.phantom.generate import generate_text
from mpma.downstream.finding_rules import CHEST_NAMES, NO_FINDING, SUPPORT_DEVICES
from mpma.downstream.labeller import Labeller, labeller

FIGURES: Final = ()  # its lines are scores by finding, of a shape of their own
PHANTOM_REPORTS: Final = 3000
PHANTOM_SEED: Final = 11
DIGITS: Final = 4

MESH: Final = {
    "Atelectasis": r"Pulmonary Atelectasis",
    "Cardiomegaly": r"Cardiomegaly|Cardiac Shadow.*enlarged",
    "Consolidation": r"Consolidation",
    "Edema": r"Pulmonary Edema|Pulmonary Congestion|Heart Failure",
    "Enlarged Cardiomediastinum": r"Mediastinum(?!/lymph).*(?:enlarged|prominent)",
    "Fracture": r"Fractures, Bone",
    "Lung Lesion": r"Nodule|Mass\b|(?:Opacity|Density)/lung.*round",
    "Lung Opacity": r"Opacity|Infiltrate|Airspace Disease|Density|Markings/.*interstitial"
    r"|Lung Diseases, Interstitial",
    "Pleural Effusion": r"Pleural Effusion|Hydropneumothorax|Hemothorax|Hemopneumothorax",
    "Pleural Other": r"(?:Thickening|Cicatrix|Calcinosis).*pleura|Pleura/",
    "Pneumonia": r"Pneumonia",
    "Pneumothorax": r"Pneumothorax|Hydropneumothorax|Hemopneumothorax",
    SUPPORT_DEVICES: r"Catheters, Indwelling|Implanted Medical Device|Medical Device|Tube, Inserted|Stents",
}
"""Terms of each finding, from their beginning; `No Finding`: none of any finding but devices."""


def as_decoded(text: str) -> str:
    """The text as a decoder of lower-case word pieces writes it: `small left effusion . 4 . 5 cm`."""
    return re.sub(r"\s*([.,:;()\-])\s*", r" \1 ", text.lower()).strip()


def phantom_texts(count: int, seed: int) -> tuple[list[str], NDArray[np.bool_]]:
    """Reports of `count` synthetic pairs and their labels, bool [count, L]."""
    pairs = [generate_text(index, seed) for index in range(count)]
    truth = np.array([[name in pair.labels for name in LABELS] for pair in pairs], dtype=np.bool_)
    return [pair.report for pair in pairs], truth


def open_i_texts(file: Path, *, train: bool) -> tuple[list[str], NDArray[np.bool_]]:
    """Reports of one part of Open-I that were indexed and say something, and their findings, bool [n, 14]."""
    import pyarrow.parquet as pq

    columns = ["report", "findings", "impression", "labels", "split"]
    rows = [
        row
        for row in pq.read_table(file, columns=columns).to_pylist()
        if (row["split"] == "train") is train
        and (row["findings"] or row["impression"])
        and "No Indexing" not in row["labels"]
    ]
    patterns = {name: re.compile(pattern) for name, pattern in MESH.items()}
    truth = np.zeros((len(rows), len(CHEST_NAMES)), dtype=np.bool_)
    for column, name in enumerate(CHEST_NAMES):
        if name in patterns:
            truth[:, column] = [any(patterns[name].match(term) for term in row["labels"]) for row in rows]
    others = [i for i, name in enumerate(CHEST_NAMES) if name not in (NO_FINDING, SUPPORT_DEVICES)]
    truth[:, CHEST_NAMES.index(NO_FINDING)] = ~truth[:, others].any(axis=1)
    return [row["report"] for row in rows], truth


def measure(
    name: str, reader: Labeller, texts: Sequence[str], truth: NDArray[np.bool_]
) -> Iterator[dict[str, Any]]:
    """One line per finding, then micro and macro averages; F1 with doubt as positive and as negative."""
    started = time.process_time()
    found = reader.positives(texts)
    seconds = time.process_time() - started
    certain = reader.positives(texts, uncertain=False)
    columns = [(label, [column]) for column, label in enumerate(reader.names)]
    scores: list[tuple[float, float]] = []
    averages = [("micro", list(range(len(columns))))]
    if NO_FINDING in reader.names:  # it is most of what is positive, and would hide the others
        named = [column for label, chosen in columns for column in chosen if label != NO_FINDING]
        averages.append((f"micro without {NO_FINDING}", named))
    for label, chosen in [*columns, *averages]:
        (precision, recall, f1), (_, _, f1_certain) = (
            _scores(table[:, chosen], truth[:, chosen]) for table in (found, certain)
        )
        if len(chosen) == 1:
            scores.append((f1, f1_certain))
        yield {
            "benchmark": "labeller",
            "set": name,
            "finding": label,
            "positives": int(truth[:, chosen].sum()),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "f1_uncertain_negative": f1_certain,
        }
    macro, macro_certain = (round(float(np.mean(part)), DIGITS) for part in zip(*scores, strict=True))
    yield {
        "benchmark": "labeller",
        "set": name,
        "finding": "macro",
        "f1": macro,
        "f1_uncertain_negative": macro_certain,
        "reports": len(texts),
        "seconds_per_1000_reports": round(1000 * seconds / len(texts), 2),
    }


def _scores(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float, float]:
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(truth.ravel(), found.ravel(), average="binary", zero_division=0)
    precision, recall, f1 = (round(float(value), DIGITS) for value in values[:3])
    return precision, recall, f1


def measure_phantom() -> Iterator[dict[str, Any]]:
    """Lines of both phantom sets."""
    texts, truth = phantom_texts(PHANTOM_REPORTS, PHANTOM_SEED)
    yield from measure("phantom", labeller("phantom"), texts, truth)
    decoded = [as_decoded(text) for text in texts]
    yield from measure("phantom_decoded", labeller("phantom"), decoded, truth)


def measure_open_i(data_root: Path) -> Iterator[dict[str, Any]]:
    """Lines of both parts of Open-I."""
    file = data_root / "text_only" / "openi_reports.parquet"
    for name, train in (("open_i_rest", False), ("open_i_train", True)):
        yield from measure(name, labeller("chest"), *open_i_texts(file, train=train))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The Markdown table of docs/labeller.md: the held-out part of Open-I, the other part's F1 beside it."""
    rows = ["| finding | reports with it | precision | recall | F1 | F1, uncertain = negative | F1, train |"]
    rows.append("|---|---|---|---|---|---|---|")
    others = {line["finding"]: line for line in lines if line["set"] == "open_i_train"}
    for line in lines:
        if line["set"] == "open_i_rest":
            cells = [line["finding"], line.get("positives", "")]
            cells += [f"{line[key]:.3f}" if key in line else "" for key in ("precision", "recall")]
            cells += [f"{line[key]:.3f}" for key in ("f1", "f1_uncertain_negative")]
            rows.append(f"| {' | '.join(map(str, [*cells, format(others[line['finding']]['f1'], '.3f')]))} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=None, help="also write the lines to this file")
    given = parser.parse_args()
    lines = list(measure_phantom())
    if (given.data_root / "text_only").is_dir():
        lines += measure_open_i(given.data_root)
    else:
        print(f"no Open-I reports under {given.data_root}: only the phantom's are measured")
    written = "".join(json.dumps(line) + "\n" for line in lines)
    print(written, end="")
    if given.out is not None:
        given.out.write_text(written)
    print(table(lines))


if __name__ == "__main__":
    main()
