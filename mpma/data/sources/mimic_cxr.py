"""MIMIC-CXR-JPG with the reports of MIMIC-CXR, as PhysioNet publishes them.

Layout: `files/p10/p10000032/s50414267/<dicom_id>.jpg`, the tables `mimic-cxr-2.0.0-metadata.csv.gz`,
`-split`, `-chexpert` and `-negbio`, and in 2.1.0 `mimic-cxr-2.1.0-test-set-labeled.csv`; the reports of the
other project as `mimic-cxr-reports.zip` or unpacked. `mimic_layout` finds them below the root, at whatever
depth.

Decisions: every row of the metadata is a candidate: frontal and lateral images are pairs of their own with
the report of their study. The official split is kept, and so are all labellers, of which one fills
`labels`. Where `ViewPosition` is empty (one image in 24) the coded view is read; obliques are `unknown`; a
decubitus counts by its projection; the publisher's word is kept in `view_position`. Dates and times are not
copied.

Whether an image is there: listing looks for its patient's folder, one look a group of 6,500 patients, which
tells a partial download, by group or by patient, in ten requests; a file that is missing from a folder that
is there is found when it is loaded. To ask for each of 377,110 files would take an hour on a bucket or a
slow mount, only to be done again when they are loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import MimicCxrOptions
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.csv_rows import CsvRow, csv_rows, described
from mpma.data.sources.mimic_labels import NOT_LABELLED, StudyLabels, StudySplits, is_number
from mpma.data.sources.mimic_layout import REPORTS_ZIP, MimicLayout, below, find_layout, table_named
from mpma.data.sources.mimic_reports import MimicReports, ReportReader, find_reports
from mpma.data.sources.paths import lexically_inside
from mpma.data.sources.values import as_text, as_view
from mpma.errors import UserError

LABELLERS: Final = {"chexpert": "chexpert", "negbio": "negbio", "radiologist": "test-set-labeled"}
"""Name of a labeller, and of its table."""
MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

_REQUIRED: Final = ("dicom_id", "subject_id", "study_id")
_POSITION, _CODED_VIEW = "ViewPosition", "ViewCodeSequence_CodeMeaning"
_KEPT: Final = {
    "view_position": _POSITION,
    "procedure": "PerformedProcedureStepDescription",
    "orientation": "PatientOrientationCodeSequence_CodeMeaning",
}
"""Columns of the metadata that are kept, and how they are called in the dataset."""
_PLAIN_ID: Final = re.compile(r"[0-9A-Za-z-]{1,128}")
"""An image's id as the publisher writes it; others are looked at more closely."""
_VIEWS: Final = {
    **dict.fromkeys(("AP AXIAL", "AP LLD", "AP RLD"), "AP"),
    **dict.fromkeys(("PA LLD", "PA RLD"), "PA"),
    **dict.fromkeys(("XTABLE LATERAL", "SWIMMERS"), "lateral"),
}
"""Views of this archive that are not among the usual spellings."""
_LABEL_LISTS: Final = ("labels_uncertain", "labels_negative", *(f"labels_{name}" for name in LABELLERS))
_EXTRA: Final = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.string())) for name in _LABEL_LISTS),
        *(pa.field(name, pa.string()) for name in _KEPT),
    ]
)


