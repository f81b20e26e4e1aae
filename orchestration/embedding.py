"""The work behind `orchestration.embed`: parts made all over the cluster, then one file.

Decisions: all that can be refused is refused before Ray starts; vectors go from the tasks into parts beside
the file and from there, one row group at a time, into the file, so this process never holds more than one
part; the file appears whole or not at all; an embedding that was interrupted goes on from its parts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq
from rich.console import Console

from mpma.data.dataset import Dataset
from mpma.data.pairs import SPLITS
from mpma.data.storage import TEMPORARY_SUFFIX, Storage, open_storage
from mpma.errors import JobError, UserError
from mpma.training.run_directory import RunDirectory, hold
from orchestration import cluster
from orchestration.defects import told
from orchestration.preflight.survey import Wanted, before_work
from orchestration.progress import progress_bar

if TYPE_CHECKING:
    from mpma.loading import LoadedModel
    from orchestration.embedding_parts import EmbedPlan, Part

_RETRIES: Final = 2
_PLAIN_SECONDS: Final = 20.0
_DECODING_THREADS: Final = 8


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    run: str | None
    model: str | None
    data: str | None
    out: str | None
    splits: tuple[str, ...]
    what: tuple[str, ...]
    overwrite: bool
    address: str | None
    cpus: int | None
    device: str
    precision: str
    batch_size: int
    dashboard: bool
    started: float


def embed(request: Request) -> None:
    """Embed to the end. Raises `UserError` and `JobError`."""
    from orchestration.embedding_parts import open_model

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    folder, name = _checked(request)
    place = _absolute(str(request.run or request.model))
    loaded = open_model(place, None, "cpu", _precision(request))
    _told(console, loaded, request.what)
    dataset = _named_data(request, loaded)
    parts_folder = folder.child(f"{name}.parts")
    with cluster.connected(request.address, request.cpus, request.dashboard) as connection:
        if connection.dashboard_url:
            console.print(f"Ray dashboard: {connection.dashboard_url}", markup=False)
        before_work(Wanted(places=(folder.location,)), connection, console.print)
        if dataset is None:
            dataset = _own_phantom(request)
        splits = _splits(request, dataset)
        plan, gpus = _plan(request, loaded, dataset, parts_folder, connection.resources)
        pairs = ", ".join(f"{split} {dataset.rows(split)}" for split in splits)
        console.print(f"data: {dataset.fingerprint}, pairs: {pairs}", markup=False)
        console.print(
            f"device: {plan.device} ({connection.resources.gpus:g} GPUs), {plan.precision}", markup=False
        )
        if not folder.exists():
            folder.make_directory()
        with hold(parts_folder, f"{request.out}: another program writes this file"):
            _make_parts(plan, dataset, splits, parts_folder, gpus, console, connection.logs)
            rows = _join(plan, loaded, dataset, splits, parts_folder, folder, name)
            folder.remove(f"{name}.parts")
    minutes, seconds = divmod(int(time.time() - request.started), 60)
    console.print(f"written: {request.out}, {rows} pairs, in {minutes} min {seconds} s", markup=False)


def check(request: Request) -> None:
    """Say whether the embedding could start, without a cluster."""
    from orchestration.embedding_parts import open_model

    console = Console(highlight=False, soft_wrap=True)
    _checked(request)
    loaded = open_model(_absolute(str(request.run or request.model)), None, "cpu", _precision(request))
    _told(console, loaded, request.what)
    dataset = _named_data(request, loaded)
    if dataset is None:
        console.print("data: synthetic phantom pairs, which would be made", markup=False)
    else:
        pairs = ", ".join(f"{split} {dataset.rows(split)}" for split in _splits(request, dataset))
        console.print(f"data: {dataset.fingerprint}, pairs: {pairs}", markup=False)
    console.print("check: all is well", markup=False)


# --- before the work -------------------------------------------------------------------------------


def _checked(request: Request) -> tuple[Storage, str]:
    """(folder, name) of the file. Raises `UserError` for whatever the options get wrong."""
    from mpma.embedding import KINDS

    if (request.run is None) == (request.model is None):
        raise UserError(
            "give either --run or --model", "such as --run runs/demo, or --model with an exported folder"
        )
    if request.model is not None and request.data is None:
        raise UserError("--data is missing: an exported model has no data of its own", "--data datasets/NAME")
    unknown = [kind for kind in request.what if kind not in KINDS]
    if unknown or not request.what:
        raise UserError(f"--what {','.join(request.what)}: unknown vectors", f"some of {', '.join(KINDS)}")
    wrong = [split for split in request.splits if split not in SPLITS]
    if wrong:
        raise UserError(f"--split {wrong[0]}: unknown", f"one of {', '.join(SPLITS)}")
    if request.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {request.device}: unknown", "auto, cpu or cuda")
    if request.precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {request.precision}: unknown", "auto, fp32 or bf16")
    if request.out is None:
        raise UserError("--out is missing", "name a file to write, such as --out embeddings.parquet")
    if not request.out.endswith(".parquet"):
        raise UserError(f"--out {request.out}: a file that ends in .parquet is expected")
    root, _, name = _absolute(request.out).rpartition("/")
    folder = open_storage(root or "/")
    if folder.exists(name) and not request.overwrite:
        raise UserError(
            f"--out {request.out} exists already", "choose another, or replace it with --overwrite"
        )
    return folder, name


def _told(console: Console, loaded: LoadedModel, what: Sequence[str]) -> None:
    from mpma.embedding import untrained_kinds

    console.print(f"model: {loaded.origin}, weights {loaded.weights_hash}", markup=False)
    for kind, reason in untrained_kinds(loaded).items():
        if kind in what:
            console.print(f"{kind}: of no use, {reason}", markup=False)


def _named_data(request: Request, loaded: LoadedModel) -> Dataset | None:
    """The dataset named, or the run's own; None where that is a phantom that is not there."""
    from orchestration.own_data import find_own_data

    if request.data is not None:
        return Dataset.open(_absolute(request.data))
    run = RunDirectory.opened(request.run)
    path = run.stored_config().data.path
    found = find_own_data(run, loaded.data_fingerprint or "")
    if found is None and path is not None:
        Dataset.open(_absolute(path))
        raise UserError(
            f"{path} is not what {run.name} was trained on any more",
            f"name it, if it is meant: --data {path}",
        )
    return None if found is None else Dataset.open(_absolute(found.path))


