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


def written_report(
    summary: Mapping[str, Any], results: Storage, *, with_examples: bool, command: str | None = None
) -> str:
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
            # One job's examples speak for the task: the largest share of labels, the first seed.
            for key in _shown_first(summary[task]["jobs"] if named else {}):
                if key in named and (found := store.examples(named[key])):
                    examples[task] = found
                    break
    return evaluation_report(summary, outcomes, examples, command)


def _shown_first(jobs: Mapping[str, Sequence[str]]) -> list[str]:
    return [keys[0] for keys in reversed(list(jobs.values())) if keys]
