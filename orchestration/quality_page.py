"""`quality.html` beside a finished dataset, and the lines that the terminal says of it.

Decisions: the page is written after the marker and is no part of the content, so that a dataset is the same
with it and without it. Pictures are read again, on this machine and only on request: a few refused candidates
of each reason from the archive itself, and near duplicates from the shards; what cannot be decoded is left
out, since that is why it was refused. What is said names counts, splits and columns, never a pair.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import QUALITY_PAGE
from mpma.data.dataset_info import DatasetInfo
from mpma.data.images import read_grey
from mpma.data.ingest_plan import PartPlan
from mpma.data.joining import ROW_OF_DATASET
from mpma.data.pairs import SPLITS
from mpma.data.quality import QualityConfig, image_problem
from mpma.data.sources.contract import Source
from orchestration.reporting.example_pictures import SMALL, grey_uri
from orchestration.reporting.quality_report import quality_report
from orchestration.reporting.quality_thumbnails import GroupShots, Shot, Thumbnails
from orchestration.reporting.quality_wording import CHARACTERISTICS, RELATIONS
from orchestration.reporting.wording import counted, signed

SHOTS_OF_A_REASON: Final = 6
GROUPS_SHOWN: Final = 12
SHOTS_OF_A_GROUP: Final = 4


def write_quality_page(
    dataset: Dataset,
    *,
    candidates: int | None = None,
    thresholds: QualityConfig | None = None,
    thumbnails: Thumbnails | None = None,
) -> str:
    """Write the page into the dataset's directory (mode 0600); its place.

    Raises `JobError` where it cannot be written.
    """
    told = None if thresholds is None else thresholds.model_dump()
    text = quality_report(
        dataset.storage.name, dataset.info, candidates=candidates, thresholds=told, thumbnails=thumbnails
    )
    dataset.storage.write(QUALITY_PAGE, text.encode())
    return dataset.storage.described(QUALITY_PAGE)


def thumbnails_of(dataset: Dataset, source: Source, parts: Sequence[PartPlan], max_pixels: int) -> Thumbnails:
    """Pictures of refused candidates and of near duplicates.

    Args:
        parts: of the plan that the dataset was made by.
        max_pixels: images that declare more are left out.
    """
    return Thumbnails(_refused_shots(dataset, source, parts, max_pixels), _group_shots(dataset))


def quality_values(info: DatasetInfo) -> dict[str, Any] | None:
    """What is known of the dataset as a whole, as plain values for the summary."""
    quality = info.quality
    if quality is None:
        return None
    return {
        "pictures": None if quality.pictures is None else quality.pictures.model_dump(),
        "reports": None if quality.reports is None else quality.reports.model_dump(),
        "drift": [
            one.model_dump(include={"characteristic", "split", "measure", "effect"})
            for one in quality.drift
            if one.marked
        ],
        "drift_effect": quality.drift_effect,
    }


def quality_lines(values: Mapping[str, Any] | None, out: str) -> list[str]:
    """At most one line each for pictures, reports and drift; the page where there is something to see."""
    if values is None:
        return []
    lines = []
    pictures, reports, drift = values["pictures"], values["reports"], values["drift"]
    if pictures is not None and pictures["across_patients"]:
        told = f"one picture under several patients: {counted(pictures['across_patients'], 'group')}"
        lines.append(f"{told}, {pictures['across_splits']} across splits{_held_out(pictures['held_out'])}")
    if reports is not None and reports["across_splits"]:
        told = f"one report in several splits: {counted(reports['across_splits'], 'group')}"
        lines.append(f"{told}{_held_out(reports['held_out'])}")
    if drift:
        strongest = max(drift, key=lambda one: abs(one["effect"]))
        told = (
            f"{counted(len(drift), 'difference')} to train above {values['drift_effect']:g} and beyond chance"
        )
        # Values are left out: a column that was taken for labels may hold anything.
        name = CHARACTERISTICS[strongest["characteristic"]]
        lines.append(
            f"drift: {told}, the largest in {name} of {strongest['split']} ({signed(strongest['effect'])})"
        )
    return [*lines, f"quality: {os.path.join(out, QUALITY_PAGE)}"]


def _held_out(counts: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} of {split}" for split, count in counts.items() if count)
    return f"; also in train: {told}" if told else ""


def _refused_shots(
    dataset: Dataset, source: Source, parts: Iterable[PartPlan], max_pixels: int
) -> dict[str, list[Shot]]:
    """The first few of each reason whose pixels can be read, in the quarantine's order of reasons."""
    waiting: dict[tuple[str, str], str] = {}
    details: dict[tuple[str, str], str] = {}
    for row in _quarantine(dataset):
        key = row["path"], row["pair_id"]
        waiting[key], details[key] = row["reason"], row["detail"]
    found: dict[str, list[Shot]] = {reason: [] for reason in dict.fromkeys(waiting.values())}
    for part in parts:
        for item in part.items():
            reason = waiting.get((item.path, item.pair_id))
            if reason is None or len(found[reason]) == SHOTS_OF_A_REASON or ROW_OF_DATASET in item.locator:
                continue
            try:
                pixels = read_grey(source.load_image(item), max_pixels)
            except Exception as error:
                image_problem(error)  # Only what the image's own state explains; a defect is raised again.
                continue
            height, width = pixels.shape
            told = details[item.path, item.pair_id] or f"{width} × {height}"
            found[reason].append(Shot(grey_uri(pixels, SMALL), told))
    return {reason: shots for reason, shots in found.items() if shots}


