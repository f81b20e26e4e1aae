"""python -m orchestration.tune: search hyper-parameters of pre-training, or continue a search.

Without an argument the masking ratios are searched on synthetic phantom pairs on this machine. Heavy
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
DEMO_SPACE = Path(__file__).resolve().parents[1] / "search_spaces" / "masking.yaml"

app = program("Search hyper-parameters of pre-training, or continue a search of the same name.")


@app.command()
def main(
    space: Annotated[
        Path | None,
        typer.Option("--space", help="Space file (YAML). Default: masking ratios.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Dataset directory made by orchestration.ingest. Default: phantom pairs."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Recipe to vary. Default: the space file's own.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the search; the same name continues it. Default: the space's name."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a key of the recipe or the space: --set training.steps=500. Repeatable."
        ),
    ] = None,
    searches: Annotated[
        str, typer.Option("--searches", help="Where search directories are kept (path or URI).")
    ] = "searches",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to search on. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Logical CPUs of the private Ray on this machine.")
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard with the private Ray.")] = True,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check space, recipe, data and resources without a cluster, and end."),
    ] = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Forecast trials, hours and disk from measured steps, and end.")
    ] = False,
    rank_correlation: Annotated[
        bool,
        typer.Option(
            "--rank-correlation",
            help="Measure how well the space's cheaper settings (proxies) rank configurations, and end.",
        ),
    ] = False,
    points: Annotated[
        int, typer.Option("--points", min=4, help="Configurations of --rank-correlation.")
    ] = 10,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(address or os.environ.get("RAY_ADDRESS"), [data, searches])
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    from orchestration import tuning

    file = space if space is not None else DEMO_SPACE
    request = tuning.Request(
        space=file,
        config=config,
        overrides=tuple(overrides or ()),
        data=data,
        name=name or file.stem,
        searches=searches,
        address=address or os.environ.get("RAY_ADDRESS") or None,
        cpus=cpus,
        dashboard=dashboard,
        started=STARTED,
    )
    if check:
        tuning.check(request)
    elif forecast:
        tuning.forecast(request)
    elif rank_correlation:
        tuning.rank(request, points)
    else:
        tuning.tune(request)


if __name__ == "__main__":
    run(app)
