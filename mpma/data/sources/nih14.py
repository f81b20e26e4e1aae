"""NIH ChestX-ray14 (Wang et al., CVPR 2017) as the NIH Clinical Center publishes it.

Layout: `Data_Entry_2017_v2020.csv` (or the first `Data_Entry_2017.csv`), the PNG files in `images/` or in
`images_001/images/` to `images_012/images/`, and where they were fetched `train_val_list.txt`,
`test_list.txt` and `BBox_List_2017.csv`.

Decisions: every row of the table is a candidate, and one whose image is not there is quarantined as missing;
`No Finding` is the empty list. The publisher's test list is kept, so that figures can be set beside those of
others; it names no validation split, so a share of the other patients is drawn for one from their numbers
alone, the same ones under every key. Without lists patients are drawn like anyone's. There are no reports:
the labels were mined from reports that were never published, and are noisy for it. Boxes stay in the pixels
of the published 1024 x 1024 files, and an image without a box has null: boxes were drawn on a sample only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mpma.data.hashing import keyed_hash
from mpma.data.quality import is_missing
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import Nih14Options
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.csv_rows import CsvRow, columns_of, csv_rows, described
from mpma.data.sources.paths import lexically_inside
from mpma.data.sources.values import as_labels, as_text, as_view
from mpma.data.splits import draw
from mpma.errors import UserError

TABLES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TEST_LIST: Final = "test_list.txt"
TRAIN_VAL_LIST: Final = "train_val_list.txt"
BOX_TABLE: Final = "BBox_List_2017.csv"
MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024

_REQUIRED: Final = ("Image Index", "Finding Labels", "Patient ID")
_OPTIONAL: Final = ("Follow-up #", "Patient Age", "Patient Gender", "Patient Sex", "View Position")
_BOX_TYPE: Final = pa.struct([("label", pa.string()), *((side, pa.float32()) for side in "xywh")])
_EXTRA: Final = pa.schema(
    [
        pa.field("follow_up", pa.int32()),
        pa.field("age", pa.int32()),
        pa.field("sex", pa.string()),
        pa.field("boxes_1024", pa.list_(_BOX_TYPE)),
    ]
)
_BOX_LABELS: Final = {"Infiltrate": "Infiltration"}
"""The table of boxes has one word of its own."""

_PUBLIC: Final = b"nih14 validation patients"


@dataclass(frozen=True)
class Nih14Source:
    """ChestX-ray14 below a root; `resolve` finds what the folder holds."""

    archive: ArchiveFolder
    table: str
    folders: tuple[str, ...]
    """Folders of images, relative to the root."""
    options: Nih14Options
    split_lists: tuple[str, ...]
    """Names of the publisher's lists that are used."""
    has_boxes: bool
    image_files: int = field(compare=False)
    name: str = "nih14"
    reports_expected: bool = False

    @classmethod
    def resolve(cls, root: str | Path, options: Nih14Options | None = None) -> Nih14Source:
        """Find table, images and lists at a path or a URI. Raises `UserError` naming what was looked for."""
        options = options or Nih14Options()
        archive = ArchiveFolder.open(root)
        table = _find_table(archive, options.table)
        folders = _image_folders(archive, options.images)
        files = sum(len(_images_in(archive, folder)) for folder in folders)
        if not files:
            raise UserError(
                f"{root} holds no PNG images, neither in images/ nor in images_001/images/ and the like",
                "unpack the publisher's images_001.tar.gz and so on, or name the folder: --set images=FOLDER",
            )
        columns_of(archive, table, _REQUIRED)
        lists = tuple(name for name in (TRAIN_VAL_LIST, TEST_LIST) if archive.has_file(name))
        if options.splits == "ignore":
            lists = ()
        return cls(archive, table, folders, options, lists, archive.has_file(BOX_TABLE), files)

    def assumptions(self) -> list[str]:
        lines = [
            f"labels are read from {self.table}; `No Finding` is the empty list",
            f"{self.image_files} image files in {', '.join(folder or '.' for folder in self.folders)}; "
            "those without a row in the table are left out",
            "there are no reports: this set serves evaluation, not pre-training",
        ]
        if self.split_lists:
            lines.append(
                f"splits are kept from {' and '.join(self.split_lists)}; of the patients outside test "
                f"{self.options.val_fraction:g} are drawn for val (val_fraction)"
            )
        else:
            lines.append(f"no split is kept ({TEST_LIST} is absent or ignored): patients are drawn")
        if self.has_boxes:
            lines.append(f"boxes are read from {BOX_TABLE}, in pixels of the published files")
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        place = self._places()
        lists = {name: _read_list(self.archive, name) for name in self.split_lists}
        boxes = _read_boxes(self.archive) if self.has_boxes else {}
        listed: set[str] = set()
        for row in csv_rows(self.archive, self.table, _REQUIRED, _OPTIONAL):
            if isinstance(row, Rejection):
                yield row
                continue
            where = described(self.table, row.line)
            image = as_text(row["Image Index"])
            listed.add(image)
            if not image:
                yield Rejection(where, "", "missing_id", "")
            elif not lexically_inside(image):
                yield Rejection(where, image, "outside_root", "the image's name leads elsewhere")
            elif image not in place:
                yield Rejection(image, image, "missing_image", f"listed in {self.table}")
            elif is_missing(row["Patient ID"]):
                yield Rejection(place[image], image, "missing_patient", where)
            else:
                yield self._item(image, place[image], row, lists, boxes)
        for image in boxes:
            if image not in listed:
                yield Rejection(BOX_TABLE, image, "missing_image", f"not in {self.table}")

    def load_image(self, item: Item) -> bytes:
        return self.archive.read(item.locator["file"], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _item(
        self,
        image: str,
        path: str,
        row: CsvRow,
        lists: Mapping[str, set[str]],
        boxes: Mapping[str, list[dict[str, Any]]],
    ) -> Item | Rejection:
        patient = as_text(row["Patient ID"])
        split = self._split(image, patient, lists) if lists else None
        if lists and split is None:
            return Rejection(path, image, "unknown_split", f"in neither {' nor '.join(lists)}")
        follow_up = as_text(row["Follow-up #"])
        return Item(
            pair_id=image,
            patient_id=patient,
            # Images of one visit share its number.
            study_id=f"{patient}/{follow_up}" if follow_up else image,
            report="",
            path=path,
            locator={"file": path},
            findings="",
            impression="",
            view=as_view(row["View Position"]),
            labels=as_labels(row["Finding Labels"], "|", ("No Finding",)),
            split=split,
            license=self.options.license,
            source=self.name,
            extra={
                "follow_up": _whole(follow_up),
                "age": _whole(as_text(row["Patient Age"])),
                "sex": as_text(row["Patient Gender"] or row["Patient Sex"]) or None,
                "boxes_1024": boxes.get(image),
            },
        )

    def _split(self, image: str, patient: str, lists: Mapping[str, set[str]]) -> str | None:
        """Where only one list is there, what it does not name is the other."""
        in_test = image in lists[TEST_LIST] if TEST_LIST in lists else None
        in_rest = image in lists[TRAIN_VAL_LIST] if TRAIN_VAL_LIST in lists else None
        if in_test or (in_test is None and not in_rest):
            return "test"
        if in_rest is False:
            return None
        return "val" if draw(keyed_hash(_PUBLIC, "patient", patient)) < self.options.val_fraction else "train"

    def _places(self) -> dict[str, str]:
        """Image to path relative to the root; of two files of one name the first folder's counts."""
        found: dict[str, str] = {}
        for folder in self.folders:
            for name in _images_in(self.archive, folder):
                found.setdefault(name, f"{folder}/{name}" if folder else name)
        return found


def _find_table(archive: ArchiveFolder, given: str | None) -> str:
    candidates = TABLES if given is None else (given,)
    found = archive.first_file(*candidates)
    if found is not None:
        return found
    wanted = " nor ".join(candidates)
    raise UserError(
        f"{archive.location} holds no table of labels: {'neither ' if given is None else 'no '}{wanted}",
        "download it from nihcc.app.box.com/v/ChestXray-NIHCC, or name it: --set table=FILE",
    )


def _image_folders(archive: ArchiveFolder, given: str | None) -> tuple[str, ...]:
    if given is not None:
        if not archive.has_folder(given):
            raise UserError(
                f"images: {archive.described(given)} is not a folder",
                f"images is relative to {archive.location}",
            )
        return (given,)
    parts = [name for name in archive.folders() if name.startswith("images_")]
    candidates = ["images", *(folder for part in parts for folder in (f"{part}/images", part)), ""]
    return tuple(folder for folder in candidates if _images_in(archive, folder))


def _images_in(archive: ArchiveFolder, folder: str) -> list[str]:
    return [name for name in archive.names(folder) if name.lower().endswith(".png")]


def _read_list(archive: ArchiveFolder, name: str) -> set[str]:
    with archive.stream(name) as stream:
        try:
            return {line.strip() for line in io.TextIOWrapper(stream, encoding="utf-8") if line.strip()}
        except UnicodeDecodeError:
            raise UserError(f"{archive.described(name)} is not a readable list of images") from None


def _read_boxes(archive: ArchiveFolder) -> dict[str, list[dict[str, Any]]]:
    """Image to its boxes, read by place: the published header has other cells than the rows, since it gives
    `Bbox [x,y,w,h]` four columns by its own commas."""
    found: dict[str, list[dict[str, Any]]] = {}
    with archive.stream(BOX_TABLE) as stream:
        rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        try:
            next(rows, None)
            for cells in rows:
                if any(cells):
                    image, label, *sides = cells[:6]
                    x, y, width, height = map(float, sides)
                    box = {"label": _BOX_LABELS.get(label, label), "x": x, "y": y, "w": width, "h": height}
                    found.setdefault(image.strip(), []).append(_as_stored(box))
        except (ValueError, csv.Error):
            # A wrong encoding is a ValueError too.
            line = described(archive.described(BOX_TABLE), rows.line_num)
            raise UserError(
                f"{line}: not an image, a label and four numbers",
                "fetch the file again, or move it away to go on without boxes",
            ) from None
    return found


def _as_stored(box: dict[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = pa.scalar(box, _BOX_TYPE).as_py()
    return stored


def _whole(text: str) -> int | None:
    """A whole number; the first edition writes ages as `058Y`, with M and D for months and days."""
    if text.endswith(("M", "D")) and text[:-1].isdigit():
        return 0
    digits = text.removesuffix("Y")
    return int(digits) if digits.isdigit() else None
