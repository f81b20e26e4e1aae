"""The table of all trials: every figure that the charts show, to sort and to copy.

Decisions: trials within the metric's resolution of the best are said to be like it, so that the order of
the rows is not read as more than it is; the order at first is best first.
"""

from __future__ import annotations

from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.page import Section
from orchestration.reporting.search_facts import Resolution, best_trial, feasible, resolution
from orchestration.reporting.wording import STATES, metric_name, number, setting
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.space import SearchSpace


def trials_table(space: SearchSpace, state: SearchState) -> Section:
    """All trials, sortable by any column."""
    title = "All trials"
    if not state.trials:
        return Section("trials", title, [element("p", "None yet.")])
    limit, best = resolution(space, state), best_trial(space, state)
    keys = space.searched_keys()
    shown = best_first(space, state)
    order = [*shown, *(trial.number for trial in state.trials if trial.number not in set(shown))]
    head = [("trial", True), ("state", False), ("step", True)]
    head += [(metric_name(one.metric), True) for one in space.objectives]
    head += [("beside the best", False), *((key, True) for key in keys)]
    head += [("seconds", True), ("retries", True), ("from", False), ("reason", False)]
    rows = [_row(space, state.trials[at], keys, best, limit) for at in order]
    columns = element(
        "tr",
        *(
            element("th", element("button", name, type="button"), scope="col", class_="n" if right else None)
            for name, right in head
        ),
    )
    caption = "Values are those at each trial’s last step; only trials at the same step compare."
    if limit is not None:
        caption += f" “Like the best”: within {limit.difference:.3f}, which is no difference."
    return Section(
        "trials",
        title,
        [
            element("p", caption, class_="note"),
            element(
                "div",
                element("table", element("thead", columns), element("tbody", *rows), class_="sortable"),
                class_="table",
                tabindex="0",
                role="region",
                aria_label="All trials",
            ),
        ],
    )


def _row(
    space: SearchSpace,
    trial: TrialRecord,
    keys: list[str],
    best: TrialRecord | None,
    limit: Resolution | None,
) -> Html:
    metrics = trial.reports.get(trial.step, {})
    cells: list[Html] = [
        _cell(str(trial.number), trial.number),
        element("td", element("span", STATES[trial.state], class_=f"mark {trial.state}")),
        _cell(f"{trial.step:,}" if trial.step else "–", trial.step or ""),
    ]
    for objective in space.objectives:
        value = objective.value(metrics)
        cells.append(_cell(number(value), "" if value is None else value))
    cells.append(element("td", _beside(space, trial, best, limit)))
    for key in keys:
        value = trial.params.get(key)
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        cells.append(_cell(setting(value) if key in trial.params else "", value if plain else None))
    cells.append(_cell(f"{trial.seconds:,.0f}", trial.seconds))
    cells.append(_cell(f"{trial.retries}", trial.retries))
    cells += [element("td", trial.source.replace("_", " ")), element("td", trial.reason, class_="reason")]
    kind = "winner" if trial is best else "default" if trial.source == "default" else None
    return element("tr", *cells, class_=kind)


def _cell(shown: Child, key: float | str | None) -> Html:
    return element("td", shown, class_="n", data_sort=None if key is None else str(key))


def _beside(
    space: SearchSpace, trial: TrialRecord, best: TrialRecord | None, limit: Resolution | None
) -> str:
    if trial is best:
        return "best"
    if trial.reports and not feasible(space, trial, trial.step):
        return "breaks a constraint"
    if best is None or limit is None or trial.step != best.step:
        return ""
    objective = space.objectives[0]
    one, other = objective.value(trial.reports[trial.step]), objective.value(best.reports[best.step])
    if one is None or other is None:
        return ""
    return "like the best" if abs(one - other) <= limit.difference else ""
