"""Small archives and datasets that are joined, and how a dataset is read whole; for several test modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import QUARANTINE_FILE
from mpma.data.hashing import keyed_hash
from mpma.data.images import encode_grey
from mpma.data.ingest_plan import IngestOptions
from mpma.data.joining import join
from mpma.data.pairs import SPLITS
from mpma.data.sources.contract import Item, Rejection
from orchestration import ingesting
from orchestration.growing import prepare_joined
from orchestration.ingesting import PreparedIngest, carry_out, prepare

KEY = b"k" * 32

LOSSLESS = IngestOptions(image_format="png")
"""So that the grey levels that are counted are those that are read again."""


def png(number: int) -> bytes:
    """A small picture, another one for every number."""
    lines, columns = np.mgrid[0:80, 0:96]
    pixels = ((lines * (3 + number % 5) + columns * 2 + 17 * number) % 256).astype(np.uint8)
    return encode_grey(pixels, None, image_format="png")[0]


@dataclass
class Archive:
    """A source that lists what a test gives it; every image but those named as missing can be loaded."""

    entries: list[Item | Rejection]
    fields: tuple[pa.Field, ...] = ()
    name: str = "archive"
    reports_expected: bool = True
    missing: frozenset[str] = frozenset()
    images: Mapping[str, bytes] = field(default_factory=dict)

    def assumptions(self) -> list[str]:
        return []

    def items(self) -> list[Item | Rejection]:
        return self.entries

    def extra_schema(self) -> pa.Schema:
        return pa.schema(self.fields)

    def load_image(self, item: Item) -> bytes:
        if item.path in self.missing:
            raise FileNotFoundError
        return self.images.get(item.path) or png(int(item.path.split(".")[0]))

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}


def item(number: int, **changes: Any) -> Item:
    """Two images a patient, one study each."""
    plain = Item(
        pair_id=f"image-{number}",
        patient_id=f"MRN-{number // 2}",
        study_id=f"ACC-{number}",
        report=f"FINDINGS: Heart is normal, number {number}. IMPRESSION: Clear.",
        path=f"{number}.png",
        labels=("Edema",) if number % 3 else (),
        license="CC0",
    )
    return replace(plain, **changes)


def patient(number: int) -> str:
    """The hash of the patient of `item(number)`."""
    return keyed_hash(KEY, "patient", f"MRN-{number // 2}")


def ingested(
    out: Path,
    entries: Iterable[Item | Rejection],
    key: bytes = KEY,
    options: IngestOptions | None = None,
    **more: Any,
) -> Dataset:
    """A dataset of an archive that lists these entries, made in this process."""
    source = Archive(list(entries), **more)
    return made_here(prepare(source, str(out), key=key, options=options or LOSSLESS))


def made_here(prepared: PreparedIngest) -> Dataset:
    """The dataset of a prepared ingest, made in this process whatever Ray is running."""
    with patch.object(ingesting, "_on_ray", ingesting._here):
        return carry_out(prepared).dataset


def rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Every pair by its id, with its split."""
    return {
        row["pair_id"]: row | {"split": split}
        for split in SPLITS
        for row in dataset.read_rows(split, range(dataset.rows(split))).to_pylist()
    }


def quarantine(dataset: Dataset) -> list[tuple[str, str, str]]:
    """(pair_id, reason, detail) of everything that was refused, sorted."""
    table = pq.read_table(Path(dataset.path) / QUARANTINE_FILE).to_pylist()
    return sorted((row["pair_id"], row["reason"], row["detail"]) for row in table)


def files(place: Path) -> dict[str, bytes]:
    """Content of every file below a directory."""
    return {
        file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()
    }


def appended(old: Dataset, archive: Archive, out: Path, key: bytes = KEY, **options: Any) -> Dataset:
    keep = options.pop("keep_tokenizer", False)
    joined = join([old], archive, key=key, keep_tokenizer=keep)
    wanted = IngestOptions(image_format="png", **options)
    return made_here(prepare_joined(joined, str(out), key=key, options=wanted))


def merged(out: Path, *datasets: Dataset, **options: Any) -> Dataset:
    return made_here(prepare_joined(join(datasets, **options), str(out), key=None))


def old_dataset(place: Path) -> Dataset:
    """200 pairs of 100 patients, drawn by patient, and three that were refused."""
    entries = [
        *map(item, range(200)),
        item(500, report=""),
        item(501),
        Rejection("x.png", "x", "missing_image"),
    ]
    age = pa.field("age", pa.int64())
    return ingested(place, entries, fields=(age,), missing=frozenset({"501.png"}), name="hospital")


def table(folder: Path, numbers: range, source: str) -> Path:
    """A manifest of pictures by path, two of each patient."""
    folder.mkdir(parents=True)
    lines = ["id,patient_id,path,report,source"]
    for number in numbers:
        (folder / f"{number}.png").write_bytes(png(number))
        lines.append(f"{number},{number // 2},{number}.png,Heart is normal number {number}.,{source}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"
