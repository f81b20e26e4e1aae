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


class Nih14Options(StrictConfig):
    """Options of the `nih14` source."""

    table: str | None = None
    """CSV of labels, relative to the root. None: `Data_Entry_2017_v2020.csv`, else `Data_Entry_2017.csv`."""
    images: str | None = None
    """Folder of the PNG files, relative to the root. None: `images/`, `images_001/images/` to
    `images_012/images/` and the root itself, whichever are there."""
    val_fraction: float = Field(default=0.125, ge=0.0, lt=1.0)
    """Share of the patients of `train_val_list.txt` that go to val, drawn from their numbers alone."""
    splits: Literal["keep", "ignore"] = "keep"
    """`keep` the publisher's test list where it is there; `ignore` it and draw by patient."""
    license: str = "NIH Clinical Center: no restrictions, attribution requested"
    """Licence of all pairs."""


class MimicCxrOptions(StrictConfig):
    """Options of the `mimic_cxr` source."""

    labels: Literal["chexpert", "negbio", "radiologist", "none"] = "chexpert"
    """Whose positive findings fill `labels`; `none`: not labelled. All that are there are kept in columns of
    their own. `radiologist` labelled the test split alone (version 2.1.0)."""
    views: list[Literal["PA", "AP", "lateral", "unknown"]] | None = None
    """Views to keep, such as `[PA, AP]`. None: all. Images left out are counted, not quarantined."""
    reports: Literal["expected", "optional"] = "expected"
    """`optional`: images without a report are taken. `--min-words 0` says the same."""
    report_files: str | None = None
    """Zip or folder of the reports, relative to the root, or a path or address of its own. None:
    `mimic-cxr-reports.zip`, else text files, wherever they lie below the root."""
    splits: Literal["keep", "ignore"] = "keep"
    """`keep` the publisher's split where its table is there; `ignore` it and draw by patient."""
    license: str = "PhysioNet Credentialed Health Data License 1.5.0"
    """Licence of all pairs."""


class VqaMed2019Options(StrictConfig):
    """Options of the `vqamed2019` source."""

    license: str = "CC BY 4.0"
    """Licence of all pairs."""


class MasksOptions(StrictConfig):
    """Options of the `masks` source."""

    images: str = "images"
    """Folder of the images, relative to the root; folders in it are looked into."""
    masks: str = "masks"
    """Folder of the masks, relative to the root: each has its image's name, with any ending."""
    mask_suffix: str = ""
    """What the masks' names have behind the image's, such as `_mask`."""
    foreground_value: int | None = Field(default=None, ge=0, le=255)
    """Pixel value that means foreground. None: every value above 127."""
    ignore_value: int | None = Field(default=None, ge=0, le=255)
    """Pixel value that is left out of training and scores. None: there is none."""
    patients: str | None = None
    """CSV, TSV or Parquet table of image names and patients (and views and splits, where it has them),
    relative to the root. None: every image is its own patient."""
    patient_column: str | None = None
    """Its column of patients. None: recognised by its usual names."""
    image_column: str | None = None
    """Its column of image names. None: recognised by its usual names."""
    structure: str = ""
    """What the masks outline, such as `lungs`; kept in a column of its own."""
    license: str = ""
    """Licence of all pairs."""


class CovidChestxrayOptions(StrictConfig):
    """Options of the `covid_chestxray` source."""

    modalities: list[str] | None = Field(default=None, min_length=1)
    """Modalities to keep, as the table writes them, such as `[X-ray]`. None: all. Rows left out are counted,
    not quarantined."""


class ChexpertPlusOptions(StrictConfig):
    """Options of the `chexpert_plus` source."""

    table: str | None = None
    """The publisher's CSV, relative to the root. None: the one that is named `df_chexpert_plus_*.csv`."""
    images: str | None = None
    """Folder that holds `train/` and `valid/`, relative to the root. None: `PNG/` and other usual places,
    else the zips `png_chexpert_plus_chunk_*.zip` as they are."""
    labels: Literal["impression", "findings", "report", "none"] = "impression"
    """Which of CheXbert's label files is read (`impression_fixed.json` and so on): labels of the impression,
    of the findings or of the whole report, where earlier examinations and the history are labelled too."""
    splits: Literal["keep", "ignore"] = "keep"
    """`keep` the publisher's train and valid; `ignore` them and draw by patient."""
    license: str = "Stanford University Dataset Research Use Agreement"
    """Licence of all pairs."""


class PadchestOptions(StrictConfig):
    """Options of the `padchest` source."""

    table: str | None = None
    """The publisher's CSV, relative to the root. None: the one that is named
    `PADCHEST_chest_x_ray_images_labels*.csv` or `.csv.gz`."""
    images: str | None = None
    """Folder that holds `0/` to `54/` or `0.zip` to `54.zip`, relative to the root. None: the root, `images/`
    or `image_zips/`."""
    projections: list[str] | None = Field(default=["PA", "L", "AP", "AP_horizontal"], min_length=1)
    """Projections to keep; the others are COSTAL and EXCLUDE. None: all. Rows left out are counted, not
    quarantined."""
    leave_out: list[str] = Field(default=["exclude", "suboptimal study"])
    """Labels whose images are left out, and counted."""
    invert_monochrome1: bool = True
    """Exchange bright and dark in images whose `PhotometricInterpretation_DICOM` is MONOCHROME1."""
    license: str = "PADCHEST Dataset Research Use Agreement"
    """Licence of all pairs."""


