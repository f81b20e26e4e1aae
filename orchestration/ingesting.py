"""The work of an ingest on Ray: shard-sized tasks that write their part and send back what they counted.

Decisions: the driver lists and decides, tasks load and write, so pixels never pass through the driver or
the object store; Ray Data runs the tasks, as many at once as there are CPUs, on whichever machines
share the output's filesystem; what a task makes depends on its piece of the plan alone, so the dataset
is the same however many there are. Where no Ray runs the same pieces are made here, one by one. A
mistake of the user inside a task comes back as a row that says so, not as an exception, which Ray would
retry and wrap, and so does a defect of ours, which Ray Data would write into its log.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import check_free, unfinished_dataset
from mpma.data.dataset_writing import Part, finish_dataset
from mpma.data.hashing import key_name
from mpma.data.history import Origin
from mpma.data.ingest_plan import IngestOptions, IngestPlan, PartPlan, plan_ingest
from mpma.data.joined_rows import JoinedPartMaker
from mpma.data.joining import JoinedDatasets
from mpma.data.pair_rows import PartMaker
from mpma.data.quality import QualityConfig
from mpma.data.shards import shard_schema
from mpma.data.sources.contract import Source
from mpma.data.storage import Storage, open_storage
from mpma.errors import JobError, UserError
from orchestration.defects import hold_back_library_messages, told

_RESULT = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("part", pa.binary()),
        pa.field("message", pa.string()),
        pa.field("hint", pa.string()),
        pa.field("failed", pa.bool_()),
    ]
)


class Watcher(Protocol):
    """What is told how far an ingest is; counts only, never what was read."""

    def listed(self, candidates: int) -> None:
        """So many candidates have been listed so far."""

    def planned(self, candidates: int) -> None:
        """Listing is over; so many are left to load."""

    def done(self, candidates: int) -> None:
        """So many more have been loaded or refused."""

    def finishing(self) -> None:
        """All parts stand; the tokeniser is trained and the marker written."""


class Silent:
    """Watches and says nothing."""

    def listed(self, candidates: int) -> None: ...

    def planned(self, candidates: int) -> None: ...

    def done(self, candidates: int) -> None: ...

    def finishing(self) -> None: ...


@dataclass(frozen=True)
class IngestResult:
    """A finished ingest."""

    dataset: Dataset
    candidates: int
    """Everything the source listed; kept pairs and quarantine add up to it."""


@dataclass(frozen=True)
class PreparedIngest:
    """An ingest that is listed and decided, and has written nothing yet."""

    source: Source
    out: str
    key_name: str
    options: IngestOptions
    synthetic: bool
    overwrite: bool
    plan: IngestPlan
    joined: JoinedDatasets | None = None
    """The datasets that are taken over, where there are some; `source` is then what is added to them."""

    def maker(self) -> PartMaker:
        """What makes each part of the plan."""
        storage = open_storage(self.out)
        if self.joined is None:
            return PartMaker(self.source, self.options, storage)
        return JoinedPartMaker(self.source, self.options, storage, self.joined)


def prepare(
    source: Source,
    out: str,
    *,
    key: bytes,
    options: IngestOptions | None = None,
    synthetic: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> PreparedIngest:
    """List a source and decide what goes where; needs no Ray.

    Args:
        out: path or URI of the dataset to make.
        key: of the keyed hash of patients, see `mpma.data.hashing`.
        options: what is done with what is listed. None: the usual thresholds; pairs without a report are
            kept where the source expects none.
        synthetic: whether every pair is generated.
        overwrite: replace a finished dataset; it stays readable until `carry_out`.

    Raises `UserError` where the place is taken or the source is not what it should be.
    """
    watcher = watcher or Silent()
    if options is None:
        options = IngestOptions(quality=QualityConfig(min_report_words=int(source.reports_expected)))
    check_free(open_storage(out), overwrite=overwrite)
    plan = plan_ingest(source, options, key, watcher.listed)
    watcher.planned(sum(part.candidates for part in plan.parts))
    return PreparedIngest(source, out, key_name(key), options, synthetic, overwrite, plan)


def carry_out(prepared: PreparedIngest, watcher: Watcher | None = None) -> IngestResult:
    """Make the dataset, on the Ray that is connected, or in this process where none is.

    Raises `UserError` where the place is taken or nothing is left to train on, `JobError` where the work
    broke off. Parts that are whole are kept for the same ingest again.
    """
    options, plan, joined, watcher = prepared.options, prepared.plan, prepared.joined, watcher or Silent()
    storage, maker = open_storage(prepared.out), prepared.maker()
    origin = Origin("ingest", prepared.source.name) if joined is None else joined.origin()
    tokenizer = None if joined is None else joined.tokenizer()
    with unfinished_dataset(storage, plan.identity, overwrite=prepared.overwrite):
        parts = _make_parts(plan, maker, watcher)
        watcher.finishing()
        _check_shared(storage, parts)
        finish_dataset(
            storage,
            parts,
            plan.rejections,
            key_name=prepared.key_name,
            synthetic=prepared.synthetic,
            columns=shard_schema(maker.extra_schema()).names,
            vocabulary_size=options.vocabulary_size,
            truncated_at=options.truncated_at,
            drift_effect=options.quality.drift_effect,
            tokenizer=tokenizer,
            origin=origin,
        )
    return IngestResult(Dataset.open(prepared.out), plan.candidates + len(origin.carried))


def _make_parts(plan: IngestPlan, maker: PartMaker, watcher: Watcher) -> list[Part]:
    # Only a program that uses Ray has imported it; asking costs nothing then, and a second otherwise.
    ray = sys.modules.get("ray")
    run = _on_ray if ray is not None and ray.is_initialized() else _here
    candidates = {part.name: part.candidates for part in plan.parts}
    found: dict[str, Part] = {}
    for name, part in run(plan.parts, maker):
        found[name] = part
        watcher.done(candidates[name])
    return [found[part.name] for part in plan.parts]


def _here(plans: list[PartPlan], maker: PartMaker) -> Iterator[tuple[str, Part]]:
    for plan in plans:
        yield plan.name, maker.make(plan)


def _on_ray(plans: list[PartPlan], maker: PartMaker) -> Iterator[tuple[str, Part]]:
    """Each plan is one block and one task; parts come back as they end."""
    if not plans:
        return
    import ray
    import ray.data

    logger = logging.getLogger("ray.data")
    level = logger.level
    # Its lines about every execution would stand in the middle of the progress bar.
    logger.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    reserved = context.op_resource_reservation_enabled
    # Ray Data would hold the second task back for a second and each later one for 0.15 s, to keep room for
    # other stages; there is one stage here, and what it gives back is a record.
    context.op_resource_reservation_enabled = False
    try:
        rows = [
            {"name": p.name, "split": p.split, "candidates": p.candidates, "packed": p.packed} for p in plans
        ]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _task(maker), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                if row["message"] is not None:
                    raise (JobError if row["failed"] else UserError)(row["message"], row["hint"])
                yield row["name"], Part.from_json(row["part"])
    except ray.exceptions.RayError as error:
        raise JobError(
            f"a task of the ingest broke off ({type(error).__name__})",
            "run the same command again to go on from the parts that are whole; Ray's logs say more",
        ) from None
    finally:
        context.op_resource_reservation_enabled = reserved
        logger.setLevel(level)


def _task(maker: PartMaker) -> Callable[[pa.Table], pa.Table]:
    def make(batch: pa.Table) -> pa.Table:
        os.umask(0o077)
        hold_back_library_messages()
        rows = []
        for values in batch.to_pylist():
            row = {"name": values["name"], "part": None, "message": None, "hint": None, "failed": False}
            try:
                row["part"] = maker.make(PartPlan(**values)).to_json()
            except UserError as error:
                row |= {
                    "message": error.message,
                    "hint": error.hint,
                    "failed": isinstance(error, JobError),
                }
            except Exception as error:
                row |= {"message": f"a defect of this software: {told(error)}", "failed": True}
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=_RESULT)

    return make


def _check_shared(storage: Storage, parts: list[Part]) -> None:
    """Raises `JobError` where parts were written on machines that do not share the output's filesystem."""
    there = storage.sizes()
    missing = [part.shard.path for part in parts if part.shard is not None and part.shard.path not in there]
    if missing:
        raise JobError(
            f"{len(missing)} of {len(parts)} parts are not at {storage.described()} as this machine sees it",
            "on a cluster --out is a directory that all machines share, or a URI such as s3://bucket/name",
        )
