"""Options of the sources. Free of Arrow and torch, so that a program's help loads fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpma.data.config import PhantomConfig
from mpma.strict import StrictConfig


class PhantomOptions(PhantomConfig):
    """Options of the `phantom` source: the radiographs, or a planted set with a known best answer."""


class OpeniOptions(StrictConfig):
    """Options of the `openi` source."""

    reports: str | None = None
    """Folder of XML files or `.tgz` of them, relative to the root. None: `ecgen-radiology/` where it is
    unpacked, else `NLMCXR_reports.tgz`."""
    images: str | None = None
    """Folder of the PNG files, relative to the root. None: `NLMCXR_png/`, else the root itself."""
    views: str | None = None
    """CSV that gives an image's view (columns such as `imageid` and `View Position`, or `filename` and
    `projection`), relative to the root. None: `dicom_header_excerpt.csv` or `indiana_projections.csv` where
    one is there; the publisher's XML itself does not say which image is which view."""


class ColumnMapping(StrictConfig):
    """Which column of the table holds what. None: recognised by its usual names, or absent."""

    pair_id: str | None = None
    """Unique per row. Absent: the path of the image."""
    patient_id: str | None = None
    """The unit of the split. Absent: refused, unless `patient_per_row`."""
    study_id: str | None = None
    """Images of one examination. Absent: every row is its own study."""
    image: str | None = None
    """Embedded image files (binary; or a struct with a binary field `bytes`)."""
    path: str | None = None
    """Path of the image file, relative to `image_root`."""
    report: str | None = None
    """The whole report. Absent: put together from findings and impression."""
    findings: str | None = None
    """The findings section. Absent or null: parsed from the report."""
    impression: str | None = None
    """The impression section. Absent or null: parsed from the report."""
    labels: str | None = None
    """List, or text separated by `label_separators`. Absent or null: not labelled."""
    view: str | None = None
    """PA, AP, lateral and their usual spellings. Absent: unknown."""
    split: str | None = None
    """train, val or test and their usual spellings. Absent: from file names, else drawn by patient."""
    license: str | None = None
    """Licence of the row. Absent: the `license` option."""
    source: str | None = None
    """Where the row comes from. Absent: `manifest`."""


class ManifestOptions(StrictConfig):
    """Options of the `manifest` source."""

    columns: ColumnMapping = ColumnMapping()
    """Which column holds what, where the names are not recognised."""
    tables: str | None = None
    """Pattern of the table files inside the root, such as `reports-*.csv`. None: all CSV, TSV and Parquet."""
    filter: str | None = None
    """Rows to keep, such as `modality == XR and view in [PA, AP]`. None: all. Rows left out are counted, not
    quarantined."""
    image_root: str | None = None
    """Folder that paths are relative to, itself relative to the table's folder. None: the table's folder."""
    splits: Literal["keep", "ignore"] = "keep"
    """`keep` a split that a column or the file names give; `ignore` it and draw by patient."""
    patient_per_row: bool = False
    """Without a patient column: take every row for a patient of its own. Where that is not so, a patient
    may stand in two splits."""
    label_separators: str = Field(default="|;", min_length=1, max_length=8)
    """Characters that separate labels in a text column."""
    nothing_found: list[str] = Field(default=["No Finding", "normal"])
    """Labels that mean an empty list, in any case."""
    license: str = ""
    """Licence of rows whose table does not say."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the cells of text tables. None: a tab in .tsv files, a comma in .csv files."""
    encoding: str = "utf-8"
    """Character encoding of CSV and TSV files."""
    max_image_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """Largest image file that is read."""
