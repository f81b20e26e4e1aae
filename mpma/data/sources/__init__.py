"""The archive layouts that can be ingested, by name.

Decisions: a layout is one entry here and one module, which is imported only when it is asked for; its
options are a strict configuration class, so that a wrong `--set` is one line with the nearest key.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from mpma.config_tree import parse_value
from mpma.data.config import PhantomConfig
from mpma.data.sources.config import (
    ChexpertPlusOptions,
    CovidChestxrayOptions,
    DicomOptions,
    ManifestOptions,
    MasksOptions,
    MimicCxrOptions,
    Nih14Options,
    OpeniOptions,
    PadchestOptions,
    PhantomOptions,
    VqaMed2019Options,
)
from mpma.errors import UserError
from mpma.strict import StrictConfig, dotted_keys, split_assignment

if TYPE_CHECKING:
    from mpma.data.sources.contract import Source


@dataclass(frozen=True)
class SourceKind:
    """One archive layout as the ingest program offers it."""

    name: str
    description: str
    """One line: what the root is expected to hold."""
    options: type[StrictConfig]
    """Configuration class of the layout's options."""
    build: Callable[[str | None, Any], Source]
    """Source from a root and an instance of `options`. Raises `UserError` where the root does not fit."""
    needs_root: bool = True
    """False for a source that makes its pairs itself."""


def build_source(name: str, root: str | Path | None = None, assignments: Iterable[str] = ()) -> Source:
    """A source from what is typed: its name, its root and `key=value` options.

    Args:
        name: a key of `SOURCES`.
        root: the archive's folder or table file: a local path, or a URI such as `s3://bucket/archive`.
        assignments: options such as `columns.pair_id=image_id` or `filter=modality == XR`.

    Raises:
        UserError: an unknown name or option (the nearest known one is named), a value out of range, or a
            root that is not this layout.
    """
    kind = source_kind(name)
    options = parse_options(kind, assignments)
    if kind.needs_root and root is None:
        raise UserError(f"{name} needs a root", kind.description)
    if root is not None and kind.needs_root and "://" not in str(root) and not Path(root).exists():
        raise UserError(f"{root} does not exist", f"{name}: {kind.description}")
    return kind.build(None if root is None else str(root), options)


def source_kind(name: str) -> SourceKind:
    """The layout of that name. Raises `UserError` naming the nearest one."""
    try:
        return SOURCES[name]
    except KeyError:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        raise UserError(
            f"{name} is no source; the sources are {', '.join(SOURCES)}",
            f"did you mean {near[0]}?" if near else None,
        ) from None


def parse_options(kind: SourceKind, assignments: Iterable[str]) -> StrictConfig:
    """The options of a layout from `key=value` lines; text stays text, `[a, b]` is a list, `null` is None."""
    return parse_assignments(kind.options, kind.name, assignments)


