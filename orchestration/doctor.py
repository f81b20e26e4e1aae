"""python -m orchestration.doctor: whether this machine or cluster is fit for a run, and what to do where it
is not.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from orchestration.command import program, run

app = program(
    "Look at this machine, or at every node of a cluster, before a run does: each line ok or what to do."
)

MARKS = {"ok": "ok", "warning": "WARNING", "failure": "FAILURE"}


@app.command()
def main(
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to look at. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Recipe (YAML) that there must be room for.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set training.workers=8. Repeatable.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset directory that every node must see, whole.")
    ] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", help="Where runs are to be kept; every node must see it.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Logical CPUs of a private Ray on this machine.")
    ] = None,
) -> None:
    from mpma.config import load_config
    from mpma.data.dataset import Dataset
    from mpma.errors import UserError
    from orchestration.preflight import survey
    from orchestration.preflight.findings import Finding, failure, ok

    wanted = survey.Wanted()
    findings: list[Finding] = []
    places = tuple(place if "://" in place else os.path.abspath(place) for place in (runs,) if place)
    resolved = load_config(config, list(overrides or ())).config if config or overrides else None
    if resolved is not None:
        wanted = survey.Wanted(resolved.training, resolved.worker_counts, places)
    else:
        wanted = survey.Wanted(places=places)
    if data is not None:
        try:
            dataset = Dataset.open(data if "://" in data else os.path.abspath(data))
            findings.append(
                ok("data", f"{dataset.fingerprint}, {dataset.info.splits['train'].pairs} training pairs")
            )
        except UserError as error:
            findings.append(
                failure("data", error.message, error.hint or "make it anew with orchestration.ingest")
            )
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        findings += survey.of_this_machine(wanted, cpus)
    else:
        from orchestration.cluster import connected

        try:
            with connected(address) as connection:
                findings += survey.of_cluster(wanted, connection)
        except UserError as error:
            findings.append(failure("cluster", error.message, error.hint or ""))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        typer.echo(f"{MARKS[finding.level]:8} {finding.name:{width}}  {finding.found}")
        if finding.remedy:
            typer.echo(f"{'':8} {'':{width}}  -> {finding.remedy}")
    bad = sum(finding.level == "failure" for finding in findings)
    if bad:
        typer.echo(f"doctor: {bad} of {len(findings)} checks failed")
        raise typer.Exit(1)
    typer.echo("doctor: all is well")


if __name__ == "__main__":
    run(app)
