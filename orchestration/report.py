"""python -m orchestration.report: runs and searches at a glance, how two runs differ, how one is made again.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.command import program, run

app = program("List runs and searches, compare two runs, or say how one is made again.")


@app.command()
def main(
    places: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of runs or searches, or single ones. Default: runs and searches here."),
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Compare the two runs that are named.")] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="For machines, one object.")] = False,
) -> None:
    from mpma.errors import UserError

    named = list(places or [])
    if diff:
        if len(named) != 2:
            raise UserError("--diff: two runs are expected", "for example: report --diff runs/a runs/b")
        _diff(named[0], named[1], as_json)
    elif reproduce:
        if len(named) != 1:
            raise UserError("--reproduce: one run is expected", "for example: report --reproduce runs/demo")
        _reproduce(named[0], name, runs, start, anyway)
    else:
        _list(named, as_json)


def _list(places: list[str], as_json: bool) -> None:
    from mpma.data.storage import open_storage, shown
    from mpma.errors import UserError
    from orchestration.overview.entries import entries_of

    for place in places:
        if "://" not in place and not Path(place).is_dir():
            raise UserError(f"{place}: no such folder", "name a folder of runs or searches, or a single one")
    wanted = places or [place for place in ("runs", "searches") if Path(place).is_dir()]
    if not wanted:
        raise UserError("neither runs nor searches here", "name where they are: report path/to/runs")
    found = {place: list(entries_of(open_storage(place.rstrip("/")))) for place in wanted}
    if as_json:
        typer.echo(
            json.dumps({place: [entry.plain() for entry in entries] for place, entries in found.items()})
        )
        return
    for place, entries in found.items():
        _table(shown(place), entries)


def _table(place: str, entries: list[Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not entries:
        console.print(f"{place}: nothing there", markup=False)
    of_kind = {kind: [entry for entry in entries if entry.kind == kind] for kind in ("run", "search")}
    if of_kind["run"]:
        console.print(_runs_table(place, of_kind["run"]))
    if of_kind["search"]:
        console.print(_searches_table(place, of_kind["search"]))
    for entry in entries:
        if entry.problem:
            console.print(f"{entry.name}: {entry.problem}", markup=False)


def _runs_table(place: str, entries: list[Any]) -> Any:
    from rich.table import Table

    from orchestration.overview.entries import SHOWN_METRICS

    table = Table(
        title=f"{place}: best validation figures @ their steps", title_justify="left", pad_edge=False
    )
    headings = ("run", "state", "steps", "pairs/s", *SHOWN_METRICS.values(), "config")
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", ratio=None)
    for entry in entries:
        speed = entry.last.get("pairs_per_second")
        found = (entry.best.get(name) for name in SHOWN_METRICS)
        table.add_row(
            entry.name,
            entry.state,
            f"{entry.done}/{entry.of if entry.of is not None else '?'}",
            "" if speed is None else f"{speed:.4g}",
            *("" if best is None else f"{best[0]:.3f} @{best[1]}" for best in found),
            entry.config[:6],
        )
    return table


def _searches_table(place: str, entries: list[Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"{place}, best complete trials", title_justify="left")
    for heading in ("search", "state", "trials", "best", "data"):
        table.add_column(heading, no_wrap=heading not in ("search", "best"), overflow="fold")
    for entry in entries:
        best = "\n".join(
            f"{_short(name)} {value:.4g} (trial {number})" for name, (value, number) in entry.best.items()
        )
        of = "" if entry.of is None else f"/{entry.of}"
        table.add_row(entry.name, entry.state, f"{entry.done}{of}", best, entry.data[:8])
    return table


def _short(metric: str) -> str:
    return metric.rsplit("/", 1)[-1]


def _diff(first: str, second: str, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from mpma.data.storage import open_storage
    from orchestration.overview.difference import difference

    found = difference(open_storage(first.rstrip("/")), open_storage(second.rstrip("/")))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for topic, rows in vars(found).items():
        if not rows:
            console.print(
                f"{topic}: " + ("no figure in both" if topic == "metrics" else "equal"), markup=False
            )
            continue
        table = Table(title=topic, title_justify="left")
        for heading in ("", first, second, "difference" if topic == "metrics" else ""):
            table.add_column(heading, overflow="fold")
        for row in rows:
            change = f"{row.second - row.first:+.4g}" if topic == "metrics" else ""
            table.add_row(row.what, _shown(row.first), _shown(row.second), row.note or change)
        console.print(table)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
