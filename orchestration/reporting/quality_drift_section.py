"""Val and test against train: effects on one axis, what is marked as a table, distributions below.

Decisions: the sentence first, then the picture, then the numbers; of labels and sources only those with the
largest effects are drawn, since a list of hundreds hides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mpma.data.dataset_info import DatasetInfo
from mpma.data.pairs import SPLITS
from mpma.data.quality_info import DriftInfo, QualityInfo
from orchestration.reporting.blocks import note, paragraph, table
from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.page import Section, chart
from orchestration.reporting.quality_charts import (
    SPLIT_LOOKS,
    distribution,
    drift_chart,
    row_name,
    shares,
    split_mark,
)
from orchestration.reporting.quality_wording import strength
from orchestration.reporting.wording import MINUS, counted, number, signed

_LABELS_SHOWN: Final = 14
_FOREST_LABELS: Final = 5


def differences(info: DatasetInfo, quality: QualityInfo) -> Section:
    """Val and test against train."""
    if not quality.drift:
        children: list[Child] = [paragraph("There is no second split to compare.")]
        if quality.histograms:
            children += [*_distributions(info, quality)]
        return Section("drift", "Differences between splits", children)
    marked = [one for one in quality.drift if one.marked]
    told = "No difference is above the threshold and beyond chance."
    if marked:
        told = (
            f"{counted(len(marked), 'difference')} {'is' if len(marked) == 1 else 'are'} above "
            f"{quality.drift_effect:g} and beyond chance. Figures on such a split tell of another kind of "
            "patients or images than those that were learned from."
        )
    forest = _forest(quality.drift)
    children = [
        paragraph(told),
        _legend(quality, chance=True),
        chart(drift_chart(forest, quality.drift_effect)),
        _marked_table(marked) if marked else None,
        *_distributions(info, quality),
        note(
            "Effects are differences of means over their spread (Cohen’s d) or of the angles of two shares "
            "(Cohen’s h): 0.2 is small, 0.5 medium, 0.8 large. Shape is the largest distance of the "
            "cumulated distributions (Kolmogorov–Smirnov), which sees what leaves the mean alone. Chance is "
            "what splits of this many patients would exceed once in a hundred times though nothing is "
            "different."
        ),
    ]
    return Section("drift", "Differences between splits", children)


def _forest(drift: Sequence[DriftInfo]) -> list[DriftInfo]:
    """Of the comparisons those with a direction: all means and views, the strongest labels and sources."""
    kept = [one for one in drift if one.measure == "mean" or one.characteristic == "view"]
    for name in ("source", "label"):
        found = sorted((one for one in drift if one.characteristic == name), key=lambda one: -abs(one.effect))
        values = list(dict.fromkeys(one.value for one in found))[:_FOREST_LABELS]
        kept += [one for one in drift if one.characteristic == name and one.value in values]
    return kept


def _marked_table(marked: Sequence[DriftInfo]) -> Html:
    rows: list[list[Child]] = []
    for one in sorted(marked, key=lambda one: (SPLITS.index(one.split), -abs(one.effect))):
        if one.measure == "shape":
            rows.append([split_mark(one.split), f"{row_name(one)}, shape", "–", "–", number(one.effect), ""])
            continue
        is_share = one.measure == "share"
        rows.append(
            [
                split_mark(one.split),
                row_name(one),
                _value(one.train, is_share, one.characteristic),
                _value(one.other, is_share, one.characteristic),
                signed(one.effect)
                if abs(one.effect) < 100
                else f"{'+' if one.effect > 0 else MINUS}100 or more",
                strength(one.effect),
            ]
        )
    return table(["split", "what differs", "in train", "in the split", "effect", ""], rows, {2, 3, 4})


def _distributions(info: DatasetInfo, quality: QualityInfo) -> list[Child]:
    figures = [chart(distribution(name, found)) for name, found in quality.histograms.items()]
    views = {
        split: {view: count / sum(counts.values()) for view, count in counts.items()}
        for split, counts in quality.views.items()
        if counts
    }
    names = sorted({view for counts in views.values() for view in counts})
    if len(names) > 1:
        figures.append(chart(shares("views", views, names)))
    labels = _label_shares(info)
    if labels:
        common = sorted(labels["train"].items() if "train" in labels else [], key=lambda item: -item[1])
        listed = [name for name, _ in common[:_LABELS_SHOWN]]
        title = "labels" if len(info.labels) <= _LABELS_SHOWN else f"the {len(listed)} commonest labels"
        if listed:
            figures.append(chart(shares(title, labels, listed)))
    return [_legend(quality, chance=False), element("div", *figures, class_="grid wide")]


def _label_shares(info: DatasetInfo) -> dict[str, dict[str, float]]:
    return {
        name: {label: count / split.labelled_pairs for label, count in split.label_counts.items()}
        for name, split in info.splits.items()
        if split.labelled_pairs
    }


def _legend(quality: QualityInfo, *, chance: bool) -> Html:
    entries = []
    for split, (colour, symbol) in SPLIT_LOOKS.items():
        if not quality.views.get(split) or (chance and split == "train"):
            continue
        entries.append(element("span", split, class_=f"mark {symbol}", style=f"--c: var(--{colour})"))
    if chance:
        entries.append(element("span", "within chance", class_="mark square", style="--c: var(--line)"))
        told = f"shaded: below {quality.drift_effect:g}"
        entries.append(element("span", told, class_="mark square", style="--c: var(--panel)"))
    return element("div", *entries, class_="legend")


def _value(value: float, is_share: bool, characteristic: str) -> str:
    if is_share:
        return f"{number(100 * value)} %"
    return number(value / 100 if characteristic == "aspect" else value)
