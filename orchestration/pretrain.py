"""python -m orchestration.pretrain: pre-train a model, or continue a run.

Without an argument the demo recipe is trained on synthetic phantom pairs on this machine. Heavy
imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from orchestration.command import program, run

STARTED = time.time()
DEMO_RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"

app = program("Pre-train MPMA on image-report pairs, or continue a run of the same name.")


@app.command()
def main(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Recipe (YAML). Default: the demo recipe.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Dataset directory made by orchestration.ingest. Default: phantom pairs."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the run; the same name continues it. Default: the recipe's name."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set training.steps=500. Repeatable.")
    ] = None,
    runs: Annotated[
        str, typer.Option("--runs", help="Where run directories are kept (path or URI).")
    ] = "runs",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to train on. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Logical CPUs of the private Ray on this machine.")
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard with the private Ray.")] = True,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration with origins, and end.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check configuration, data and resources without a cluster, and end."),
    ] = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Forecast time, memory and disk from measured steps, and end.")
    ] = False,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(address or os.environ.get("RAY_ADDRESS"), [data, runs])
    # Read when torch is imported. Threads that spin long while they wait take the cores from those that
    # decode, threads that never spin are slow to wake: 104 pairs/s with either, 120 with this (the demo).
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    from mpma.config import load_config, to_yaml

    recipe = config if config is not None else DEMO_RECIPE
    extra = list(overrides or [])
    if data is not None:
        extra.append(f"data.path={data}")
    resolved = load_config(recipe, extra)
    if print_config:
        typer.echo(to_yaml(resolved.config, resolved.origins), nl=False)
        return

    from orchestration import pretraining, tracking

    if offline:
        tracking.refuse_addresses(resolved.config.tracking)
    request = pretraining.Request(
        config=resolved.config,
        name=name or recipe.stem,
        runs=runs,
        address=address or os.environ.get("RAY_ADDRESS") or None,
        cpus=cpus,
        dashboard=dashboard,
        started=STARTED,
    )
    if check:
        pretraining.check(request)
    elif forecast:
        pretraining.forecast(request)
    else:
        pretraining.pretrain(request)


if __name__ == "__main__":
    run(app)
