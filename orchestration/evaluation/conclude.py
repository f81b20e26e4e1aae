"""The report page of an evaluation, made of its summary and the stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpma.data.storage import Storage
from mpma.downstream.config import TASKS
from mpma.downstream.contract import Example
from mpma.downstream.summary import JUDGED_MODEL
from mpma.metrics.outcomes import Outcomes
from orchestration.evaluation.store import ResultStore


def written_report(summary: Mapping[str, Any], results: Storage, *, with_examples: bool) -> str:
    """The page as text; examples only where the user asked for them."""
    from orchestration.reporting.evaluation_report import evaluation_report

    store = ResultStore(results)
    files = {
        (model, key): name
        for task in TASKS
        for model, names in (summary.get(task) or {}).get("files", {}).items()
        for key, name in names.items()
    }

    def outcomes(model: str, key: str) -> Outcomes | None:
        name = files.get((model, key))
        return None if name is None else store.outcomes(name)

    examples: dict[str, Sequence[Example]] = {}
    if with_examples:
        for task in TASKS:
            named = (summary.get(task) or {}).get("files", {}).get(JUDGED_MODEL, {})
            for name in named.values():
                if found := store.examples(name):
                    examples[task] = found
                    break
    return evaluation_report(summary, outcomes, examples)
