"""The end of a search: retraining, the one comparison on unseen patients, the winner's recipe, the report.

Decisions: held-out patients are judged in Ray tasks, so the driver holds no data and a cluster shares the
work; the comparison is journalled before anything is shown, so the test patients are looked at once per
search; a search that was extended and compared again says how often they were looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpma.errors import JobError, UserError
from orchestration.defects import without_values
from orchestration.search import comparison, steering
from orchestration.search import confirm as confirmation
from orchestration.search.best_recipe import recipe_of_search

if TYPE_CHECKING:
    from orchestration.search.records import SearchState
    from orchestration.search.space import LoadedSpace, SearchSpace
    from orchestration.tuning import Request, Searching

BEST_FILE = "best.yaml"


def confirm(search: Searching) -> None:
    """Retrain the best and the recipe's own values with new seeds, from where that stands."""
    state = search.journal.state
    if state.comparison is not None:
        return
    if not state.confirmations:
        plan = confirmation.plan_confirmation(search.space, state)
        if not plan["candidates"]:
            return
        search.journal.append("confirm", **plan)
        names = ", ".join(candidate["name"] for candidate in plan["candidates"])
        search.display.note(
            f"confirming {names} at {plan['steps']} steps with {len(plan['seeds'])} new seeds"
        )
    steps = search.space.confirmation.steps or state.full_steps
    search.carry_out(
        steering.ConfirmationPhase(
            search.space, search.base, search.journal, search.folder, steps, search.changed
        )
    )


def conclude(search: Searching) -> None:
    """Compare once, write best.yaml and report.html, and say what came out."""
    state, display = search.journal.state, search.display
    if state.comparison is None:
        result = comparison.compare(search.space, state, _outcomes(search))
        result["looks"] = state.looks + (1 if result["patients"] else 0)
        search.journal.append("compare", result=result)
    assert state.comparison is not None
    report = write_results(search.request, search.loaded, state)
    if not state.ended:
        search.journal.append("end")
    display.console.print(display.table())
    display.note(state.comparison["reason"])
    if state.comparison.get("looks", 0) > 1:
        display.note(
            f"the test patients were compared on {state.comparison['looks']} times in this search: "
            "the interval is that of one look"
        )
    display.note(f"recipe: {search.folder.described(BEST_FILE)}")
    display.note(f"report: {report}")


def write_results(request: Request, loaded: LoadedSpace, state: SearchState) -> str:
    """Write best.yaml and report.html from the state; return the report's place."""
    best = recipe_of_search(loaded.space, loaded.base, state, request.name)
    request.folder.write(BEST_FILE, best.encode())
    return write_report(request, loaded.space, state)


def write_report(request: Request, space: SearchSpace, state: SearchState) -> str:
    """Write report.html from the state; return its place."""
    from orchestration.reporting.search_report import write_search_report

    return str(write_search_report(request.folder, space, state, command=request.command))


def _outcomes(search: Searching) -> dict[tuple[str, int], Any]:
    """Outcomes on test patients of the retrainings that are compared, by candidate and seed."""
    import ray

    from mpma.metrics.patient_outcomes import PatientOutcomes

    needed = confirmation.needed_outcomes(search.space, search.journal.state)
    if not needed:
        return {}
    search.display.note(f"comparing on the test patients: {len(needed)} models")
    place = search.place
    judge = ray.remote(max_retries=3)(judge_run).options(
        num_cpus=place.cpus_per_worker, num_gpus=place.gpus if place.device == "cuda" else 0
    )
    runs = search.folder.child(steering.CONFIRMATION).location
    pending = {
        key: judge.remote(
            runs, steering.confirmation_name(*key), place.data, place.device, place.precision, place.threads
        )
        for key in needed
    }
    found: dict[tuple[str, int], Any] = {}
    for key, reference in pending.items():
        content, mistake = ray.get(reference)
        if mistake is not None:
            raise JobError(f"comparison of {steering.confirmation_name(*key)}: {mistake[0]}", mistake[1])
        found[key] = PatientOutcomes.from_bytes(content)
    return found


@without_values
def judge_run(
    runs: str, name: str, data: str, device: str, precision: str, threads: int
) -> tuple[bytes, tuple[str, str | None] | None]:
    """Outcomes of a run on the test patients, packed; or what went wrong. Runs in a Ray task."""
    import os

    os.umask(0o077)
    import torch

    from mpma.data.dataset import Dataset
    from mpma.training.held_out import held_out_outcomes
    from mpma.training.run_directory import RunDirectory

    torch.set_num_threads(threads)
    try:
        outcomes = held_out_outcomes(
            RunDirectory.at(runs, name), Dataset.open(data), device=torch.device(device), precision=precision
        )
    except UserError as error:
        return b"", (error.message, error.hint)
    return outcomes.to_bytes(), None
