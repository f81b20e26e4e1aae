"""What the ingest program shows and returns: assumptions, progress, the closing table.

Decisions: progress goes to standard error and the summary to standard output, so that `--json` can be
piped; only counts, reason codes and names of columns are ever shown, since paths and identifiers
belong to the quarantine file.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from mpma.data.dataset_info import QUARANTINE_FILE, DatasetInfo
from mpma.data.hashing import DEFAULT_KEY_FILE, PUBLIC_KEY, load_or_create_key
from mpma.data.ingest_plan import IngestOptions, IngestPlan, hashes_pair_ids, plan_ingest
from mpma.data.joining import ROW_OF_DATASET, JoinedDatasets, join
from mpma.data.pair_rows import PartMaker
from mpma.data.pairs import SPLITS
from mpma.data.quality import REASONS, QualityConfig, check_item
from mpma.data.sources import build_source, source_kind
from mpma.data.sources.contract import Source
from mpma.data.splits import parse_fractions
from mpma.data.storage import open_storage
from mpma.errors import UserError
from orchestration.growing import MERGE, assumptions, joined_line, open_parents, prepare_joined
from orchestration.ingesting import IngestResult, PreparedIngest, carry_out, prepare
from orchestration.progress import progress_bar
from orchestration.quality_options import split_overrides, thresholds
from orchestration.quality_page import quality_lines, quality_values, thumbnails_of, write_quality_page


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
    roots: tuple[str, ...] = ()
    """All roots that were typed; `root` is the first of them."""
    onto: str | None = None
    keep_tokenizer: bool = False
    plan: bool = False
    with_thumbnails: bool = False
    """Put pictures on the quality page."""


def execute(request: Request) -> None:
    """Do what the command line asks for. Raises `UserError` for what the user can mend."""
    if not request.out and not (request.check or request.plan):
        raise UserError("--out is missing", "name the dataset directory to make, such as --out datasets/NAME")
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    _carry_out(request, (_merge if request.source == MERGE else _archive)(request, notes), notes)


@dataclass(frozen=True)
class _Job:
    """What a command line asks for, resolved."""

    source: Source
    options: IngestOptions
    key: bytes | None
    synthetic: bool
    joined: JoinedDatasets | None

    def plan(self, watcher: ProgressWatcher) -> IngestPlan:
        """Listed and decided, nothing written."""
        if self.joined is not None:
            return self.joined.plan(self.options, self.key, watcher.listed)
        assert self.key is not None
        return plan_ingest(self.source, self.options, self.key, watcher.listed)

    def prepare(self, request: Request, watcher: ProgressWatcher) -> PreparedIngest:
        """The same, once the place has proved to be free."""
        if self.joined is not None:
            return prepare_joined(
                self.joined,
                request.out,
                key=self.key,
                options=self.options,
                overwrite=request.overwrite,
                watcher=watcher,
            )
        assert self.key is not None
        return prepare(
            self.source,
            request.out,
            key=self.key,
            options=self.options,
            synthetic=self.synthetic,
            overwrite=request.overwrite,
            watcher=watcher,
        )


def _merge(request: Request, notes: Console) -> _Job:
    assignments, overrides = split_overrides(request.overrides)
    for given, name in ((overrides, "--set"), (request.row_filter, "--filter")):
        if given:
            raise UserError(f"{name}: merge takes every row as it is", "leave it out")
    if request.onto is not None:
        raise UserError("--onto: merge takes datasets only", "name all of them behind merge")
    parents = open_parents(request.roots, request.out)
    if len(parents) < 2:
        raise UserError(
            "merge needs two datasets or more", "python -m orchestration.ingest merge datasets/a datasets/b"
        )
    joined = join(parents, keep_tokenizer=request.keep_tokenizer)
    for line in assumptions(joined):
        notes.print(f"{MERGE}: {line}", markup=False)
    quality = QualityConfig(**thresholds(assignments, request.min_words, request.min_side))
    # What concerns an archive alone changes nothing here, and so does not tell two merges apart.
    options = IngestOptions(
        quality=quality, vocabulary_size=request.vocabulary_size, truncated_at=request.max_tokens
    )
    return _Job(joined.archive, options, None, joined.synthetic, joined)


def _archive(request: Request, notes: Console) -> _Job:
    kind = source_kind(request.source)
    synthetic = not kind.needs_root
    if len(request.roots) > 1:
        raise UserError(
            f"{request.source} takes one root and {len(request.roots)} are given",
            "several datasets are joined with: python -m orchestration.ingest merge datasets/a datasets/b",
        )
    if request.keep_tokenizer and request.onto is None:
        raise UserError("--keep-tokenizer: there is none to keep", "it goes with --onto, or with merge")
    if synthetic and request.root is not None:
        raise UserError(f"{request.source} takes no root", "leave it out; its options are given with --set")
    assignments, overrides = split_overrides(request.overrides)
    given = thresholds(assignments, request.min_words, request.min_side)
    if request.row_filter is not None:
        if "filter" not in kind.options.model_fields:
            raise UserError(f"--filter: {request.source} has no filter", "the manifest source has one")
        overrides.append(f"filter={request.row_filter}")
    reports = kind.options.model_fields.get("reports")
    # In other sources the option of that name is a place.
    if (
        given.get("min_report_words") == 0
        and reports is not None
        and "optional" in get_args(reports.annotation)
    ):
        overrides.append("reports=optional")
    source = build_source(request.source, request.root, overrides)
    options = _options(
        request, synthetic, QualityConfig(**{"min_report_words": int(source.reports_expected), **given})
    )
    parents = [] if request.onto is None else open_parents([request.onto], request.out)
    for line in source.assumptions():
        notes.print(f"{request.source}: {line}", markup=False)
    if hashes_pair_ids(source, options):
        notes.print(f"{request.source}: pair ids are stored as keyed hashes", markup=False)
    key = PUBLIC_KEY if synthetic else _key(request, notes)
    joined = None
    if parents:
        joined = join(parents, source, key=key, synthetic=synthetic, keep_tokenizer=request.keep_tokenizer)
        for line in assumptions(joined):
            notes.print(f"{request.source}: {line}", markup=False)
    return _Job(source, options, key, synthetic, joined)


def _carry_out(request: Request, job: _Job, notes: Console) -> None:
    options = job.options
    if request.plan:
        _forecast(request, job, notes)
        return
    if request.check:
        with ProgressWatcher(notes) as watcher:
            plan = job.plan(watcher)
        _show(check_summary(plan, options), request.as_json, "Checked, nothing read and nothing written")
        return

    from orchestration.cluster import connected
    from orchestration.preflight.survey import Wanted, before_work

    try:
        with ProgressWatcher(notes) as watcher:
            # Ray starts only once the root has proved to be what it should be.
            prepared = job.prepare(request, watcher)
            with connected(request.address, request.cpus, dashboard=False) as connection:
                if request.address is not None:
                    before_work(Wanted(), connection, notes.print)
                result = carry_out(prepared, watcher)
    except KeyboardInterrupt:
        notes.print(
            "interrupted: the parts that are whole are kept, the same command goes on from them", markup=False
        )
        raise
    # The dataset stands: a Ctrl-C from here on costs its page alone.
    _write_page(request, job, prepared, result)
    _show(summary(result, request.out), request.as_json, "Dataset")


def _write_page(request: Request, job: _Job, prepared: PreparedIngest, result: IngestResult) -> None:
    quality, shown = job.options.quality, None
    if request.with_thumbnails:
        shown = thumbnails_of(result.dataset, job.source, prepared.plan.parts, quality.max_pixels)
    write_quality_page(result.dataset, candidates=result.candidates, thresholds=quality, thumbnails=shown)


def _forecast(request: Request, job: _Job, notes: Console) -> None:
    from orchestration.ingest_forecast import cpus_to_show, forecast, lines, measure, sample_items

    if job.joined is not None:
        raise UserError(
            "--plan forecasts an archive alone", "leave out --onto; --check counts what a growth would hold"
        )
    begun = time.perf_counter()
    with ProgressWatcher(notes) as watcher:
        plan = job.plan(watcher)
    listing_seconds = time.perf_counter() - begun
    values = check_summary(plan, job.options)
    maker = PartMaker(job.source, job.options, open_storage(request.out))
    measured = measure(maker, sample_items(plan, job.options))
    cpus = cpus_to_show(request.cpus)
    values |= forecast(values["kept"], len(plan.parts), measured, listing_seconds, cpus, request.out)
    _show(values, request.as_json, "By the tables alone")
    if not request.as_json:
        for line in lines(values):
            print(line)


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
    if request.onto is not None and not file.exists():
        raise UserError(
            f"{place}: there is no patient key, and adding to a dataset needs the one it was made with",
            "name it with --key-file",
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
        "history": [step.model_dump() for step in info.history],
        "quality": quality_values(info),
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
            # A dataset's rows were judged when they came into it.
            stored = ROW_OF_DATASET in item.locator
            refused = None if stored else check_item(item, options.quality)
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
    if values["history"][-1]["parents"]:
        lines.insert(-2, joined_line(values["history"][-1]))
    if refused:
        lines.append(f"why each was refused: {os.path.join(values['out'], QUARANTINE_FILE)}")
    return [*lines, *quality_lines(values["quality"], values["out"])]
