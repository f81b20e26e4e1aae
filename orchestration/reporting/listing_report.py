"""The listing of runs and searches as a page that can be sorted, searched and kept.

Decisions: the page holds what the listing in a terminal holds and nothing of what the runs were made of; an
address is shown without its keys; a search's own page is linked to by a relative path where both lie on local
disks, and told as an address elsewhere, since no browser opens a bucket's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mpma.data.storage import Storage, open_storage, shown
from mpma.errors import UserError
from orchestration.overview.entries import SHOWN_METRICS, Entry
from orchestration.reporting.blocks import note, table
from orchestration.reporting.html import Child, Html, element, join
from orchestration.reporting.page import Section, page
from orchestration.reporting.wording import counted, metric_name, number

MARKS: Final = {
    "running": "open",
    "finished": "complete",
    "stopped": "waiting",
    "begun": "pruned",
    "damaged": "failed",
}
"""Colour of each state, in the words of the style sheet."""


@dataclass(frozen=True)
class Listed:
    """A place and what is in it."""

    place: Storage
    entries: Sequence[Entry]


def check_file(file: str) -> None:
    """Raise `UserError` where no page can be written: asked before anything is read."""
    if not shown(file).endswith((".html", ".htm")):
        raise UserError(f"--html {shown(file)}: a file that ends with .html is expected")
    if "://" not in file:
        path = Path(file).expanduser()
        if path.is_dir():
            raise UserError(f"--html {file}: is a folder", f"name a file in it, such as {file}/overview.html")
        if not path.absolute().parent.is_dir():
            raise UserError(f"--html {file}: no folder {path.parent} there", "make it, or name another file")


def write_listing(file: str, listed: Sequence[Listed]) -> str:
    """Write the page, whole or not at all, and return its place. Raises `UserError`, `JobError`."""
    check_file(file)
    target = open_storage(file)
    folder = target.parent()
    folder.write(target.name, listing_page(listed, folder).encode())
    return shown(file)


def listing_page(listed: Sequence[Listed], folder: Storage) -> str:
    """The page as text, as it will lie in `folder`."""
    entries = [entry for one in listed for entry in one.entries]
    kinds = Counter(entry.kind for entry in entries)
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    places = ", ".join(one.place.described() for one in listed)
    said = f"{counted(kinds['run'], 'run')} and {counted(kinds['search'], 'search', 'searches')}"
    states = Counter(entry.state for entry in entries)
    head = element(
        "div",
        element("p", "Runs and searches at a glance", class_="kicker"),
        element("h1", said),
        element("p", f"In {places}, as of {moment}.", class_="lead", style="overflow-wrap: anywhere"),
        element(
            "dl",
            *(
                element(
                    "div",
                    element("dt", element("span", state, class_=f"mark {mark}")),
                    element("dd", f"{states[state]:,}"),
                )
                for state, mark in MARKS.items()
            ),
            class_="facts",
        ),
        element(
            "label",
            "Show rows with",
            element("input", type="search", class_="filter", placeholder="words of a name, a state, a hash"),
            class_="filter",
        ),
    )
    sections = [_problems(listed)] if any(entry.problem for entry in entries) else []
    for at, one in enumerate(listed):
        runs = [entry for entry in one.entries if entry.kind == "run"]
        searches = [entry for entry in one.entries if entry.kind == "search"]
        if searches:
            sections.append(_searches(f"searches-{at}", one, searches, folder))
        if runs or not searches:
            sections.append(_runs(f"runs-{at}", one, runs))
    foot = "Made of what the folders themselves hold. Nothing is loaded from a network."
    return page("Runs and searches", head, sections, foot, charts=False)


def _problems(listed: Sequence[Listed]) -> Section:
    rows: list[list[Child]] = [
        [element("strong", entry.name), one.place.described(), entry.problem]
        for one in listed
        for entry in one.entries
        if entry.problem
    ]
    return Section("problems", "What is wrong", [table(["name", "in", "what"], rows)])


def _runs(name: str, one: Listed, entries: Sequence[Entry]) -> Section:
    title = f"Runs in {one.place.described()}"
    if not entries:
        return Section(name, title, [element("p", "None there.")])
    head = [("run", False), ("state", False), ("steps", True), ("pairs/s", True)]
    head += [(words, True) for words in SHOWN_METRICS.values()]
    head += [("data", False), ("config", False), ("revision", False)]
    rows = []
    for entry in entries:
        speed = entry.last.get("pairs_per_second")
        best = [entry.best.get(metric) for metric in SHOWN_METRICS]
        rows.append(
            [
                element("td", entry.name, class_="first"),
                *_standing(entry),
                _cell("" if speed is None else f"{speed:,.4g}", speed),
                *(_figure(found, "step") for found in best),
                *_hashes(entry),
            ]
        )
    told = "Best validation figures, and the step each was at. Equal hashes under config: runs that could "
    return Section(name, title, [note(told, "continue one another."), _table(title, head, rows)])


def _searches(name: str, one: Listed, entries: Sequence[Entry], folder: Storage) -> Section:
    title = f"Searches in {one.place.described()}"
    metrics = list(dict.fromkeys(metric for entry in entries for metric in entry.best))
    head = [("search", False), ("state", False), ("trials", True)]
    head += [(metric_name(metric), True) for metric in metrics]
    head += [("report", False), ("data", False), ("space", False), ("revision", False)]
    rows = [
        [
            element("td", entry.name, class_="first"),
            *_standing(entry),
            *(_figure(entry.best.get(metric), "trial") for metric in metrics),
            element("td", _link(one, entry, folder)),
            *_hashes(entry),
        ]
        for entry in entries
    ]
    told = (
        "The best of the complete trials that keep every constraint, which is no proof: a search’s own report"
    )
    return Section(name, title, [note(told, " says what was confirmed."), _table(title, head, rows)])


def _table(title: str, head: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Html]]) -> Html:
    columns = (
        element("th", element("button", name, type="button"), scope="col", class_="n" if right else None)
        for name, right in head
    )
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *columns)),
            element("tbody", *(element("tr", *row) for row in rows)),
            class_="sortable",
        ),
        class_="table",
        tabindex="0",
        role="region",
        aria_label=title,
    )


def _standing(entry: Entry) -> tuple[Html, Html]:
    """The cells of the state and of the progress."""
    done, most = f"{entry.done:,}", entry.of
    bar = None if not most else element("progress", value=str(min(entry.done, most)), max=str(most))
    told = done if most is None else f"{done} of {most:,}"
    state = element("span", entry.state, class_=f"mark {MARKS.get(entry.state, 'pruned')}")
    return element("td", state), _cell(join(told, bar), entry.done)


def _figure(found: tuple[float, int] | None, at: str) -> Html:
    if found is None:
        return _cell("", "")
    value, where = found
    return _cell(join(number(value), element("small", f"{at} {where:,}")), value)


def _hashes(entry: Entry) -> list[Html]:
    told = ((entry.data.removeprefix("sha256:"), 8), (entry.config, 6), (entry.revision, 7))
    return [
        element("td", element("code", value[:length], title=value) if value else "") for value, length in told
    ]


def _link(one: Listed, entry: Entry, folder: Storage) -> Child:
    if not entry.report:
        return None
    if one.place.is_local and folder.is_local:
        # Quoted whole, so that no folder's name is read as a scheme.
        place = quote(os.path.relpath(one.place.path(entry.report), folder.root))
        return element("a", "report.html", href=place)
    return element("code", one.place.described(entry.report))


def _cell(told: Child, key: float | str | None) -> Html:
    return element("td", told, class_="n", data_sort=None if key is None else str(key))
