"""python -m orchestration.report: runs and searches at a glance, how two differ, how a run is made again.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestration.command import program, run

app = program("List runs and searches, compare two of them, or say how a run is made again.")


@app.command()
def main(
    places: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of runs or searches, or single ones. Default: runs and searches here."),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Compare the two runs, or two searches, that are named.")
    ] = False,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Print the commands that make the named run again.")
    ] = False,
    start: Annotated[
        bool, typer.Option("--start", help="With --reproduce: train it again, where nothing differs here.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="With --start: also where something differs.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the run that --reproduce makes. Default: NAME-again."),
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Where --reproduce puts it.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one object a line.")] = False,
    html: Annotated[
        str | None, typer.Option("--html", help="Write the listing as a page into this file as well.")
    ] = None,
) -> None:
    from mpma.errors import UserError

    named = list(places or [])
    if diff and reproduce:
        raise UserError("--diff and --reproduce: one of the two is expected")
    if html is not None and (diff or reproduce):
        raise UserError("--html: is of the listing alone", "leave out --diff and --reproduce")
    if diff:
        if len(named) != 2:
            raise UserError("--diff: two runs or two searches are expected", "such as --diff runs/a runs/b")
        _diff(named[0], named[1], as_json)
    elif reproduce:
        if len(named) != 1:
            raise UserError("--reproduce: one run is expected", "for example: report --reproduce runs/demo")
        _reproduce(named[0], name, runs, start, anyway)
    else:
        _list(named, as_json, html)


def _list(places: list[str], as_json: bool, html: str | None) -> None:
    from mpma.data.storage import open_storage, shown
    from mpma.errors import UserError
    from orchestration.overview.entries import entries_of
    from orchestration.overview.tables import show_entries

    for place in places:
        if "://" not in place and not Path(place).is_dir():
            raise UserError(f"{place}: no such folder", "name a folder of runs or searches, or a single one")
    wanted = places or [place for place in ("runs", "searches") if Path(place).is_dir()]
    if not wanted:
        raise UserError("neither runs nor searches here", "name where they are: report path/to/runs")
    if html is not None:
        from orchestration.reporting.listing_report import check_file

        check_file(html)
    folders = {place: open_storage(place.rstrip("/")) for place in wanted}
    found = {place: list(entries_of(folder)) for place, folder in folders.items()}
    for place, entries in found.items():
        if as_json:
            for entry in entries:
                typer.echo(json.dumps({"place": shown(place), **entry.plain()}))
        elif html is None:
            show_entries(shown(place), entries)
    if html is not None:
        from orchestration.reporting.listing_report import Listed, write_listing

        written = write_listing(html, [Listed(folders[place], found[place]) for place in wanted])
        typer.echo(f"page: {written}", err=as_json)


def _diff(first: str, second: str, as_json: bool) -> None:
    from dataclasses import asdict

    from mpma.data.storage import open_storage, shown
    from orchestration.overview.compare import compare
    from orchestration.overview.tables import show_difference

    found = compare(open_storage(first.rstrip("/")), open_storage(second.rstrip("/")))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        show_difference(shown(first), shown(second), found)


def _reproduce(place: str, name: str | None, runs: str, start: bool, anyway: bool) -> None:
    from mpma.data.storage import open_storage
    from mpma.errors import JobError, UserError
    from mpma.training.run_directory import check_name
    from orchestration.overview.reproduction import reproduction

    folder = open_storage(place.rstrip("/"))
    made = reproduction(folder, check_name(name or f"{folder.name}-again"), runs)
    for line in made.commands:
        typer.echo(line)
    for line in made.differences:
        typer.echo(f"differs here: {line}")
    if not start:
        return
    if made.differences and not anyway:
        raise UserError(
            f"{folder.name}: {len(made.differences)} things differ here, so equal numbers cannot be promised",
            "mend them, or add --anyway",
        )
    done = subprocess.run([sys.executable, *made.train[1:]], check=False)
    if done.returncode:
        raise JobError(f"{folder.name}: the training that makes it again ended with {done.returncode}")


if __name__ == "__main__":
    run(app)
