"""`quality.html`: what a dataset holds, what was refused, what stands twice, how its splits differ.

Decisions: the page is made of the marker alone, so it costs nothing and can be made again; the answer first
(is anything wrong with the splits?), then the figures; it holds no identifier and no text ever, and pictures
only where the user asked for thumbnails, which its first line then says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpma.data.dataset_info import DatasetInfo
from mpma.data.pairs import SPLITS
from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.page import Section, page
from orchestration.reporting.quality_drift_section import differences
from orchestration.reporting.quality_sections import basis, refused, repeats, splits
from orchestration.reporting.quality_thumbnails import Thumbnails
from orchestration.reporting.wording import counted

CONFIDENTIAL = "This page holds patients’ pictures. Keep it as the data are kept, and do not pass it on."


def quality_report(
    name: str,
    info: DatasetInfo,
    *,
    candidates: int | None = None,
    thresholds: Mapping[str, Any] | None = None,
    thumbnails: Thumbnails | None = None,
) -> str:
    """The page as text, about 5 MB, nearly all of it plotly.js.

    Args:
        name: of the dataset, as the user knows it.
        candidates: everything that was listed; None: kept and refused together.
        thresholds: by key of `QualityConfig`, where they are known.
        thumbnails: empty unless the user asked for them.
    """
    thumbnails = thumbnails or Thumbnails()
    kind = " · SYNTHETIC phantom patients" if info.synthetic else ""
    kept = sum(info.splits[split].pairs for split in SPLITS)
    head: list[Child] = [
        element("p", CONFIDENTIAL, class_="warning") if thumbnails.any and not info.synthetic else None,
        element("p", f"Dataset {name}{kind}", class_="kicker"),
        element("h1", headline(info)),
        element("p", lead(info), class_="lead"),
        _facts(info, kept, candidates or kept + info.quarantine.rows),
    ]
    sections: list[Section] = [splits(info), refused(info, candidates, thumbnails)]
    if info.quality is not None:
        sections += [repeats(info.quality, thumbnails), differences(info, info.quality)]
    sections.append(basis(info, thresholds))
    foot = "Nothing is loaded from a network."
    if not thumbnails.any:
        foot = f"Counts only: no picture, no text and no identifier. {foot}"
    return page(f"Quality of {name}", element("div", *head), sections, foot)


def headline(info: DatasetInfo) -> str:
    """What is to be known first: whether the splits can be trusted."""
    quality = info.quality
    if quality is None or quality.pictures is None:
        return "Pictures and splits were not compared."
    shared = quality.pictures.held_out_total
    marked = len({(one.split, one.characteristic) for one in quality.drift if one.marked})
    if shared:
        verb = "shows" if shared == 1 else "show"
        return f"{counted(shared, 'held-out pair')} {verb} a picture that is also in train."
    if not any(info.splits[split].pairs for split in SPLITS[1:]):
        return "All pairs are in train; there is no split to compare it with."
    if marked:
        return f"No picture crosses the splits; they differ in {counted(marked, 'respect')}."
    return "No picture crosses the splits, and no difference between them is beyond chance."


def lead(info: DatasetInfo) -> str:
    """A sentence on what was refused, and on equal reports."""
    kept = sum(info.splits[split].pairs for split in SPLITS)
    patients = sum(info.splits[split].patients for split in SPLITS)
    told = f"{counted(kept, 'pair')} of {counted(patients, 'patient')} are kept"
    rows, reasons = info.quarantine.rows, info.quarantine.reasons
    if rows:
        most = max(reasons.items(), key=lambda item: item[1])
        of = "all" if most[1] == rows else f"{most[1]:,} of them"
        told += f"; {counted(rows, 'candidate')} {'was' if rows == 1 else 'were'} refused, {of} as {most[0]}"
    reports = None if info.quality is None else info.quality.reports
    if reports is not None and reports.held_out_total:
        count = reports.held_out_total
        told += f". {counted(count, 'held-out report')} {'reads' if count == 1 else 'read'} like one of train"
    return f"{told}."


def _facts(info: DatasetInfo, kept: int, candidates: int) -> Html:
    quality = info.quality
    entries: list[tuple[str, str, str]] = [
        ("kept", f"{kept:,}", f"of {candidates:,} listed"),
        (
            "refused",
            f"{info.quarantine.rows:,}",
            f"for {counted(len(info.quarantine.reasons), 'reason')}" if info.quarantine.rows else "",
        ),
    ]
    if quality is not None and quality.pictures is not None:
        found = quality.pictures
        told = f"{found.across_splits:,} of them across splits" if found.across_patients else ""
        entries.append(("pictures of several patients", f"{found.across_patients:,}", told))
    if quality is not None:
        marked = sum(one.marked for one in quality.drift)
        entries.append(("differences beyond chance", f"{marked:,}", f"of {len(quality.drift):,} looked at"))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", detail)))
            for name, value, detail in entries
        ),
        class_="facts",
    )
