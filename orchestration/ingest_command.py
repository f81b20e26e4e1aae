"""What the ingest program shows and returns: assumptions, progress, the closing table.

Decisions: progress goes to standard error and the summary to standard output, so that `--json` can be
piped; only counts, reason codes and names of columns are ever shown, since paths and identifiers
belong to the quarantine file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mpma.data.dataset_info import QUARANTINE_FILE, DatasetInfo
from mpma.data.hashing import DEFAULT_KEY_FILE, PUBLIC_KEY, load_or_create_key
from mpma.data.ingest_plan import IngestOptions, IngestPlan, hashes_pair_ids, plan_ingest
from mpma.data.pairs import SPLITS
from mpma.data.quality import REASONS, QualityConfig, check_item
from mpma.data.sources import build_source, source_kind
from mpma.data.splits import parse_fractions
from mpma.errors import UserError
from orchestration.ingesting import IngestResult, carry_out, prepare
from orchestration.progress import progress_bar
from orchestration.quality_options import split_overrides, thresholds


@dataclass(frozen=True)
class Request:
    """The command line."""

    source: str
    root: str | None
    out: str
    overrides: list[str]
    row_filter: str | None
    split: str
    split_seed: int
    key_file: str | None
    short_side: int
    image_format: str
    jpeg_quality: int
    min_words: int | None
    min_side: int | None
    vocabulary_size: int
    max_tokens: int
    overwrite: bool
    check: bool
    as_json: bool
    address: str | None
    cpus: int | None
    hash_pair_ids: bool | None = None
    """None: as the source says of its ids."""


def execute(request: Request) -> None:
    """Do what the command line asks for. Raises `UserError` for what the user can mend."""
    kind = source_kind(request.source)
    synthetic = not kind.needs_root
    if not request.out and not request.check:
        raise UserError("--out is missing", "name the dataset directory to make, such as --out datasets/NAME")
    if synthetic and request.root is not None:
        raise UserError(f"{request.source} takes no root", "leave it out; its options are given with --set")
    assignments, overrides = split_overrides(request.overrides)
    given = thresholds(assignments, request.min_words, request.min_side)
    if request.row_filter is not None:
        if "filter" not in kind.options.model_fields:
            raise UserError(f"--filter: {request.source} has no filter", "the manifest source has one")
        overrides.append(f"filter={request.row_filter}")
    if given.get("min_report_words") == 0 and "reports" in kind.options.model_fields:
        overrides.append("reports=optional")
    source = build_source(request.source, request.root, overrides)
    options = _options(
        request, synthetic, QualityConfig(**{"min_report_words": int(source.reports_expected), **given})
    )
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in source.assumptions():
        notes.print(f"{request.source}: {line}", markup=False)
    if hashes_pair_ids(source, options):
        notes.print(f"{request.source}: pair ids are stored as keyed hashes", markup=False)
    key = PUBLIC_KEY if synthetic else _key(request, notes)
    if request.check:
        with ProgressWatcher(notes) as watcher:
            plan = plan_ingest(source, options, key, watcher.listed)
        _show(check_summary(plan, options), request.as_json, "Checked, nothing read and nothing written")
        return

    from orchestration.cluster import connected

    try:
        with ProgressWatcher(notes) as watcher:
            # Ray starts only once the root has proved to be what it should be.
            prepared = prepare(
                source,
                request.out,
                key=key,
                options=options,
                synthetic=synthetic,
                overwrite=request.overwrite,
                watcher=watcher,
            )
            with connected(request.address, request.cpus, dashboard=False):
                result = carry_out(prepared, watcher)
    except KeyboardInterrupt:
        notes.print(
            "interrupted: the parts that are whole are kept, the same command goes on from them", markup=False
        )
        raise
    _show(summary(result, request.out), request.as_json, "Dataset")


def _options(request: Request, synthetic: bool, quality: QualityConfig) -> IngestOptions:
    if request.image_format not in ("jpeg", "png"):
        raise UserError(f"--image-format {request.image_format}: unknown", "jpeg or png")
    if 0 < request.short_side < 32:
        raise UserError(f"--short-side {request.short_side}: too small", "32 or more, or 0 to keep the size")
    return IngestOptions(
        fractions=parse_fractions(request.split),
        split_seed=request.split_seed,
        # Phantom pairs come at the size that was asked for, with masks to match.
        short_side_pixels=None if synthetic or request.short_side == 0 else request.short_side,
        image_format="png" if request.image_format == "png" else "jpeg",
        jpeg_quality=request.jpeg_quality,
        quality=quality,
        vocabulary_size=request.vocabulary_size,
        truncated_at=request.max_tokens,
        hash_pair_ids=request.hash_pair_ids,
    )


def _key(request: Request, notes: Console) -> bytes:
    place = request.key_file or DEFAULT_KEY_FILE
    file = Path(place).expanduser().absolute()
    if "://" not in request.out and request.out and file.is_relative_to(Path(request.out).absolute()):
        raise UserError(
            f"--key-file {place}: inside the dataset directory",
            "the key undoes the hashing of patients; keep it apart from the dataset",
        )
    key, created = load_or_create_key(place)
    if created:
        notes.print(
            f"a patient key was made at {place}; keep it: another key gives other names and other splits",
            markup=False,
        )
    return key


class ProgressWatcher:
    """Shows an ingest's counts: a live bar on a terminal, a line per stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = progress_bar(console)
        self._task = self._progress.add_task("listing", total=None)

    def __enter__(self) -> ProgressWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def listed(self, candidates: int) -> None:
        """So many candidates have been listed so far."""
        self._progress.update(self._task, completed=candidates)

    def planned(self, candidates: int) -> None:
        """Listing is over; so many are left to load."""
        self._progress.reset(self._task, total=candidates, description="pairs")
        self._say(f"listed; {candidates} candidates to load")

    def done(self, candidates: int) -> None:
        """So many more have been loaded or refused."""
        self._progress.advance(self._task, candidates)

    def finishing(self) -> None:
        """All parts stand."""
        self._progress.update(self._task, description="tokeniser")
        self._say("loaded; training the tokeniser")

    def _say(self, line: str) -> None:
        if not self._live:
            self._console.print(line, markup=False)


