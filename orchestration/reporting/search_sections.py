"""The sections of a search's report, in the order in which a person asks.

Decisions: every section says in words what its picture shows and where that must not be trusted; one that
has nothing to show says why, or is left out where the question does not arise (one objective has no front).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mpma.data.storage import Storage
from orchestration.reporting.blocks import note, paragraph, table
from orchestration.reporting.html import Child, Html, element, join
from orchestration.reporting.page import Section, chart
from orchestration.reporting.search_charts import (
    budget_bars,
    difference_plot,
    seed_dots,
)
from orchestration.reporting.search_facts import (
    Confirmed,
    best_trial,
    candidate_params,
    chance_level,
    comparisons,
    confirmed,
    default_params,
    resolution,
    spent,
    synthetic,
    validation_by_candidate,
    values_at,
)
from orchestration.reporting.wording import (
    STATES,
    counted,
    duration,
    metric_name,
    number,
    percent,
    setting,
    signed,
)
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

MOST_PICTURE_BYTES = 3_000_000
PICTURE = re.compile(r"step_\d+\.png")


def settings(space: SearchSpace, state: SearchState, commands: Sequence[tuple[str, str]]) -> Section:
    """What to run, and what would change."""
    found = confirmed(space, state)
    own = default_params(state)
    if found is not None:
        params, whose = candidate_params(state, found.candidate), found.candidate
    else:
        best = best_trial(space, state)
        params, whose = (None, "") if best is None else (best.params, f"trial {best.number}")
    children: list[Child] = []
    if params is not None and own is not None:
        named = found is not None and found.named
        rows = [
            [element("code", key), _setting_of(own, key), _setting_of(params, key)]
            for key in [*space.parameters, *(set(params) - set(space.parameters))]
            if _setting_of(own, key) != _setting_of(params, key)
        ]
        if rows:
            children.append(table(["key", "the recipe’s own", whose], rows))
            if not named:
                children.append(
                    note(f"The values of {whose} were not shown to be better than the recipe’s own.")
                )
        else:
            children.append(paragraph(f"{whose.capitalize()} has the recipe’s own values: no key changes."))
    for told, command in commands:
        children += [element("p", told), element("pre", command)]
    return Section("settings", "Values and commands", children)


def _setting_of(params: Mapping[str, Any], key: str) -> str:
    return setting(params[key]) if key in params else "not used"


def confirmation(space: SearchSpace, state: SearchState) -> Section:
    """Retraining with new seeds, and the one comparison on patients never seen."""
    name, title = "confirmation", "Confirmation"
    found = confirmed(space, state)
    rows = validation_by_candidate(space, state) or (found.validation if found else {})
    if not rows:
        if space.confirmation.candidates == 0:
            told = (
                "The space file asks for no confirmation (confirmation.candidates: 0), so no winner is named."
            )
        else:
            told = (
                f"Not begun. The best {space.confirmation.candidates} and the recipe’s own values will be "
                f"retrained at full length with {counted(space.confirmation.seeds, 'new seed')} each."
            )
        return Section(name, title, [paragraph(told)])
    metric = space.objectives[0].metric
    winner = found.candidate if found else ""
    children: list[Child] = [
        paragraph(
            "The best trials and the recipe’s own values were trained anew at full length with new seeds. "
            "Validation patients chose the candidate; patients of the test split, which nothing before had "
            "seen, were asked once."
        )
    ]
    failed = [run for run in state.confirmations.values() if run.failed]
    if failed:
        told = "; ".join(f"{run.candidate}, seed {run.seed}: {run.failed}" for run in failed)
        children.append(note(f"{counted(len(failed), 'retraining')} failed: {told}"))
    children.append(chart(seed_dots(rows, winner, metric, "validation"), _chance(space, state)))
    if found is not None:
        children.append(element("h3", "Patients that the search never saw"))
        for one in comparisons(space, state):
            children += _comparison(one)
        if found.reason:
            children.append(note(found.reason))
    else:
        children.append(paragraph("The comparison on test patients has not been made yet."))
    return Section(name, title, children)


def _chance(space: SearchSpace, state: SearchState) -> str:
    objective = space.objectives[0]
    runs = [run.metrics for run in state.confirmations.values() if run.metrics]
    level = chance_level(objective.metric, runs[0] if runs else {})
    told = "A dot a seed, the upright is their mean."
    return told if level is None else f"{told} A model that knows nothing would get {number(level)}."


def _comparison(found: Confirmed) -> list[Child]:
    if found.difference is None:
        return []
    children: list[Child] = []
    rows = []
    for whose, mean, seeds, key in (
        (found.candidate or "candidate", found.winner, found.winner_per_seed, "winner"),
        ("recipe’s own values", found.default, found.default_per_seed, "default"),
    ):
        spread = found.seed_spread.get(key)
        each = " · ".join(number(value) for value in seeds) or "–"
        rows.append([whose, number(mean), each, number(spread)])
    head = [f"{metric_name(found.metric)}, test", "mean", "by seed", "spread over seeds"]
    children.append(table(head, rows, {1, 2, 3}))
    patients = counted(found.patients, "patient") if found.patients else "the test patients"
    drawn = f", {found.resamples:,} resamples" if found.resamples else ""
    text = f"Paired bootstrap over {patients}{drawn}; ranks are those in the full gallery. "
    text += "The interval holds the chance in who the patients are, not the chance in training: "
    text += "the seeds below it show that."
    children.append(chart(difference_plot(found), text))
    if found.interval:
        low, high = found.interval
        verdict = "better than zero" if found.better else "worse than zero" if found.worse else None
        told = f"The whole interval is {verdict}." if verdict else "The interval contains zero."
        interval = f"{percent(found.level)} interval {signed(low)} to {signed(high)}"
        children.append(paragraph(f"Difference {signed(found.difference)}, {interval} on {patients}. {told}"))
    return children


def budget(space: SearchSpace, state: SearchState) -> Section:
    """Device time by rung, saved, retries and failures."""
    found = spent(space, state)
    children: list[Child] = []
    told = f"Trials took {duration(found.trials)} of device time"
    if found.confirmation:
        told += f", the confirmation {duration(found.confirmation)}"
    told += f", over {duration(state.wall_seconds)} of work on the search." if state.wall_seconds else "."
    if state.search_ended and found.full_length and found.trials and len(state.trials) > 1:
        saved = max(0.0, found.full_length - found.trials)
        told += (
            f" Training all {len(state.trials)} in full would have taken about {duration(found.full_length)}"
            f": {duration(saved)} saved ({saved / found.full_length:.0%})."
        )
    children.append(paragraph(told))
    if found.trials + found.confirmation > 0:
        text = "Time on devices, dealt to rungs by steps. A worker on CPU counts as one device."
        children.append(chart(budget_bars(found), text))
    if found.retries:
        children.append(
            paragraph(f"{counted(found.retries, 'retry', 'retries')} after a failure or a lost node.")
        )
    if found.failures:
        rows: list[list[Child]] = [[f"{count:,}", reason] for reason, count in found.failures]
        children += [element("h3", "Failures"), table(["times", "reason"], rows, {0})]
    else:
        children.append(paragraph("No trial failed."))
    if state.search_ended:
        children.append(note(f"The search ended because: {state.search_ended}."))
    return Section("budget", "Budget", children)


def pictures(state: SearchState, folder: Storage, winner: str) -> Section | None:
    """Reconstructions of the winner beside the default, where the runs drew any."""
    found = {name: _last_picture(state, folder, name) for name in (winner, "default") if name}
    figures = []
    for name, picture in found.items():
        if picture is not None:
            seed, content = picture
            whose = "The recipe’s own values" if name == "default" else name[:1].upper() + name[1:]
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            alternative = f"Reconstructions by {name}: original, masked and reconstructed images"
            image = element("img", src=source, alt=alternative)
            figures.append(element("figure", image, element("figcaption", f"{whose}, seed {seed}")))
    if not figures:
        return None
    children: list[Child] = [element("div", *figures, class_="pictures")]
    if synthetic(state) is not True:
        children.append(
            note("These are pictures of validation pairs: this page is as confidential as the data.")
        )
    return Section("pictures", "Reconstructions", children)


def _last_picture(state: SearchState, folder: Storage, name: str) -> tuple[int, bytes] | None:
    for candidate, seed in sorted(state.confirmations):
        if candidate == name:
            place = folder.child("confirmation").child(f"{name}-seed{seed}").child("pictures")
            names = sorted(found for found in place.names() if PICTURE.fullmatch(found))
            if names:
                content = place.read(names[-1])
                return (seed, content) if len(content) <= MOST_PICTURE_BYTES else None
    return None


def provenance(space: SearchSpace, state: SearchState) -> Section:
    """How values came about: the objective, what was held equal, what a difference means, versions."""
    begun = state.begun or {}
    told = begun.get("provenance")
    origin = told if isinstance(told, Mapping) else {}
    rows: list[tuple[str, Child]] = []
    for objective in space.objectives:
        rows.append(("objective", join(element("code", objective.metric), f", {objective.direction}")))
    for constraint in space.constraints:
        bound = (
            ("at most", constraint.at_most)
            if constraint.at_most is not None
            else ("at least", constraint.at_least)
        )
        rows.append(("constraint", join(element("code", constraint.metric), f" {bound[0]} {bound[1]:g}")))
    rows.append(
        (
            "measured on",
            "validation patients, as representations will be used: full unmasked image, whole report, centre "
            "view. docs/validation.md defines every metric.",
        )
    )
    rows.append(
        (
            "held equal",
            f"pairs seen: every full-length trial trains {state.full_steps:,} steps. At equal compute little "
            "masking would fare worse, since it costs more a step.",
        )
    )
    limit = resolution(space, state)
    if limit is not None:
        rows.append(
            (
                "resolution",
                f"differences up to {limit.difference:.3f} say nothing: {'; '.join(limit.reasons)}",
            )
        )
    rows.append(
        ("searched by", f"{space.searcher.name}, scheduler {space.scheduler.name}, seed {space.seed}")
    )
    if synthetic(state) is not None:
        rows.append(
            ("pairs", "SYNTHETIC phantom pairs" if synthetic(state) else "as data.path of the recipe")
        )
    for key, words in (("data_fingerprint", "data fingerprint"), ("space_hash", "hash of the space")):
        if begun.get(key):
            rows.append((words, element("code", str(begun[key]))))
    for key in ("config_hash", "mpma", "git_revision", "python"):
        if origin.get(key):
            rows.append((key.replace("_", " "), element("code", str(origin[key]))))
    packages, hardware = origin.get("packages"), origin.get("hardware")
    if isinstance(packages, Mapping):
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
    if isinstance(hardware, Mapping):
        gpus = hardware.get("gpus") or []
        shown = f"{hardware.get('cpu', 'CPU')}, {hardware.get('cores', '?')} cores"
        rows.append(("hardware", f"{shown}, {', '.join(map(str, gpus))}" if gpus else f"{shown}, no GPU"))
    entries = [part for name, value in rows for part in (element("dt", name), element("dd", value))]
    return Section("provenance", "How it was measured", [element("dl", *entries, class_="plain")])


def facts(space: SearchSpace, state: SearchState) -> Html:
    """Four figures under the answer."""
    found = spent(space, state)
    count = {one: sum(trial.state == one for trial in state.trials) for one in STATES}
    detail = ", ".join(f"{amount} {STATES[one]}" for one, amount in count.items() if amount)
    entries = [("trials", f"{len(state.trials):,}", detail)]
    entries.append(
        ("device time of trials", duration(found.trials), f"{duration(state.wall_seconds)} by the clock")
    )
    if state.search_ended and found.full_length and len(state.trials) > 1:
        saved = max(0.0, 1 - found.trials / found.full_length)
        entries.append(
            ("saved", f"{saved:.0%}", f"of {duration(found.full_length)}, were all trained in full")
        )
    best = best_trial(space, state)
    if best is not None:
        values = values_at(space, best, best.step) or [float("nan")]
        metric = metric_name(space.objectives[0].metric)
        entries.append(
            ("best on validation", number(values[0]), f"{metric}, trial {best.number} at step {best.step:,}")
        )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", detail)))
            for name, value, detail in entries
        ),
        class_="facts",
    )
