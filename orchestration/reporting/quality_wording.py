"""What the page of a dataset calls reasons, characteristics and relations, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REMEDIES: Final[Mapping[str, str]] = {
    "missing_image": "Fetch the missing part of the archive, or leave it: the rest is whole.",
    "empty_file": "Copy the file again; a full disk or a broken transfer leaves such files.",
    "truncated_image": "Fetch the file again: its transfer broke off.",
    "unreadable_image": "Fetch the file again; if it comes the same, the publisher's own copy is damaged.",
    "not_an_image": "See whether the table's column of paths is the right one.",
    "git_lfs_pointer": "Run git lfs pull in the clone, then ingest again with --overwrite.",
    "html_page": "Log in and download the file again: this is the login page.",
    "unsupported_pixels": "Convert the file to 8- or 16-bit grey, or leave it out.",
    "unsupported_compression": "Install the decoder that the detail names, or decompress the files.",
    "multiple_frames": "Choose a frame and store it as a file of its own.",
    "no_pixels": "Nothing: such files accompany the radiographs.",
    "burned_in_annotation": "Look at the images before keeping any: names may be burned in.",
    "other_modality": "Name the modality in the source's options if it is wanted.",
    "too_large": "If it is a radiograph, allow it: --set quality.max_pixels=",
    "too_small": "Thumbnails and icons, as a rule. If they are wanted: --min-side",
    "constant_image": "Nothing: there is nothing to be seen.",
    "missing_mask": "Fetch the masks, or ingest without them.",
    "unreadable_mask": "Store masks as single-channel PNG.",
    "mask_size": "Export the masks at the size of their images.",
    "incomplete_question": "Complete the row of the table of questions.",
    "empty_report": "If the set is a labelled one without reports: --min-words 0",
    "too_short_report": "If short reports are wanted: --min-words",
    "too_long_report": "See whether it is a whole record; if not: --set quality.max_report_characters=",
    "nothing_described": "An indication alone teaches nothing of the picture. To keep them all the same: "
    "--set quality.require_description=false",
    "unreadable_report": "Fetch the report's file again.",
    "missing_report": "Fetch the archive of reports; see whether its folder is where the source looks.",
    "several_reports": "Decide in the table which report belongs to the image.",
    "missing_id": "Complete the column of ids, or name another with the source's options.",
    "missing_patient": "Complete the column of patients: without it no split is sound.",
    "conflicting_patient": "Find out whose image it is before anything else.",
    "duplicate_id": "See whether the table lists the image twice, or another column tells images apart.",
    "patient_in_two_splits": "Mend the table's splits, or have patients drawn: --set splits=ignore",
    "unknown_split": "Name the splits train, val and test, or have patients drawn.",
    "unreadable_row": "Mend the table's quotes or delimiter at that row.",
    "wrong_type": "Mend the value of the column that the detail names.",
    "outside_root": "Copy the files below the archive's folder; links that lead out are not followed.",
}
"""By reason code."""

CHARACTERISTICS: Final[Mapping[str, str]] = {
    "short_side": "shorter side as it came",
    "aspect": "width by height",
    "grey_mean": "mean grey level",
    "report_words": "words of the report",
    "view": "view",
    "source": "source",
    "label": "label",
}
"""By name in `dataset.json`."""

UNITS: Final[Mapping[str, str]] = {
    "short_side": "pixels",
    "aspect": "hundredths",
    "grey_mean": "0 black to 255 white",
    "report_words": "words",
}

RELATIONS: Final[Mapping[str, str]] = {
    "across_splits": "in several splits",
    "across_patients": "several patients, one split",
    "one_patient": "one patient",
}
"""Of the pairs of a group, the gravest first."""


def strength(effect: float) -> str:
    """An effect size in words, after Cohen."""
    size = abs(effect)
    return "large" if size >= 0.8 else "medium" if size >= 0.5 else "small" if size >= 0.2 else "slight"
