"""The sections of a dataset's page: splits, refusals, what stands twice, what the page rests on.

Decisions: counts and names of columns only, never an identifier or a text; each refusal comes with what to
do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpma.data.dataset_info import DatasetInfo, SplitInfo
from mpma.data.pairs import SPLITS
from mpma.data.quality import REASONS
from mpma.data.quality_info import GroupsInfo, QualityInfo
from orchestration.reporting.blocks import note, paragraph, table
from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.page import Section, chart
from orchestration.reporting.quality_charts import reasons_chart, split_mark
from orchestration.reporting.quality_thumbnails import Thumbnails, picture_card
from orchestration.reporting.quality_wording import RELATIONS, REMEDIES
from orchestration.reporting.wording import counted, number


def splits(info: DatasetInfo) -> Section:
    """How many pairs, patients, studies and reports each split has."""
    rows: list[list[Child]] = []
    for name in SPLITS:
        one = info.splits[name]
        rows.append([split_mark(name), *(_count(value) for value in _split_counts(one))])
    total = [_sum(info, place) for place in range(len(_split_counts(info.splits["train"])))]
    rows.append([element("strong", "all"), *(_count(value) for value in total)])
    head = ["split", "pairs", "patients", "studies", "with report", "labelled", "with mask", "questions"]
    used = [place for place, value in enumerate(total) if value or place < 4]
    kept = [[row[0], *(row[1 + place] for place in used)] for row in rows]
    facts: list[tuple[str, Child]] = [
        ("sources", _listed(info.sources)),
        ("licences", _listed({name or "not stated": count for name, count in info.licenses.items()})),
        (
            "images",
            f"median shorter side {info.images.short_side_median} pixels as stored, "
            f"grey mean {number(info.images.grey_mean)}, deviation {number(info.images.grey_deviation)}",
        ),
    ]
    if _sum(info, 3):
        facts.append(
            (
                "reports",
                f"median {info.reports.tokens_median} tokens, 95 of 100 within {info.reports.tokens_p95}; "
                f"{info.reports.truncated:,} are cut at {info.reports.truncated_at}",
            )
        )
    return Section(
        "splits",
        "Splits",
        [
            table([head[0], *(head[1 + place] for place in used)], kept, set(range(1, len(used) + 1))),
            _plain(facts),
        ],
    )


def refused(info: DatasetInfo, candidates: int | None, thumbnails: Thumbnails) -> Section:
    """Reasons with counts, what each means and what to do about it."""
    reasons = info.quarantine.reasons
    if not reasons:
        return Section("refused", "Refused", [paragraph("Nothing was refused: every candidate is kept.")])
    total = candidates or info.quarantine.rows + _sum(info, 0)
    rows: list[list[Child]] = [
        [
            element("code", reason),
            f"{count:,}",
            f"{100 * count / total:.2g} %",
            _meaning(reason),
        ]
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    children: list[Child] = [
        chart(reasons_chart(reasons)) if len(reasons) > 1 else None,
        table(["reason", "refused", "of all", "what it means, and what to do"], rows, {1, 2}),
        note(
            "Which ones they are stands in ",
            element("code", info.quarantine.path),
            ", with path and reason; this page names none.",
        ),
    ]
    for reason, shots in thumbnails.refused.items():
        if shots:
            children += [element("h3", element("code", reason)), picture_card(shots)]
    return Section("refused", "Refused", children)


def repeats(quality: QualityInfo, thumbnails: Thumbnails) -> Section:
    """Equal pictures and equal reports, within patients and across."""
    if quality.pictures is None or quality.reports is None:
        return Section("repeats", "What stands twice", [paragraph("Pictures and reports were not compared.")])
    pictures, reports = quality.pictures, quality.reports
    rows: list[list[Child]] = [
        _groups_row("the same picture", pictures),
        _groups_row("the same report", reports),
    ]
    head = ["pairs that have", "groups", "pairs", "one patient", "several patients", "several splits"]
    held_out = [f"{split} pairs also in train" for split in ("val", "test")]
    children: list[Child] = [
        table([*head, *held_out], rows, set(range(1, 8))),
        note(
            "The same picture: stored again in whatever size, compression or window, or inverted; cropped or "
            "turned copies are not seen. The same report: the text that a model reads, with case, "
            "punctuation and de-identification marks folded. Views of one study share a report, and "
            "templates such as “normal chest” are legitimate, so equal reports are told and not refused."
        ),
    ]
    if pictures.held_out_total:
        children.append(
            paragraph(
                element("strong", "What to do: "),
                "a picture that train and a held-out split share makes figures better than they are. See who "
                "the patients are; if they are one, give them one id and ingest again, or leave the held-out "
                "copies out. Their pairs stand in ",
                element("code", quality.near_duplicates.path),
                " (kind picture, relation across_splits).",
            )
        )
    elif pictures.groups or reports.across_splits:
        children.append(
            paragraph(
                "The pairs of each group stand in ",
                element("code", quality.near_duplicates.path),
                ": all groups of pictures, and the groups of reports that cross splits.",
            )
        )
    if quality.pictures_by_bytes:
        children.append(
            note(f"{counted(quality.pictures_by_bytes, 'nearly blank image')} compared by bytes alone.")
        )
    if thumbnails.groups:
        children.append(element("h3", "Groups of pictures"))
        cards = [
            picture_card(group.shots, f"group {group.number} · {RELATIONS[group.relation]}", group.pairs)
            for group in thumbnails.groups
        ]
        children.append(element("div", *cards, class_="examples wide"))
    return Section("repeats", "What stands twice", children)


def basis(info: DatasetInfo, thresholds: Mapping[str, Any] | None) -> Section:
    """Fingerprint, versions and thresholds."""
    entries: list[tuple[str, Child]] = [
        ("fingerprint", element("code", info.fingerprint)),
        ("software", _listed(info.software)),
    ]
    if thresholds:
        told = ", ".join(f"quality.{key}={_setting(value)}" for key, value in thresholds.items())
        entries.append(("thresholds", element("code", told)))
    return Section("basis", "What this rests on", [_plain(entries)])


def _split_counts(split: SplitInfo) -> list[int]:
    return [
        split.pairs,
        split.patients,
        split.studies,
        split.reports or 0,
        split.labelled_pairs,
        split.masks or 0,
        split.questions or 0,
    ]


def _sum(info: DatasetInfo, place: int) -> int:
    return sum(_split_counts(info.splits[name])[place] for name in SPLITS)


def _meaning(reason: str) -> Html:
    meaning = REASONS.get(reason, "")
    told = f"{meaning[:1].upper()}{meaning[1:]}." if meaning else ""
    return element("span", told, element("small", REMEDIES[reason]) if reason in REMEDIES else None)


def _groups_row(name: str, found: GroupsInfo) -> list[Child]:
    counts = [found.groups, found.pairs, found.one_patient, found.across_patients, found.across_splits]
    held_out: list[Child] = [_alarming(found.held_out.get(split, 0)) for split in ("val", "test")]
    return [name, *(f"{count:,}" for count in counts), *held_out]


def _alarming(count: int) -> Html | str:
    return element("span", element("strong", f"{count:,}"), class_="below") if count else "0"


def _plain(entries: Sequence[tuple[str, Child]]) -> Html:
    parts = (part for name, value in entries for part in (element("dt", name), element("dd", value)))
    return element("dl", *parts, class_="plain")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_count(one)}" for name, one in values.items())


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _setting(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