def _own_phantom(request: Request) -> Dataset:
    from orchestration.phantom_data import ensure_phantom

    return Dataset.open(
        _absolute(ensure_phantom(RunDirectory.opened(request.run).stored_config().data.phantom))
    )


def _splits(request: Request, dataset: Dataset) -> tuple[str, ...]:
    wanted = tuple(split for split in SPLITS if split in (request.splits or SPLITS))
    filled = tuple(split for split in wanted if dataset.rows(split))
    if not filled:
        raise UserError(f"{dataset.path} has no pairs in {', '.join(wanted)}")
    return filled


def _precision(request: Request) -> str:
    return "fp32" if request.precision == "auto" else request.precision


def _plan(
    request: Request,
    loaded: LoadedModel,
    dataset: Dataset,
    parts: Storage,
    resources: cluster.Resources,
) -> tuple[EmbedPlan, bool]:
    from orchestration.embedding_parts import EmbedPlan

    device = request.device
    if device == "auto":
        device = "cuda" if resources.gpus >= 1 else "cpu"
    if device == "cuda" and resources.gpus < 1:
        raise UserError("--device cuda: there is no GPU", "use --device cpu")
    gpus = device == "cuda"
    threads = max(1, min(_DECODING_THREADS, int(resources.cpus // max(1, resources.gpus)))) if gpus else 1
    plan = EmbedPlan(
        model=_absolute(str(request.run or request.model)),
        step=int(loaded.step or 0),
        weights=loaded.weights_hash,
        data=dataset.path,
        fingerprint=dataset.fingerprint,
        kinds=tuple(dict.fromkeys(request.what)),
        device=device,
        precision=_precision(request),
        batch_size=request.batch_size,
        threads=threads,
        parts=parts.location,
    )
    return plan, gpus


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)


# --- the work --------------------------------------------------------------------------------------


def _make_parts(
    plan: EmbedPlan,
    dataset: Dataset,
    splits: tuple[str, ...],
    folder: Storage,
    gpus: bool,
    console: Console,
    logs: str,
) -> None:
    from orchestration.embedding_parts import parts_of

    parts = parts_of(dataset, splits)
    names = {part.name(plan) for part in parts}
    there = set()
    for name in folder.names():
        if name in names:
            there.add(name)
        elif name.endswith((".parquet", TEMPORARY_SUFFIX)):
            folder.remove(name)
    waiting = [part for part in parts if part.name(plan) not in there]
    total, done = sum(part.last - part.first for part in parts), 0
    if there:
        console.print(f"{len(there)} of {len(parts)} parts are there already", markup=False)
        done = total - sum(part.last - part.first for part in waiting)
    told = time.monotonic()
    with progress_bar(console) as bar:
        number = bar.add_task("pairs", total=total, completed=done)
        for rows in _carried_out(plan, waiting, gpus, logs):
            done += rows
            bar.update(number, completed=done)
            if not console.is_terminal and time.monotonic() - told > _PLAIN_SECONDS:
                told = time.monotonic()
                console.print(f"{done} of {total} pairs", markup=False)
    missing = names - set(folder.names())
    if missing:
        raise JobError(
            f"{len(missing)} of {len(names)} parts are not at {folder.location} as this machine sees it",
            "on a cluster --out is in a directory that all machines share, or a URI such as s3://bucket/name",
        )


def _carried_out(plan: EmbedPlan, parts: Sequence[Part], gpus: bool, logs: str) -> Iterator[int]:
    """Rows of each part as it ends; hardly more tasks wait in Ray than can run."""
    import ray

    from orchestration.embedding_parts import make_part

    remote = ray.remote(max_retries=_RETRIES)(make_part).options(num_cpus=1, num_gpus=1 if gpus else 0)
    resources = ray.cluster_resources()
    room = max(1, int(resources.get("GPU" if gpus else "CPU", 1)))
    queue = iter(parts)
    pending: dict[Any, Part] = {}
    try:
        while True:
            for part in queue:
                pending[remote.remote(plan, part)] = part
                if len(pending) > room:
                    break
            if not pending:
                return
            ready, _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(ready[0])
            try:
                yield ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise _failure(part, error, logs) from None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _failure(part: Part, error: Exception, logs: str) -> UserError:
    """A mistake as it is; of a defect its kind alone, since its message may hold report text."""
    where = f"rows {part.first} to {part.last - 1} of {part.split}"
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return type(cause)(f"{where}: {cause.message}", cause.hint)
    return JobError(
        f"{where}: {told(error)}",
        f"Ray's logs are in {logs}; the same command goes on from the parts that are whole",
    )


def _join(
    plan: EmbedPlan,
    loaded: LoadedModel,
    dataset: Dataset,
    splits: tuple[str, ...],
    parts: Storage,
    folder: Storage,
    name: str,
) -> int:
    """Copy the parts, one row group each, into the file; return its rows."""
    from mpma.embedding import widths
    from orchestration.embedding_parts import metadata, new_table, parts_of, schema

    rows = {split: dataset.rows(split) for split in splits}
    columns = schema(plan.kinds, widths(loaded)).with_metadata(metadata(plan, loaded, rows))
    with folder.new_file(name) as sink, new_table(sink, columns) as writer:
        for part in parts_of(dataset, splits):
            with pq.ParquetFile(
                parts.path(part.name(plan)), filesystem=parts.filesystem, page_checksum_verification=True
            ) as file:
                writer.write_table(file.read(use_threads=False).replace_schema_metadata(columns.metadata))
    return sum(rows.values())
