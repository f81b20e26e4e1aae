"""Two evaluated runs on the same patients: paired differences, figure by figure.

Decisions: nothing is run; what each run's evaluation stored is drawn under the same resamples. Runs judged on
other data, or on other patients of them, are refused, since a difference of means over different patients
says little. The interval is that of one look over patients and does not contain the variance of training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mpma.data.storage import Storage, open_storage
from mpma.downstream.config import TASKS
from mpma.downstream.summary import JUDGED_MODEL, paired_differences
from mpma.errors import JobError, UserError
from mpma.metrics.outcomes import Outcomes
from orchestration.evaluating import RESULTS, report_name
from orchestration.evaluation.display import shown
from orchestration.evaluation.store import ResultStore


def compare(first: str, second: str, *, name: str | None, out: str | None) -> dict[str, Any]:
    """Print the first run minus the second; write it as JSON to `out` where given. Raises `UserError`."""
    name = name or "evaluation"
    summaries = [_summary(place, name) for place in (first, second)]
    a, b = summaries
    if a["data"]["fingerprint"] != b["data"]["fingerprint"] or a["data"]["split"] != b["data"]["split"]:
        raise UserError(
            f"{first} was judged on data {a['data']['fingerprint']} ({a['data']['split']}), "
            f"{second} on {b['data']['fingerprint']} ({b['data']['split']})",
            "evaluate both on the same --data",
        )
    resamples = int(a["settings"]["resamples"])
    found: dict[str, dict[str, Any]] = {}
    remarks = [
        f"{place}: {summary['overlap']['line']}"
        for place, summary in ((first, a), (second, b))
        if summary["overlap"]["marked"]
    ]
    for task in TASKS:
        if task not in a or task not in b:
            continue
        if a["settings"][task] != b["settings"][task]:
            remarks.append(f"{task}: left out, the two were evaluated with different settings")
            continue
        ours, theirs = _outcomes(first, name, a[task]), _outcomes(second, name, b[task])
        shared = {
            variant: (sorted(set(seeds) & set(theirs[variant])), seeds, theirs[variant])
            for variant, seeds in ours.items()
            if variant in theirs and set(seeds) & set(theirs[variant])
        }
        if not shared:
            remarks.append(f"{task}: left out, the two share no finished job")
            continue
        try:
            found[task] = paired_differences(
                {variant: [mine[key] for key in keys] for variant, (keys, mine, _) in shared.items()},
                {variant: [other[key] for key in keys] for variant, (keys, _, other) in shared.items()},
                resamples,
            )
        except JobError as error:
            remarks.append(f"{task}: left out, {error.message}")
    if not found:
        why = f" ({'; '.join(remarks)})" if remarks else ""
        raise UserError(f"{first} and {second} share no task that both finished{why}", "evaluate both first")
    result = {
        "remarks": remarks,
        "a": first,
        "b": second,
        "name": name,
        "data": a["data"],
        "resamples": resamples,
        "tasks": found,
    }
    _print(result)
    if out is not None:
        root, _, file = out.rpartition("/")
        open_storage(root or ".").write(file, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _summary(place: str, name: str) -> Mapping[str, Any]:
    folder, file = open_storage(place), report_name(name, ".json")
    try:
        summary = json.loads(folder.read(file))
        if summary["schema_version"] != 1:
            raise UserError(f"{place}/{file}: of schema version {summary['schema_version']}; this reads 1")
        return dict(summary)
    except FileNotFoundError:
        raise UserError(
            f"{place}: no {file} there", f"first: python -m orchestration.evaluate --run {place}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{place}/{file}: damaged", "evaluate the run again") from None


def _outcomes(place: str, name: str, section: Mapping[str, Any]) -> dict[str, dict[str, Outcomes]]:
    """Stored outcomes of the judged model by variant and job key."""
    store = ResultStore(_results(place, name))
    files = section.get("files", {}).get(JUDGED_MODEL, {})
    found: dict[str, dict[str, Outcomes]] = {}
    for variant, keys in section["jobs"].items():
        read = {key: store.outcomes(files[key]) for key in keys if key in files}
        found[variant] = {key: one for key, one in read.items() if one is not None}
    return found


def _results(place: str, name: str) -> Storage:
    return open_storage(place).child(RESULTS).child(name)


def _print(result: Mapping[str, Any]) -> None:
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else 140)
    table = Table(title=f"{result['a']} minus {result['b']}")
    for heading in ("task", "figure"):
        table.add_column(heading)
    for heading in ("first", "second", "difference", ""):
        table.add_column(heading, justify="right")
    for task, figures in result["tasks"].items():
        told = False
        for figure, entry in figures.items():
            if not entry["headline"]:
                continue
            a, b, difference = entry["a"], entry["b"], entry["difference"]
            low, high = difference["low"], difference["high"]
            verdict = ""
            if low is not None:
                verdict = "first higher" if low > 0 else "second higher" if high < 0 else "not told apart"
            table.add_row(
                "" if told else task,
                figure,
                "" if a is None else f"{a:.3f}",
                "" if b is None else f"{b:.3f}",
                shown(difference, signed=True),
                verdict,
            )
            told = True
    console.print(table)
    for remark in result["remarks"]:
        console.print(remark, markup=False)
    console.print(
        "95 % intervals over patients, paired; they do not contain the variance of training.", markup=False
    )
