"""`evaluation.html`: the answer first, then every figure of every task, then what it rests on.

Decisions: the page is made of `evaluation.json` and the outcomes stored beside it alone, so it can be made
anew without a model or data; it holds no identifier ever, and pixels and texts only where the user asked
for examples, which its first line then says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpma.downstream.contract import Example
from orchestration.reporting.evaluation_facts import evaluation_of
from orchestration.reporting.evaluation_sections import (
    facts,
    how_to_read,
    overlap_line,
    overview,
    provenance,
)
from orchestration.reporting.evaluation_task_sections import OutcomesOf, task_section
from orchestration.reporting.evaluation_verdict import headline, lead
from orchestration.reporting.html import Child, element
from orchestration.reporting.page import Section, page

CONFIDENTIAL = (
    "This page holds pixels and text of patients. Keep it as the data are kept, and do not pass it on."
)


def evaluation_report(
    summary: Mapping[str, Any],
    outcomes: OutcomesOf,
    examples: Mapping[str, Sequence[Example]],
    command: str | None = None,
) -> str:
    """The page as text, about 5 MB, nearly all of it plotly.js.

    `summary`: the content of `evaluation.json`. `outcomes`: model and job key -> what was stored, or None.
    `examples`: by task; empty unless the user asked for them. `command`: what continues the evaluation, as a
    person types it.
    """
    evaluation = evaluation_of(summary)
    shown = any(examples.values())
    split = str((summary.get("data") or {}).get("split", ""))
    kind = " · SYNTHETIC phantom patients" if evaluation.synthetic else ""
    name = str(summary.get("name", "evaluation"))
    which = f" on {name}" if name != "evaluation" else ""
    rest = lead(evaluation)
    head: list[Child] = [
        element("p", CONFIDENTIAL, class_="warning") if shown and not evaluation.synthetic else None,
        element(
            "p", f"Evaluation of run {summary.get('run', '')}{which} · {split} split{kind}", class_="kicker"
        ),
        element("h1", headline(evaluation)),
        element("p", rest, class_="lead") if rest else None,
        facts(evaluation),
        overlap_line(evaluation),
    ]
    sections: list[Section] = [
        overview(evaluation),
        *(task_section(one, outcomes, examples.get(one.task, ())) for one in evaluation.results),
        how_to_read(evaluation, examples=shown),
        provenance(evaluation, command),
    ]
    written = str(summary.get("written", "")).replace("T", " ").replace("Z", " UTC")
    foot = (
        f"Figures of {written}. Nothing is loaded from a network."
        if written
        else ("Nothing is loaded from a network.")
    )
    title = f"Evaluation of {summary.get('run', '')}{which}"
    return page(title, element("div", *head), sections, foot)
