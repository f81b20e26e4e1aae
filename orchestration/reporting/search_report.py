"""`report.html` of a search: the answer first, then what it rests on.

Decisions: the page is made of the journal's state alone (and pictures, where the confirmation's runs drew
any), so it can be written at any time, of a search that is running, broken or done; it holds no report
text and no identifier, but may hold pictures, so it is readable by its owner only; it appears whole or
not at all.
"""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime

from mpma.data.storage import Storage, open_storage
from orchestration.reporting.html import Child, element
from orchestration.reporting.page import Section, page
from orchestration.reporting.parameter_sections import curves, parameters, pareto
from orchestration.reporting.search_facts import confirmed, synthetic
from orchestration.reporting.search_sections import (
    budget,
    confirmation,
    facts,
    pictures,
    provenance,
    settings,
)
from orchestration.reporting.trials_table import trials_table
from orchestration.reporting.verdict import verdict
from orchestration.reporting.wording import counted, metric_name
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

REPORT_FILE = "report.html"
BEST_FILE = "best.yaml"


def write_search_report(
    folder: Storage | str | os.PathLike[str],
    space: SearchSpace,
    state: SearchState,
    *,
    command: str | None = None,
) -> str:
    """Write `report.html` into the search directory and return its place.

    `command`: what starts or continues the search, as a person types it. Raises `JobError` where the
    directory cannot be written.
    """
    storage = folder if isinstance(folder, Storage) else open_storage(folder)
    storage.make_directory()
    storage.write(REPORT_FILE, search_report(storage, space, state, command=command).encode())
    return storage.described(REPORT_FILE)


def search_report(
    folder: Storage, space: SearchSpace, state: SearchState, *, command: str | None = None
) -> str:
    """The page as text."""
    answer = verdict(space, state)
    metrics = ", ".join(metric_name(one.metric) for one in space.objectives)
    kind = {True: " · SYNTHETIC phantom pairs", False: "", None: ""}[synthetic(state)]
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head: list[Child] = [
        element("p", f"Search {folder.name} · {metrics}{kind}", class_="kicker"),
        element("h1", answer.sentence),
        element("p", answer.lead, class_="lead") if answer.lead else None,
        facts(space, state),
    ]
    commands: list[tuple[str, str]] = []
    if command is not None:
        told = (
            "The same command extends the search when its budget grows:"
            if answer.finished
            else "Continue with:"
        )
        commands.append((told, command))
    if folder.exists(BEST_FILE):
        place = shlex.quote(folder.described(BEST_FILE))
        run = f"python -m orchestration.pretrain --config {place} --name {shlex.quote(folder.name)}-best"
        commands.append((f"{BEST_FILE} is a recipe that runs as it is:", run))
    found = confirmed(space, state)
    winner = found.candidate if found is not None else ""
    sections: list[Section | None] = [
        settings(space, state, commands),
        confirmation(space, state),
        curves(space, state),
        parameters(space, state),
        pareto(space, state),
        budget(space, state),
        pictures(state, folder, winner),
        trials_table(space, state),
        provenance(space, state),
    ]
    trials = counted(len(state.trials), "trial")
    foot = f"Written {moment} from the journal of {trials}. Nothing is loaded from a network."
    title = f"Search {folder.name}"
    return page(title, element("div", *head), [one for one in sections if one is not None], foot)
