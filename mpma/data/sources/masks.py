"""A folder of images and a folder of masks whose files have the same names.

Decisions: names are compared with the folders they stand in and without their ending, which is often not
what the file is (PNG data named `.jpg`); what a file holds is told from its first bytes. Each image is a
candidate, without a mask it is quarantined as `missing_mask`, and a mask without an image as `missing_image`.
Pixel values become the stored ones (0, 255, 127 ignored) by the options alone: a default that guessed per
file would read an empty mask differently from its neighbours. An empty mask is a legal truth and is kept. Who
the patient is stands in no file name; a table says it, else every image is its own patient, which is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa

from mpma.data.masks import FOREGROUND, IGNORED, Values, encode_mask, mask_values
from mpma.data.pairs import OPTIONAL_FIELDS
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import MasksOptions
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.manifest_columns import USUAL_NAMES, nearest_column, usual_column
from mpma.data.sources.tables import Rows, Table
from mpma.data.sources.values import as_split, as_text, as_view
from mpma.errors import UserError

MAX_FILE_BYTES: Final = 256 * 1024 * 1024

_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".pgm", ".ppm")
_DEFAULT_THRESHOLD: Final = 127


@dataclass(frozen=True)
class Person:
    """What the table of patients says of an image; empty where it says nothing."""

    patient: str
    view: str
    split: str


@dataclass(frozen=True)
class MasksSource:
    """Images and masks of two folders; `resolve` looks into both."""

    archive: ArchiveFolder
    image_root: ArchiveFolder
    mask_root: ArchiveFolder
    options: MasksOptions
    counted: tuple[str, ...]
    """What was found, in lines for the terminal."""
    name: str = "masks"
    reports_expected: bool = False

    @classmethod
    def resolve(cls, root: str | Path, options: MasksOptions | None = None) -> MasksSource:
        """Find the folders at a path or a URI.

        Raises `UserError` naming the folder, table or option at fault.
        """
        options = options or MasksOptions()
        base = ArchiveFolder.open(root)
        if options.foreground_value is not None and options.foreground_value == options.ignore_value:
            raise UserError(
                f"ignore_value and foreground_value are both {options.ignore_value}",
                "a pixel is one or the other",
            )
        image_root = _folder(base, "images", options.images)
        mask_root = _folder(base, "masks", options.masks)
        images, masks = _files(image_root), _masks_by_key(mask_root, options.mask_suffix)
        if not any(_key(image) in masks for image in images):
            raise UserError(
                f"no mask in {mask_root.described()} has the name of an image in {image_root.described()}",
                "name what the masks' names have behind the image's: --set mask_suffix=_mask",
            )
        people = _people(base, options)
        counted = [
            f"{len(images)} images in {options.images}, "
            f"{sum(map(len, masks.values()))} masks in {options.masks}"
        ]
        if people is None:
            counted.append(
                "EVERY IMAGE IS TAKEN FOR A PATIENT OF ITS OWN (no table of patients): "
                "if a patient has two images, they may stand in two splits"
            )
        else:
            known = sum(bool(_person(people, image).patient) for image in images)
            counted.append(
                f"patients are read from {options.patients}: it has {known} of {len(images)} images"
            )
        return cls(base, image_root, mask_root, options, tuple(counted))

    def assumptions(self) -> list[str]:
        wanted, ignored = self.options.foreground_value, self.options.ignore_value
        return [
            *self.counted,
            f"mask values {f'above {_DEFAULT_THRESHOLD}' if wanted is None else wanted} are foreground, "
            f"{'no value' if ignored is None else ignored} is ignored, all others are background",
            "there are no reports: this set serves evaluation, not pre-training",
        ]

    def extra_schema(self) -> pa.Schema:
        fields = [OPTIONAL_FIELDS["mask"]]
        return pa.schema([*fields, pa.field("structure", pa.string())] if self.options.structure else fields)

    def items(self) -> Iterator[Item | Rejection]:
        images, masks = _files(self.image_root), _masks_by_key(self.mask_root, self.options.mask_suffix)
        people = _people(self.archive, self.options)
        times = Counter(map(_key, images))
        for image in images:
            path = f"{self.options.images}/{image}"
            named = masks.get(_key(image), ())
            # Of several masks of its name, the one of its ending is meant.
            found = tuple(mask for mask in named if _name(mask) == _name(image)) or named
            person = _person(people, image)
            if not found:
                yield Rejection(path, image, "missing_mask", f"no file of its name in {self.options.masks}")
            elif len(found) > 1:
                yield Rejection(path, image, "unreadable_mask", f"{len(found)} masks have its name")
            elif times[_key(image)] > 1 and _name(found[0]) != _name(image):
                yield Rejection(path, image, "duplicate_id", "two images have the name of one mask")
            elif not person.patient:
                yield Rejection(path, image, "missing_patient", f"not in {self.options.patients}")
            elif person.split and as_split(person.split) is None:
                yield Rejection(path, image, "unknown_split", f"in {self.options.patients}")
            else:
                yield Item(
                    pair_id=image,
                    patient_id=person.patient,
                    study_id=image,
                    report="",
                    path=path,
                    locator={"image": image, "mask": found[0]},
                    findings="",
                    impression="",
                    view=as_view(person.view),
                    split=as_split(person.split),
                    license=self.options.license,
                    source=self.name,
                    extra={"structure": self.options.structure} if self.options.structure else {},
                )
        for key, files in masks.items():
            if key not in times:
                for file in files:
                    path = f"{self.options.masks}/{file}"
                    yield Rejection(path, key, "missing_image", "a mask without its image")

    def load_image(self, item: Item) -> bytes:
        return self.image_root.read(item.locator["image"], MAX_FILE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        data = self.mask_root.read(item.locator["mask"], MAX_FILE_BYTES)
        wanted, ignored = self.options.foreground_value, self.options.ignore_value
        # A threshold stands above what JPEG does to a value; a single value does not.
        values = mask_values(data, lossy=wanted is None and ignored is None)
        return {"mask": encode_mask(stored_values(values, wanted, ignored))}


def stored_values(values: Values, foreground: int | None, ignored: int | None) -> Values:
    """Mask values, uint8 [H, W], as they are stored: 255 foreground, 127 ignored, 0 the rest.

    foreground: the value that means so; None for every value above 127. ignored: wins over foreground.
    """
    inside = values > _DEFAULT_THRESHOLD if foreground is None else values == foreground
    stored = np.where(inside, FOREGROUND, 0).astype(np.uint8)
    if ignored is not None:
        stored[values == ignored] = IGNORED
    return stored


def _folder(base: ArchiveFolder, option: str, place: str) -> ArchiveFolder:
    folder = base.beside(place)
    if not folder.is_folder:
        raise UserError(
            f"{folder.described()} is not a folder",
            f"the root of masks holds images/ and masks/; or --set {option}=FOLDER",
        )
    if not _files(folder):
        raise UserError(
            f"{folder.described()} holds no image files", f"files that end in {', '.join(_ENDINGS)} are read"
        )
    return folder


def _files(folder: ArchiveFolder) -> list[str]:
    """Image files relative to the folder, in order."""
    return sorted(folder.files(suffixes=_ENDINGS))


def _masks_by_key(folder: ArchiveFolder, suffix: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for file in _files(folder):
        key = _key(file, suffix)
        found[key] = (*found.get(key, ()), file)
    return found


def _person(people: Mapping[str, Person] | None, image: str) -> Person:
    if people is None:
        return Person(image, "", "")
    return people.get(_name(image)) or people.get(PurePosixPath(image).stem) or Person("", "", "")


def _key(file: str, suffix: str = "") -> str:
    """A file's path without ending and suffix; the parent folders belong to the name."""
    path = PurePosixPath(file)
    return str(path.parent / (path.stem.removesuffix(suffix) if suffix else path.stem))


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def _people(base: ArchiveFolder, options: MasksOptions) -> dict[str, Person] | None:
    if options.patients is None:
        return None
    folder, _, file = options.patients.rpartition("/")
    home = base.beside(folder or ("/" if options.patients.startswith("/") else ""))
    place = home.described(file)
    if not home.has_file(file):
        raise UserError(f"patients: {place} does not exist", f"patients is relative to {base.described()}")
    table = Table.open(home, file)
    names = table.schema.names
    image = _column(place, names, "image_column", options.image_column, ("path", "pair_id"))
    patient = _column(place, names, "patient_column", options.patient_column, ("patient_id",))
    view, split = usual_column(names, USUAL_NAMES["view"]), usual_column(names, USUAL_NAMES["split"])
    wanted = list(dict.fromkeys(name for name in (image, patient, view, split) if name))
    found: dict[str, Person] = {}
    for rows in table.rows(wanted):
        if not isinstance(rows, Rows):
            continue
        for row in rows.batch.to_pylist():
            person = Person(
                as_text(row[patient]),
                as_text(row[view]) if view else "",
                as_text(row[split]) if split else "",
            )
            key = PurePosixPath(as_text(row[image])).name
            if key and found.setdefault(key, person).patient != person.patient:
                raise UserError(
                    f"patients: {place} gives one image to two patients",
                    "image names must be unique in the table",
                )
    return found


def _column(place: str, names: list[str], option: str, given: str | None, fields: tuple[str, ...]) -> str:
    if given is not None:
        if given not in names:
            raise UserError(f"{option}: {place} has no column {given!r}", nearest_column(given, names))
        return given
    for kind in fields:
        found = usual_column(names, USUAL_NAMES[kind])
        if found is not None:
            return found
    raise UserError(
        f"patients: {place} has no column of {'images' if option == 'image_column' else 'patients'}",
        f"name it: --set {option}=COLUMN (its columns are {', '.join(filter(None, names))})",
    )