def _quarantine(dataset: Dataset) -> Iterable[dict[str, str]]:
    """Rows of the quarantine, batch by batch; of each reason no more than may be needed."""
    seen: dict[str, int] = {}
    with pq.ParquetFile(
        dataset.storage.path(dataset.info.quarantine.path), filesystem=dataset.filesystem
    ) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                seen[row["reason"]] = seen.get(row["reason"], 0) + 1
                if seen[row["reason"]] <= _TRIED * SHOTS_OF_A_REASON:
                    yield row


_TRIED: Final = 20
"""So many times as are shown may be tried."""


def _group_shots(dataset: Dataset) -> list[GroupShots]:
    """The gravest groups of pictures first."""
    quality = dataset.info.quality
    if quality is None:
        return []
    path = dataset.storage.path(quality.near_duplicates.path)
    table = pq.read_table(path, filesystem=dataset.filesystem)
    table = table.filter(pc.equal(table["kind"], "picture"))
    chosen: dict[int, list[dict[str, Any]]] = {}
    for relation in RELATIONS:
        numbers = pc.unique(table.filter(pc.equal(table["relation"], relation))["group"]).to_pylist()
        for number in numbers[: GROUPS_SHOWN - len(chosen)]:
            chosen[number] = table.filter(pc.equal(table["group"], number)).to_pylist()
    shown = {number: _spread(rows) for number, rows in chosen.items()}
    wanted = {row["pair_id"] for rows in shown.values() for row in rows}
    uris = _stored_pictures(dataset, wanted)
    groups = []
    for number, rows in shown.items():
        patients = list(dict.fromkeys(row["patient_id"] for row in rows))
        shots = [
            Shot(uris[row["pair_id"]], f"{row['split']}, patient {patients.index(row['patient_id']) + 1}")
            for row in rows
            if row["pair_id"] in uris
        ]
        groups.append(GroupShots(number, rows[0]["relation"], len(chosen[number]), shots))
    return groups


def _spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some rows of a group: of every split and patient one before any has two."""
    first = {(row["split"], row["patient_id"]): row for row in reversed(rows)}
    leading = [row for row in rows if first[row["split"], row["patient_id"]] is row]
    others = [row for row in rows if first[row["split"], row["patient_id"]] is not row]
    kept = [*leading, *others][:SHOTS_OF_A_GROUP]
    return sorted(kept, key=lambda row: SPLITS.index(row["split"]))


def _stored_pictures(dataset: Dataset, wanted: set[str]) -> dict[str, str]:
    """`data:` addresses of stored images by pair id; the column of ids is read whole, images singly."""
    if not wanted:
        return {}
    found: dict[str, str] = {}
    ids = pa.array(sorted(wanted))
    for split in SPLITS:
        first = 0
        for number, shard in enumerate(dataset.shards(split)):
            groups = range(len(shard.row_group_rows))
            names = dataset.read_row_groups(split, number, list(groups), ["pair_id"])["pair_id"]
            rows = first + np.flatnonzero(pc.is_in(names, value_set=ids).to_numpy(zero_copy_only=False))
            first += shard.rows
            if len(rows):
                for row in dataset.read_rows(split, rows, ["pair_id", "image"]).to_pylist():
                    found[row["pair_id"]] = grey_uri(read_grey(row["image"]), SMALL)
    return found