class DicomColumns(StrictConfig):
    """Which column of the table of reports holds what. None: recognised by its usual names, or absent."""

    key: str | None = None
    """What joins a row to its images. None: the column that meets most headers."""
    report: str | None = None
    """The whole report. Absent: put together from findings and impression."""
    findings: str | None = None
    """The findings section. Absent or blank: parsed from the report."""
    impression: str | None = None
    """The impression section. Absent or blank: parsed from the report."""
    labels: str | None = None
    """List, or text separated by `label_separators`. Absent or blank: not labelled."""
    patient_id: str | None = None
    """The unit of the split, see `patients`."""
    split: str | None = None
    """train, val or test and their usual spellings. Absent: drawn by patient."""
    license: str | None = None
    """Licence of the row. Absent: the `license` option."""


class DicomOptions(StrictConfig):
    """Options of the `dicom` source."""

    reports: str | None = None
    """Table of reports (CSV, TSV, Parquet), or folder or zip of `.txt` files named by the key, relative to
    the root. None: what has `report` in its name, else the only table directly in the root."""
    join: (
        Literal[
            "sop_instance_uid",
            "path",
            "file_name",
            "series_instance_uid",
            "study_instance_uid",
            "accession_number",
            "folder_name",
        ]
        | None
    ) = None
    """What of a file is compared with the key. None: what meets most of the headers looked at first."""
    columns: DicomColumns = DicomColumns()
    """Which column holds what, where the names are not recognised."""
    keep: list[str] = Field(default=[])
    """Further columns of the table to keep, as text. All others are left out, since a hospital's table names
    people and days."""
    modalities: list[str] = Field(default=["CR", "DX", "DR", "RG"], min_length=1)
    """Modalities that are radiographs here; others are `other_modality`."""
    burned_in: Literal["refuse", "keep"] = "refuse"
    """What is done with a file whose header says that text is burned into the pixels."""
    patients: Literal["header", "table"] | None = None
    """Where the patient is read. None: the header, unless only the table names patients or the two never
    agree; where both name them alike, a row that differs is `conflicting_patient`."""
    patient_folder: int | None = Field(default=None, ge=1, le=32)
    """Take the folder that many levels below the root for the patient (1: directly in it), whatever header
    and table say."""
    issuer: Literal["auto", "ignore"] = "auto"
    """`auto`: where the headers name an issuer of patient ids, the same id of two issuers is two patients."""
    splits: Literal["keep", "ignore"] = "keep"
    """`keep` the split of the table's column; `ignore` it and draw by patient."""
    label_separators: str = Field(default="|;", min_length=1, max_length=8)
    """Characters that separate labels in a text column."""
    nothing_found: list[str] = Field(default=["No Finding", "normal"])
    """Labels that mean an empty list, in any case."""
    license: str = ""
    """Licence of rows whose table does not say."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the cells of a text table. None: a tab in .tsv files, a comma in .csv files."""
    encoding: str | None = None
    """Character encoding of text tables and text files. None: UTF-8."""
    max_image_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """Largest file that is read."""


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
    mask: str | None = None
    """Masks: embedded PNG files, or paths relative to `image_root`. Absent: a binary column `mask`."""
    questions: str | None = None
    """List of question, answers and type, or JSON text of it. Absent: a column `questions` of that kind."""


class QuestionColumns(StrictConfig):
    """Which column of `questions_table` holds what. None: recognised by its usual names."""

    pair_id: str | None = None
    """Id of the image that is asked about, as in the pairs' own table."""
    question: str | None = None
    """The question."""
    answers: str | None = None
    """Accepted answers: a list, or one text."""
    type: str | None = None
    """Kind of question, by which figures are broken down. Absent: empty."""


class ManifestOptions(StrictConfig):
    """Options of the `manifest` source."""

    columns: ColumnMapping = ColumnMapping()
    """Which column holds what, where the names are not recognised."""
    tables: str | None = None
    """Pattern of the table files inside the root, such as `reports-*.csv`. None: all CSV, TSV and Parquet
    that are not tables of questions."""
    reports: Literal["expected", "optional"] = "expected"
    """`optional`: rows without a report, and tables without a column of reports, are taken. `--min-words 0`
    says the same."""
    questions_table: str | None = None
    """Pattern of tables of questions inside the root, such as `*-qa.parquet`, one question a row, joined to
    the pairs by their id. None: no such table."""
    question_columns: QuestionColumns = QuestionColumns()
    """Which column of `questions_table` holds what, where the names are not recognised."""
    filter: str | None = None
    """Rows to keep, such as `modality == XR and view in [PA, AP]`. None: all. Rows left out are counted, not
    quarantined."""
    image_root: str | None = None
    """Folder that paths are relative to: seen from the table's folder, or a path or URI of its own. None: the
    table's folder."""
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