@dataclass(frozen=True)
class MimicCxrSource:
    """MIMIC-CXR-JPG below a folder; `resolve` finds what it holds."""

    folder: ArchiveFolder
    tables: Mapping[str, str]
    """Kind of table (`metadata`, `split`, a labeller) to its path."""
    images: str
    """Folder that holds `p10/` and the others."""
    reports: MimicReports | None
    options: MimicCxrOptions
    others: tuple[str, ...] = ()
    """What was found as well and is not read."""
    name: str = "mimic_cxr"

    @classmethod
    def resolve(cls, root: str | Path, options: MimicCxrOptions | None = None) -> MimicCxrSource:
        """Find tables, images and reports below `root`. Raises `UserError` naming what was looked for."""
        options = options or MimicCxrOptions()
        folder = ArchiveFolder.open(root)
        layout = find_layout(folder)
        if not layout.tables:
            raise UserError(
                f"{folder.described()} holds no mimic-cxr-2.0.0-metadata.csv.gz, nor do the folders in it",
                "download it from physionet.org/content/mimic-cxr-jpg; the root is the folder that holds it, "
                "or one above",
            )
        place = _beside_images(layout)
        tables = _tables(folder, place)
        if options.labels in LABELLERS and options.labels not in tables:
            if "labels" in options.model_fields_set:
                kind = LABELLERS[options.labels]
                raise UserError(
                    f"labels: {folder.described(place)} holds no table mimic-cxr-*-{kind}.csv",
                    "download it as well, or leave the labels out: --set labels=none",
                )
            options = options.model_copy(update={"labels": "none"})
        images = _images(folder, layout, place)
        reports = find_reports(folder, layout, options.report_files)
        if reports is None and options.reports == "expected":
            raise UserError(
                f"{folder.described()} holds no reports: neither {REPORTS_ZIP} nor files/p10/.../s*.txt",
                f"{REPORTS_ZIP} is in physionet.org/content/mimic-cxr: put it below the root or name it, "
                "--set report_files=FILE; --min-words 0 takes the images without reports",
            )
        others = [f"tables in {path or '.'}" for path in layout.tables if path != place]
        if reports is not None:
            found = (*layout.zips, *(tree.path for tree in layout.trees if tree.reports))
            others += [f"reports in {path or '.'}" for path in found if path != reports.place]
        return cls(folder, tables, images, reports, options, tuple(others))

    @property
    def reports_expected(self) -> bool:
        return self.options.reports == "expected"

    def assumptions(self) -> list[str]:
        lines = [
            f"images are those of {self.tables['metadata']} below {self.images or '.'}; files that it does "
            "not name are left out",
            "images of a patient without a folder are missing; others that are missing are found when loaded",
            "there are no reports: this set serves evaluation, not pre-training"
            if self.reports is None
            else f"reports are read from {self.reports.described}",
            self._about_labels(),
            f"splits are kept from {self.tables['split']}"
            if self._keeps_splits
            else "no split is kept (no table of splits, or ignored): patients are drawn",
            "dates and times of the studies are not copied",
        ]
        if self.others:
            lines.append(f"not read, although there: {', '.join(self.others)}")
        if self.options.views is not None:
            kept, rows = self._count_kept()
            lines.append(f"views={','.join(self.options.views)} keeps {kept} of {rows} images")
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        labels: dict[str, StudyLabels] = {}
        for labeller in LABELLERS:
            if labeller in self.tables:
                labels[labeller] = StudyLabels()
                yield from labels[labeller].read(self.folder, self.tables[labeller])
        splits = StudySplits() if self._keeps_splits else None
        if splits is not None:
            yield from splits.read(self.folder, self.tables["split"])
        with ExitStack() as stack:
            reader = None if self.reports is None else stack.enter_context(self.reports.opened())
            listing = _Listing(self, labels, splits, reader)
            for row in self._rows():
                listed = row if isinstance(row, Rejection) else listing.item(row)
                if listed is not None:
                    yield listed

    def load_image(self, item: Item) -> bytes:
        # The tree is a root of its own, so that it may be a link to another disk.
        return self.folder.folder(self.images).read(item.locator["file"], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    @property
    def _keeps_splits(self) -> bool:
        return "split" in self.tables and self.options.splits == "keep"

    def _rows(self) -> Iterator[CsvRow | Rejection]:
        return csv_rows(self.folder, self.tables["metadata"], _REQUIRED, (*_KEPT.values(), _CODED_VIEW))

    def _count_kept(self) -> tuple[int, int]:
        views = Counter(view_of(row) for row in self._rows() if isinstance(row, CsvRow))
        return sum(views[view] for view in set(self.options.views or ())), views.total()

    def _about_labels(self) -> str:
        there = [name for name in LABELLERS if name in self.tables]
        if self.options.labels not in there:
            chosen = "not labelled (labels=none, or no table of labels)"
        else:
            chosen = f"labels are {self.options.labels}'s positive ones, `No Finding` is the empty list"
        return f"{chosen}; in columns of their own: {', '.join(there) or 'none'}"


class _Listing:
    """What one pass over the metadata needs."""

    def __init__(
        self,
        source: MimicCxrSource,
        labels: Mapping[str, StudyLabels],
        splits: StudySplits | None,
        reader: ReportReader | None,
    ) -> None:
        self._source = source
        self._options = source.options
        self._labels = labels
        self._splits = splits
        self._reader = reader
        self._patients: dict[str, frozenset[str]] = {}
        self._study = ""
        self._report: str | UnreadableImage | None = None

    def item(self, row: CsvRow) -> Item | Rejection | None:
        """The candidate of a row; None where its view is not wanted."""
        image, patient, study = (as_text(row[column]) for column in _REQUIRED)
        where = described(self._source.tables["metadata"], row.line)
        if not image:
            return Rejection(where, "", "missing_id")
        if not patient:
            return Rejection(where, image, "missing_patient")
        for column, value in (("subject_id", patient), ("study_id", study)):
            if not is_number(value):
                return Rejection(where, image, "wrong_type", f"{column} is no number")
        view = view_of(row)
        if self._options.views is not None and view not in self._options.views:
            return None
        file = f"p{patient[:2]}/p{patient}/s{study}/{image}.jpg"
        path = below(self._source.images, file)
        if not _PLAIN_ID.fullmatch(image) and ("/" in image or not lexically_inside(file)):
            return Rejection(where, image, "outside_root", "the image's id leads elsewhere")
        if not self._has_patient(patient):
            return Rejection(path, image, "missing_image", "the patient has no folder")
        split = None if self._splits is None else self._splits.of(image, study)
        if self._splits is not None and split is None:
            return Rejection(path, image, "unknown_split", f"not in {self._source.tables['split']}")
        report = self._report_of(patient, study)
        if isinstance(report, UnreadableImage):
            assert self._reader is not None
            return Rejection(self._reader.path(patient, study), image, report.reason, report.detail)
        if report is None and self._source.reports_expected:
            return Rejection(path, image, "missing_report", "the study has no report file")
        found = {name: labels.of(study) for name, labels in self._labels.items()}
        chosen = found.get(self._options.labels) or NOT_LABELLED
        lists = {
            "labels_uncertain": _listed(chosen.uncertain) if chosen is not NOT_LABELLED else None,
            "labels_negative": _listed(chosen.negative) if chosen is not NOT_LABELLED else None,
            **{f"labels_{name}": _listed((found.get(name) or NOT_LABELLED).positive) for name in LABELLERS},
        }
        return Item(
            pair_id=image,
            patient_id=patient,
            study_id=study,
            report=report or "",
            path=path,
            locator={"file": file},
            view=view,
            labels=chosen.positive,
            split=split,
            license=self._options.license,
            source=self._source.name,
            extra={**lists, **{name: as_text(row[column]) or None for name, column in _KEPT.items()}},
        )

    def _has_patient(self, patient: str) -> bool:
        group = f"p{patient[:2]}"
        if group not in self._patients:
            folders = self._source.folder.folders(below(self._source.images, group))
            self._patients[group] = frozenset(folders)
        return f"p{patient}" in self._patients[group]

    def _report_of(self, patient: str, study: str) -> str | UnreadableImage | None:
        # Images of a study follow each other in the table, so its report is read once.
        if self._reader is not None and study != self._study:
            self._study = study
            try:
                self._report = self._reader.text(patient, study)
            except UnreadableImage as error:
                self._report = error
        return self._report


def view_of(row: CsvRow) -> str:
    """The view of a row of metadata: from `ViewPosition`, or from the coded view where that is empty."""
    position = as_text(row[_POSITION]).upper()
    return _VIEWS.get(position) or as_view(position or row[_CODED_VIEW])


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def _tables(folder: ArchiveFolder, place: str) -> dict[str, str]:
    names = folder.names(place)
    wanted = {"metadata": "metadata", "split": "split", **LABELLERS}
    found = {kind: table_named(names, name) for kind, name in wanted.items()}
    return {kind: below(place, name) for kind, name in found.items() if name is not None}


def _beside_images(layout: MimicLayout) -> str:
    """Of several folders of tables the first that has images beside it, else the nearest."""
    trees = {tree.path for tree in layout.trees if tree.images}
    return next((place for place in layout.tables if below(place, "files") in trees), layout.tables[0])


def _images(folder: ArchiveFolder, layout: MimicLayout, place: str) -> str:
    """The tree of JPEG files: beside the tables, else the nearest."""
    trees = [tree for tree in layout.trees if tree.images]
    beside = [tree.path for tree in trees if tree.path == below(place, "files")]
    if trees:
        return beside[0] if beside else trees[0].path
    if any(tree.dicom for tree in layout.trees):
        raise UserError(
            f"{folder.described()} holds DICOM files and no JPEG",
            "mimic_cxr reads the images of MIMIC-CXR-JPG",
        )
    raise UserError(
        f"{folder.described()} holds no images such as files/p10/p10000032/s50414267/*.jpg",
        "download those of MIMIC-CXR-JPG below the root; a part of them will do",
    )