def summary(result: IngestResult, out: str) -> dict[str, Any]:
    """What came of an ingest, as plain values."""
    info = result.dataset.info
    return {
        "out": out,
        "fingerprint": info.fingerprint,
        "synthetic": info.synthetic,
        "candidates": result.candidates,
        "kept": sum(info.splits[split].pairs for split in SPLITS),
        "quarantined": info.quarantine.reasons,
        "pairs": {split: info.splits[split].pairs for split in SPLITS},
        "patients": {split: info.splits[split].patients for split in SPLITS},
        "shards": {split: len(info.splits[split].shards) for split in SPLITS},
        "labels": len(info.labels),
        "reports": _total(info, "reports"),
        "masks": _total(info, "masks"),
        "empty_masks": _total(info, "empty_masks"),
        "questions": _total(info, "questions"),
        "licenses": info.licenses,
        "vocabulary_size": info.tokenizer.vocabulary_size,
        "reports_cut": {"tokens": info.reports.truncated_at, "reports": info.reports.truncated},
        "grey_mean": round(info.images.grey_mean, 4),
        "grey_deviation": round(info.images.grey_deviation, 4),
        "short_side_median": info.images.short_side_median,
    }


def _total(info: DatasetInfo, count: str) -> int:
    return sum(getattr(info.splits[split], count) or 0 for split in SPLITS)


def check_summary(plan: IngestPlan, options: IngestOptions) -> dict[str, Any]:
    """What an ingest of this plan would make, as far as it can be told without pixels."""
    reasons = Counter(item.reason for item in plan.rejections)
    pairs = Counter(dict.fromkeys(SPLITS, 0))
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for part in plan.parts:
        for item in part.items():
            refused = check_item(item, options.quality)
            if refused is not None:
                reasons[refused.reason] += 1
            else:
                pairs[part.split] += 1
                patients[part.split].add(item.patient_id)
    return {
        "candidates": plan.candidates,
        "kept": pairs.total(),
        "quarantined": dict(sorted(reasons.items())),
        "pairs": {split: pairs[split] for split in SPLITS},
        "patients": {split: len(patients[split]) for split in SPLITS},
    }


def _show(values: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(values))
        return
    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for heading, side in (("", "left"), ("pairs", "right"), ("patients", "right"), ("", "left")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for split in SPLITS:
        table.add_row(split, f"{values['pairs'][split]}", f"{values['patients'][split]}", "")
    table.add_row("kept", f"{values['kept']}", f"{sum(values['patients'].values())}", "", end_section=True)
    for reason, count in values["quarantined"].items():
        table.add_row(reason, f"{count}", "", REASONS.get(reason, ""))
    refused = sum(values["quarantined"].values())
    table.add_row("quarantined", f"{refused}", "", f"of {values['candidates']} listed")
    console.print(table)
    if "out" in values:
        for line in _closing_lines(values, refused):
            console.print(line, markup=False, soft_wrap=True)


def _closing_lines(values: dict[str, Any], refused: int) -> list[str]:
    cut = values["reports_cut"]
    lines = [
        f"images: grey mean {values['grey_mean']}, deviation {values['grey_deviation']}, "
        f"median shorter side {values['short_side_median']} px",
        f"reports: vocabulary of {values['vocabulary_size']}; {cut['reports']} cut at {cut['tokens']} tokens"
        if values["reports"]
        else "reports: none; this set serves evaluation, not pre-training",
        "licences: " + ", ".join(f"{name or 'not stated'} {n}" for name, n in values["licenses"].items()),
        f"fingerprint: {values['fingerprint']}" + (" (synthetic)" if values["synthetic"] else ""),
        f"dataset: {values['out']}",
    ]
    if 0 < values["reports"] < values["kept"]:
        lines.insert(2, f"pairs without a report: {values['kept'] - values['reports']}")
    if values["masks"]:
        lines.insert(-2, f"masks: {values['masks']}, of which {values['empty_masks']} are empty")
    if values["questions"]:
        lines.insert(-2, f"questions: {values['questions']}")
    if refused:
        lines.append(f"why each was refused: {os.path.join(values['out'], QUARANTINE_FILE)}")
    return lines
