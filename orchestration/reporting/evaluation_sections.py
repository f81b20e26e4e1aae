"""The sections around the tasks: facts, overview, how to read, settings and provenance.

Decisions: what marks a result (shared patients, made-up patients, examples of patients) stands at the top,
before any figure; what a figure's interval does not contain is told once, for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestration.reporting.blocks import note, paragraph, table
from orchestration.reporting.evaluation_charts import Row, difference_forest, forest
from orchestration.reporting.evaluation_facts import UNTRAINED, Evaluation, TaskResult, share
from orchestration.reporting.evaluation_tables import overview_table
from orchestration.reporting.evaluation_task_sections import model_legend
from orchestration.reporting.evaluation_wording import figure_name, model_name, task_name, variant_name
from orchestration.reporting.html import Child, Html, element, join
from orchestration.reporting.page import Section, chart
from orchestration.reporting.wording import counted, duration, setting


def facts(evaluation: Evaluation) -> Html:
    """The run, the data and the work in four figures."""
    summary = evaluation.summary
    data: Mapping[str, Any] = summary.get("data") or {}
    split = str(data.get("split", ""))
    judged = evaluation.models[0]
    model = next(one for one in summary["models"] if one["name"] == judged)
    step = model.get("step")
    entries: list[tuple[str, str, str]] = [
        ("run", str(summary.get("run", "")), f"step {step:,}" if isinstance(step, int) else "")
    ]
    patients = (data.get("patients") or {}).get(split)
    pairs = (data.get("pairs") or {}).get(split)
    learned = (data.get("pairs") or {}).get("train")
    told = f"{pairs:,} pairs" if pairs is not None else ""
    if learned and split != "train":
        told += f"; learned from {learned:,}"
    entries.append((f"patients of the {split} split", f"{patients:,}" if patients is not None else "–", told))
    tasks = [result for result in evaluation.results if result.names]
    rest = len(evaluation.results) - len(tasks)
    entries.append(
        ("tasks with figures", f"{len(tasks)}", f"{rest} skipped or failed" if rest else "of all asked for")
    )
    seconds = summary.get("seconds")
    if isinstance(seconds, (int, float)):
        written = str(summary.get("written", "")).replace("T", " ").replace("Z", " UTC")
        entries.append(("time", duration(float(seconds)), f"ended {written}" if written else ""))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", detail)))
            for name, value, detail in entries
        ),
        class_="facts",
    )


def overlap_line(evaluation: Evaluation) -> Html | None:
    """Whether pre-training saw patients that are judged on; a warning where it did."""
    overlap: Mapping[str, Any] = evaluation.summary.get("overlap") or {}
    line = str(overlap.get("line") or "")
    line = f"{line[:1].upper()}{line[1:]}." if line else ""
    if evaluation.spoiled:
        allowed = (
            " This was allowed by --allow-overlap" if overlap.get("allowed") else " This was not refused"
        )
        told = f"{line}{allowed}; the figures do not hold for patients whom pre-training never saw."
        return element("p", element("strong", "Marked: "), told, class_="warning")
    if evaluation.unchecked:
        told = f"{line} Whether pre-training saw these patients is not known."
        return element("p", element("strong", "Marked: "), told, class_="warning")
    return element("p", line, class_="note overlap") if line else None


def overview(evaluation: Evaluation) -> Section:
    """The lead figures of all tasks: charts, and the table behind them."""
    values, differences = [], []
    for result in evaluation.results:
        rows = list(_rows(result))
        if rows:
            values += [Row(_heading(result)), *(row for row, _ in rows)]
            differences += [Row(_heading(result)), *(row for _, row in rows)]
    children: list[Child] = []
    if values:
        title = "value and 95 % interval"
        charts = [chart(forest(values, evaluation.models, title, "Lead figures of all tasks by model"))]
        compared = UNTRAINED in evaluation.models[1:]
        known = any(one.value is not None for row in differences for one in row.estimates.values())
        if compared and known:
            figure = difference_forest(
                differences, "pre-trained minus untrained", "Differences to the untrained model"
            )
            # Rows of both charts stand at the same height.
            figure = type(figure)(
                figure.traces, figure.layout, charts_height(values, evaluation), figure.described
            )
            charts.append(chart(figure))
        children += [
            model_legend(evaluation.models),
            element("div", *charts, class_="grid wide"),
        ]
        if compared and known:
            told = "Differences are blue where the whole interval lies above zero, red where it lies below, "
            told += "grey where it contains zero and no difference was shown."
            children.append(note(told))
    children.append(overview_table(evaluation))
    return Section("overview", "Overview", children)


def charts_height(rows: Sequence[Row], evaluation: Evaluation) -> int:
    """Height of the overview's charts in pixels."""
    return forest(rows, evaluation.models, "", "").height


