"""Datasets that grow: what may be joined, where it may be written, and what is said about it.

Decisions: a dataset that is taken over is only ever read, so the new one never stands in or around it;
everything that can be refused is refused before anything is listed or written. The work itself is an
ingest's: the same parts, the same directory protocol, the same going on after a kill.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import check_free
from mpma.data.ingest_plan import IngestOptions
from mpma.data.joining import JoinedDatasets
from mpma.data.pairs import SPLITS
from mpma.data.storage import Storage, open_storage, shown
from mpma.errors import UserError
from orchestration.ingesting import PreparedIngest, Silent, Watcher

MERGE: Final = "merge"
"""Stands where a source does, for joining datasets without an archive."""


def open_parents(locations: Sequence[str], out: str) -> list[Dataset]:
    """The datasets that are taken over.

    Args:
        locations: paths or URIs.
        out: where the new dataset will stand; empty where nothing will be written.

    Raises `UserError` where one is no finished dataset, or where `out` is one of them, in one or around one.
    """
    datasets = [Dataset.open(location) for location in locations]
    for dataset in datasets:
        if out and _overlap(dataset.storage, open_storage(out)):
            raise UserError(
                f"--out {shown(out)} and {dataset.storage.described()} overlap: a dataset that is taken over "
                "is never changed",
                "name a new directory for the result",
            )
    return datasets


def prepare_joined(
    joined: JoinedDatasets,
    out: str,
    *,
    key: bytes | None,
    options: IngestOptions | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> PreparedIngest:
    """List joined datasets, and the archive that is added, and decide what goes where; needs no Ray.

    Args:
        out: path or URI of the dataset to make.
        key: by which the archive's patients are hashed; None where datasets alone are merged.
        options: for the archive's pairs; see `orchestration.ingesting.prepare`.
        overwrite: replace a finished dataset at `out`.

    Raises `UserError` where the place is taken or something cannot be read.
    """
    watcher, options = watcher or Silent(), options or IngestOptions()
    check_free(open_storage(out), overwrite=overwrite)
    plan = joined.plan(options, key, watcher.listed)
    watcher.planned(sum(part.candidates for part in plan.parts))
    return PreparedIngest(
        joined.archive, out, joined.key_name, options, joined.synthetic, overwrite, plan, joined
    )


def assumptions(joined: JoinedDatasets) -> list[str]:
    """What is taken over, one line each."""
    lines = []
    for dataset in joined.datasets:
        pairs = sum(dataset.rows(split) for split in SPLITS)
        lines.append(f"{dataset.storage.described()}: {pairs} pairs, fingerprint {dataset.fingerprint}")
    kept = (
        f"that of {joined.datasets[0].storage.described()} is kept"
        if joined.keep_tokenizer
        else "trained anew"
    )
    lines.append(f"patients keep their splits; tokeniser: {kept}")
    return lines


def joined_line(step: Mapping[str, Any]) -> str:
    """What the last step of a history took over and refused, for the closing table."""
    before = sum(parent["pairs"] for parent in step["parents"])
    added = step["candidates"] - before
    refused = sum(step["quarantined"].values())
    archive = "" if step["source"] is None else f", {added} listed in {step['source']}"
    return f"{step['step']}: {before} pairs taken over{archive}; {refused} refused in this step"


def _overlap(one: Storage, other: Storage) -> bool:
    if one.is_local != other.is_local or (not one.is_local and one.filesystem != other.filesystem):
        return False
    resolved = [
        (os.path.realpath(place.root) if place.is_local else place.root).rstrip("/") + "/"
        for place in (one, other)
    ]
    return resolved[0].startswith(resolved[1]) or resolved[1].startswith(resolved[0])