def parse_assignments(options: type[StrictConfig], owner: str, assignments: Iterable[str]) -> StrictConfig:
    """An instance of `options` from `key=value` lines, as `parse_options`; messages name the owner.

    Raises `UserError` for an unknown key (the nearest known one is named) and a value out of range.
    """
    tree: dict[str, Any] = {}
    known = dotted_keys(options)
    for text in assignments:
        key, value = split_assignment(text, f"{known[0]}=...")
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise UserError(f"--set {key}: {parent} is already given a value")
        branch[leaf] = _value(key, value)
    try:
        return options.model_validate(tree, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1) or [
                name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
            ]
            raise UserError(
                f"--set {key}: {owner} has no such option",
                f"the nearest known one is {near[0]}" if near else f"the options are {', '.join(known)}",
            ) from None
        raise UserError(f"--set {key}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _value(key: str, text: str) -> Any:
    stripped = text.strip()
    if stripped == "null":
        return None
    if stripped.startswith("[") and stripped.endswith("]"):
        try:
            return parse_value(stripped)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: the value is not a valid list", "for example [a, b]") from None
    return text


def _openi(root: str | None, options: OpeniOptions) -> Source:
    from mpma.data.sources.openi import OpeniSource

    assert root is not None
    return OpeniSource.resolve(root, options)


def _manifest(root: str | None, options: ManifestOptions) -> Source:
    from mpma.data.sources.manifest import ManifestSource

    assert root is not None
    return ManifestSource.resolve(root, options)


def _mimic_cxr(root: str | None, options: MimicCxrOptions) -> Source:
    from mpma.data.sources.mimic_cxr import MimicCxrSource

    assert root is not None
    return MimicCxrSource.resolve(root, options)


def _nih14(root: str | None, options: Nih14Options) -> Source:
    from mpma.data.sources.nih14 import Nih14Source

    assert root is not None
    return Nih14Source.resolve(root, options)


def _padchest(root: str | None, options: PadchestOptions) -> Source:
    from mpma.data.sources.padchest import PadchestSource

    assert root is not None
    return PadchestSource.resolve(root, options)


def _vqamed2019(root: str | None, options: VqaMed2019Options) -> Source:
    from mpma.data.sources.vqamed2019 import VqaMed2019Source

    assert root is not None
    return VqaMed2019Source.resolve(root, options)


def _chexpert_plus(root: str | None, options: ChexpertPlusOptions) -> Source:
    from mpma.data.sources.chexpert_plus import ChexpertPlusSource

    assert root is not None
    return ChexpertPlusSource.resolve(root, options)


def _covid_chestxray(root: str | None, options: CovidChestxrayOptions) -> Source:
    from mpma.data.sources.covid_chestxray import CovidChestxraySource

    assert root is not None
    return CovidChestxraySource.resolve(root, options)


def _dicom(root: str | None, options: DicomOptions) -> Source:
    from mpma.data.sources.dicom import DicomSource

    assert root is not None
    return DicomSource.resolve(root, options)


def _masks(root: str | None, options: MasksOptions) -> Source:
    from mpma.data.sources.masks import MasksSource

    assert root is not None
    return MasksSource.resolve(root, options)


def _phantom(root: str | None, options: PhantomConfig) -> Source:
    from mpma.data.sources.phantom import PhantomSource

    return PhantomSource(**options.model_dump())


SOURCES: Final[Mapping[str, SourceKind]] = MappingProxyType(
    {
        "openi": SourceKind(
            "openi",
            "the Open-I folder with NLMCXR_png/ and ecgen-radiology/ or NLMCXR_reports.tgz",
            OpeniOptions,
            _openi,
        ),
        "manifest": SourceKind(
            "manifest",
            "a CSV, TSV or Parquet table of image paths or embedded images and reports, or a folder of them",
            ManifestOptions,
            _manifest,
        ),
        "chexpert_plus": SourceKind(
            "chexpert_plus",
            "the CheXpert Plus folder with df_chexpert_plus_240401.csv and PNG/ or its zips",
            ChexpertPlusOptions,
            _chexpert_plus,
        ),
        "dicom": SourceKind(
            "dicom",
            "a folder of DICOM files, at any depth, and a table of reports, or a folder or zip of text files",
            DicomOptions,
            _dicom,
        ),
        "covid_chestxray": SourceKind(
            "covid_chestxray",
            "the cloned covid-chestxray-dataset with metadata.csv and images/",
            CovidChestxrayOptions,
            _covid_chestxray,
        ),
        "padchest": SourceKind(
            "padchest",
            "the PadChest folder with PADCHEST_chest_x_ray_images_labels_160K_*.csv and 0/ or 0.zip ...",
            PadchestOptions,
            _padchest,
        ),
        "mimic_cxr": SourceKind(
            "mimic_cxr",
            "the folder above mimic-cxr-2.0.0-metadata.csv.gz, files/ and mimic-cxr-reports.zip",
            MimicCxrOptions,
            _mimic_cxr,
        ),
        "nih14": SourceKind(
            "nih14",
            "the NIH ChestX-ray14 folder with Data_Entry_2017_v2020.csv and images/ or images_001/ ...",
            Nih14Options,
            _nih14,
        ),
        "vqamed2019": SourceKind(
            "vqamed2019",
            "the VQA-Med 2019 folder with ImageClef-2019-VQA-Med-Training/ and the like",
            VqaMed2019Options,
            _vqamed2019,
        ),
        "masks": SourceKind(
            "masks",
            "a folder with images/ and masks/ whose files have the same names",
            MasksOptions,
            _masks,
        ),
        "phantom": SourceKind(
            "phantom",
            "synthetic radiographs with true reports, made on the spot; no root",
            PhantomOptions,
            _phantom,
            needs_root=False,
        ),
    }
)
"""Every layout that `ingest` knows."""