def _rows(result: TaskResult) -> Iterator[tuple[Row, Row]]:
    for variant, name in result.leads:
        told = variant_name(variant, short=True) if variant else figure_name(name)
        found = {model: result.of(model, variant, name) for model in result.models}
        yield (
            Row(told, found, result.chance(variant, name)),
            Row(told, {UNTRAINED: result.difference(UNTRAINED, variant, name)}),
        )


def _heading(result: TaskResult) -> str:
    names = {name for variant, name in result.leads if variant}
    told = f", {figure_name(next(iter(names)))}" if len(names) == 1 else ""
    told += " by share of labels" if any(share(variant) is not None for variant, _ in result.leads) else ""
    return task_name(result.task) + told


def how_to_read(evaluation: Evaluation, *, examples: bool) -> Section:
    """What the figures and their intervals mean, and what they do not."""
    resamples = (evaluation.summary.get("settings") or {}).get("resamples")
    drawn = f" ({resamples:,} resamples)" if isinstance(resamples, int) else ""
    texts = [
        f"An interval is the central 95 % of a bootstrap over patients{drawn}: how the figure would move "
        "with other patients of the same kind. It does not contain the chance in training: where a figure "
        "has several seeds, their values stand below it, and a difference smaller than their spread says "
        "little.",
        "A difference is paired: both models are drawn with the same patients, so its interval is often much "
        "narrower than the two intervals suggest. Better means that it lies above zero as a whole.",
        "With many figures some intervals exclude zero by chance, one in twenty where nothing is different. "
        "The first figure of each method and share of labels decides; it was fixed before any was measured.",
        "Chance is what the best constant answer gets on the same patients. “Untrained” is the same "
        "architecture before any training, given the same labels; the difference to it is what pre-training "
        "is worth here.",
    ]
    if not examples:
        texts.append(
            "This page holds figures only: no text of a report, no picture and no identifier. "
            "--with-examples adds pictures and texts."
        )
    return Section("reading", "How to read this page", [paragraph(text) for text in texts])


def provenance(evaluation: Evaluation, command: str | None) -> Section:
    """Models, data, versions, settings and the command."""
    summary = evaluation.summary
    rows: list[list[Child]] = [
        [
            model_name(str(one["name"])),
            str(one.get("origin", "")),
            element("code", str(one.get("weights", ""))),
            f"{one['step']:,}" if isinstance(one.get("step"), int) else "–",
        ]
        for one in summary["models"]
    ]
    data: Mapping[str, Any] = summary.get("data") or {}
    entries: list[tuple[str, Child]] = []
    if evaluation.synthetic:
        entries.append(("patients", "SYNTHETIC phantom patients"))
    if data.get("fingerprint"):
        entries.append(("data fingerprint", element("code", str(data["fingerprint"]))))
    for key, words in (("pairs", "pairs by split"), ("patients", "patients by split")):
        if data.get(key):
            entries.append((words, ", ".join(f"{split} {count:,}" for split, count in data[key].items())))
    for key, words in (("labels", "labels"), ("sources", "sources"), ("licenses", "licences")):
        if data.get(key):
            entries.append((words, _told(data[key])))
    if overlap := (summary.get("overlap") or {}).get("line"):
        entries.append(("overlap", str(overlap)))
    entries += _origin(summary.get("provenance") or {})
    children: list[Child] = [
        table(["model", "origin", "weights", "step"], rows, {3}),
        element(
            "dl",
            *(part for name, value in entries for part in (element("dt", name), element("dd", value))),
            class_="plain",
        ),
    ]
    if command is not None:
        children += [
            element("p", "The same command goes on where something is missing:"),
            element("pre", command),
        ]
    settings = list(_flat(summary.get("settings") or {}))
    if settings:
        filled: list[list[Child]] = [[element("code", key), _told(value)] for key, value in settings]
        inner = table(["key", "value"], filled)
        words = f"All {counted(len(settings), 'setting')}"
        children.append(element("details", element("summary", words), inner))
    return Section("provenance", "Settings and provenance", children)


def _origin(told: Mapping[str, Any]) -> Iterator[tuple[str, Child]]:
    for key in ("mpma", "git_revision", "python"):
        if told.get(key):
            yield key.replace("_", " "), element("code", str(told[key]))
    packages, hardware = told.get("packages"), told.get("hardware")
    if isinstance(packages, Mapping):
        yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items())
    if isinstance(hardware, Mapping):
        gpus = hardware.get("gpus") or []
        shown = f"{hardware.get('cpu', 'CPU')}, {hardware.get('cores', '?')} cores"
        yield "hardware", join(shown, ", ", ", ".join(map(str, gpus)) if gpus else "no GPU")


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_told(one) for one in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else setting(value)
