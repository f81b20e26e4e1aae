"""python -m orchestration.grafana: put the dashboard of runs and searches where a cluster's Grafana finds it.

A private Ray has it without being asked. Heavy imports stand inside functions, for --help.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from orchestration.command import program, run

app = program("Put the Grafana dashboard of runs and searches where Grafana finds it, or print it.")


@app.command()
def main(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Folder of Grafana's dashboards. Default: that of the Ray whose head runs on this machine.",
            show_default=False,
        ),
    ] = None,
    shown: Annotated[bool, typer.Option("--print", help="Print the dashboard's JSON instead.")] = False,
) -> None:
    from orchestration.telemetry import grafana

    if shown:
        typer.echo(grafana.as_text(), nl=False)
        return
    # Where `ray start` keeps its sessions, unless it was told otherwise.
    sessions = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"  # noqa: S108
    file = grafana.provision(to if to is not None else grafana.folder_of(sessions / "session_latest"))
    typer.echo(f"dashboard: {file}")
    typer.echo("Grafana shows it within seconds, in the folder Ray, where it reads Ray's provisioning")


if __name__ == "__main__":
    run(app)
