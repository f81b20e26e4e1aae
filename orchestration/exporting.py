"""The work behind `orchestration.export`: run, data and search are found, the rest is mpma.exporting.export.

Decisions: the dataset is only read for the card, so a run whose data are elsewhere is exported as well, and
the card says that they were not at hand; a dataset that is named and is not the run's is a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.errors import UserError
from mpma.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    run: str | None
    out: str | None
    step: int | None
    overwrite: bool
    data: str | None
    searches: str


def export(request: Request) -> None:
    """Export a run and say what was written. Raises `UserError` and `JobError`."""
    from mpma.exporting.export import export_run

    run, out = RunDirectory.opened(request.run), _out(request)
    dataset = _dataset(request, run)
    exported = export_run(
        run,
        open_storage(out),
        step=request.step,
        overwrite=request.overwrite,
        dataset=dataset,
        searches=open_storage(request.searches),
    )
    console, what = Console(highlight=False, soft_wrap=True), exported.description
    console.print(f"model: run {what.name}, step {what.step}, weights {what.weights_hash}", markup=False)
    if dataset is None:
        console.print("data: not at hand; the card does not name sources and licences", markup=False)
    for name in exported.left_out:
        console.print(f"card: {name} is of other weights or cannot be read, and left out", markup=False)
    console.print(f"written: {out}, {exported.bytes / 1e6:.1f} MB, card {out}/README.md", markup=False)
    console.print("the tokeniser's vocabulary comes from reports: read the card before sharing", markup=False)


def check(request: Request) -> None:
    """Say whether the export could be made; nothing is written."""
    from mpma.exporting.layout import check_free
    from mpma.loading import load_run

    run, out = RunDirectory.opened(request.run), _out(request)
    check_free(open_storage(out), overwrite=request.overwrite)
    dataset = _dataset(request, run)
    loaded = load_run(run, step=request.step)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"model: {loaded.origin}, weights {loaded.weights_hash}", markup=False)
    console.print(f"data: {'not at hand' if dataset is None else dataset.fingerprint}", markup=False)
    console.print("check: all is well", markup=False)


def _out(request: Request) -> str:
    if request.out is None:
        raise UserError("--out is missing", "name a folder to write, such as --out exports/demo")
    return request.out.rstrip("/") or "/"


def _dataset(request: Request, run: RunDirectory) -> Dataset | None:
    from mpma.loading import trained_on
    from orchestration.own_data import find_own_data

    fingerprint = trained_on(run, request.step)
    if request.data is None:
        return find_own_data(run, fingerprint)
    dataset = Dataset.open(request.data)
    if dataset.fingerprint != fingerprint:
        raise UserError(
            f"--data {request.data} is {dataset.fingerprint}; {run.name} was trained on {fingerprint}"
        )
    return dataset
