"""VQA-Med 2019 (ImageCLEF; Ben Abacha et al.) as its organisers publish it.

Layout: folders of any names and depth that hold `All_QA_Pairs_train.txt`, `All_QA_Pairs_val.txt` and
`VQAMed2019_Test_Questions_w_Ref_Answers.txt`, each with its images below the same folder, and for the first
two the same questions by category in `QAPairsByCategory/C1_Modality_train.txt` and so on.

Decisions: one row is one image with all of its questions, in the order of their first mention; the
publisher's three parts are kept as splits, and a part that is not there is left out and said. The type of a
question is its category; where the files by category are absent it is empty. Several answers (`a#b` in the
test part) are all accepted. The set names no patients: every image is taken for its own. An image that is
asked about and not there is one line in the quarantine, however many questions it has.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa

from mpma.data.pairs import OPTIONAL_FIELDS
from mpma.data.questions import question_row
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import VqaMed2019Options
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.paths import lexically_inside
from mpma.errors import UserError

PARTS: Final = {
    "train": ("All_QA_Pairs_train.txt", "C[0-9]_*_train.txt"),
    "val": ("All_QA_Pairs_val.txt", "C[0-9]_*_val.txt"),
    "test": ("VQAMed2019_Test_Questions_w_Ref_Answers.txt", ""),
}
"""Split to the file of all questions, and the pattern of those by category."""

MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024

_IMAGE_ENDINGS: Final = (".jpg", ".jpeg", ".png")
_ALTERNATIVES: Final = "#"

_Line = tuple[str, str, str, str]
"""Image, category, question, answer."""


@dataclass(frozen=True)
class VqaPart:
    """One of the publisher's three parts."""

    split: str
    questions: str
    """Path in the archive, as those of the categories."""
    categories: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The folder that holds the part; empty for the root itself."""
        return self.questions.rpartition("/")[0]


@dataclass(frozen=True)
class VqaMed2019Source:
    """VQA-Med 2019 below `root`; `resolve` finds its parts."""

    archive: ArchiveFolder
    parts: tuple[VqaPart, ...]
    options: VqaMed2019Options
    name: str = "vqamed2019"
    reports_expected: bool = False

    @classmethod
    def resolve(cls, root: str | Path, options: VqaMed2019Options | None = None) -> VqaMed2019Source:
        """Find the parts at a path or a URI. Raises `UserError` naming what was looked for."""
        archive = ArchiveFolder.open(root)
        base = archive.described()
        texts = _sorted(archive.files(suffixes=(".txt",)))
        parts = []
        for split, (file, pattern) in PARTS.items():
            found = [text for text in texts if PurePosixPath(text).name == file]
            if len(found) > 1:
                raise UserError(
                    f"{base} holds {file} {len(found)} times",
                    "name the folder that holds one copy as the root",
                )
            if found:
                part = VqaPart(split, found[0], ())
                below = [text for text in texts if text.startswith(f"{part.folder}/" if part.folder else "")]
                categories = [text for text in below if fnmatchcase(PurePosixPath(text).name, pattern)]
                parts.append(replace(part, categories=tuple(categories)))
        if not parts:
            raise UserError(
                f"{base} holds no questions of VQA-Med 2019: none of "
                f"{', '.join(file for file, _ in PARTS.values())}",
                "unpack the publisher's archives into it",
            )
        return cls(archive, tuple(parts), options or VqaMed2019Options())

    def assumptions(self) -> list[str]:
        lines = [
            f"{part.split}: {part.questions}"
            + (f", types from {len(part.categories)} files by category" if part.categories else "")
            for part in self.parts
        ]
        there = {part.split for part in self.parts}
        lines += [
            f"{split}: {file} is absent, left out" for split, (file, _) in PARTS.items() if split not in there
        ]
        lines += [
            f"{part.split}: no files by category ({PARTS[part.split][1]}), types are empty"
            for part in self.parts
            if not part.categories and PARTS[part.split][1]
        ]
        lines.append("every image is taken for a patient of its own: the set names no patients")
        lines.append("there are no reports: this set serves evaluation, not pre-training")
        return lines

    def extra_schema(self) -> pa.Schema:
        return pa.schema([OPTIONAL_FIELDS["questions"]])

    def items(self) -> Iterator[Item | Rejection]:
        for part in self.parts:
            yield from self._part_items(part)

    def load_image(self, item: Item) -> bytes:
        return self.archive.read(item.locator["file"], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _part_items(self, part: VqaPart) -> Iterator[Item | Rejection]:
        name = PurePosixPath(part.questions).name
        types = _types(self.archive, part.categories)
        asked: dict[str, list[dict[str, Any]]] = {}
        for number, line in _lines(self.archive, part.questions, cells=4 if part.split == "test" else 3):
            where = f"{name}, line {number}"
            if isinstance(line, int):
                yield Rejection(where, "", "unreadable_row", f"{line} cells")
                continue
            image, category, question, answer = line
            if not image:
                yield Rejection(where, "", "missing_id", "")
                continue
            kind = category or types.get((image, question, answer), "")
            row = question_row(question, answer.split(_ALTERNATIVES), kind)
            if row is None:
                yield Rejection(where, image, "incomplete_question", "")
                continue
            asked.setdefault(image, []).append(row)
        images = _images_below(self.archive, part.folder)
        for image, questions in asked.items():
            if not lexically_inside(image):
                yield Rejection(name, image, "outside_root", "the image's name leads elsewhere")
            elif image not in images:
                yield Rejection(name, image, "missing_image", f"{len(questions)} questions ask about it")
            else:
                yield Item(
                    pair_id=image,
                    patient_id=image,
                    study_id=image,
                    report="",
                    path=images[image],
                    locator={"file": images[image]},
                    findings="",
                    impression="",
                    split=part.split,
                    license=self.options.license,
                    source=self.name,
                    extra={"questions": questions},
                )


def _lines(archive: ArchiveFolder, file: str, cells: int) -> Iterator[tuple[int, _Line | int]]:
    """Number and cells of each line that is not blank; how many cells it has where that is wrong."""
    try:
        with archive.stream(file) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)
            for number, line in enumerate(text, start=1):
                if not line.strip():
                    continue
                found = [cell.strip() for cell in line.rstrip("\n").split("|")]
                if len(found) != cells:
                    yield number, len(found)
                    continue
                image, *kind, question, answer = found
                yield number, (image, kind[0].lower() if kind else "", question, answer)
    except UnicodeDecodeError:
        raise UserError(f"{archive.described(file)} is not a list of questions in UTF-8") from None


def _types(archive: ArchiveFolder, files: tuple[str, ...]) -> dict[tuple[str, str, str], str]:
    """(image, question, answer) to category, `modality` from `C1_Modality_train.txt`."""
    found: dict[tuple[str, str, str], str] = {}
    for file in files:
        category = PurePosixPath(file).stem.split("_")[1].lower()
        for _, line in _lines(archive, file, cells=3):
            if not isinstance(line, int):
                image, _, question, answer = line
                found[image, question, answer] = category
    return found


def _images_below(archive: ArchiveFolder, folder: str) -> dict[str, str]:
    """Image id to path in the archive; of two files of one name the first in order counts."""
    found: dict[str, str] = {}
    for file in _sorted(archive.files(folder, _IMAGE_ENDINGS)):
        found.setdefault(PurePosixPath(file).stem, file)
    return found


def _sorted(files: Iterable[str]) -> list[str]:
    """Paths in the order of their folders and names."""
    return sorted(files, key=lambda file: file.split("/"))
