"""From one listed item to one row of a shard, or to the reason why not.

Decisions: everything that can go wrong with a single candidate ends as a `Rejection` here, never as an
exception that would lose its neighbours; the image is decoded once, for the guards, the stored file and
the grey statistics together; a mask follows its image when that is shrunk, by nearest neighbour so that
its values stay what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from mpma.data.dataset_writing import LoadedPair, Part, Row, finished_part, write_part
from mpma.data.images import StoredImage, store_image
from mpma.data.ingest_plan import IngestOptions, PartPlan
from mpma.data.masks import fitted_mask
from mpma.data.quality import (
    QualityConfig,
    check_item,
    check_pixels,
    image_problem,
    is_missing,
    mask_problem,
    resolve_sections,
)
from mpma.data.reading_ahead import reading_ahead
from mpma.data.shards import shard_schema
from mpma.data.sources.contract import Item, Rejection, Source, UnreadableImage
from mpma.data.storage import Storage

_ARROW_ERRORS: Final = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)


@dataclass(frozen=True)
class PartMaker:
    """Makes the parts of one ingest. Picklable, so that any process can."""

    source: Source
    options: IngestOptions
    storage: Storage

    def make(self, plan: PartPlan) -> Part:
        """The part as an earlier run left it, else made now and written."""
        done = finished_part(self.storage, plan.name)
        if done is not None:
            return done
        schema = shard_schema(self.extra_schema())
        return write_part(self.storage, plan.name, plan.split, schema, self.rows(plan.items()))

    def extra_schema(self) -> pa.Schema:
        """The columns behind the pair's own."""
        return self.source.extra_schema()

    def rows(self, items: Iterable[Item]) -> Iterator[Row | Rejection]:
        """A row or a refusal for each item, in order."""
        extra_schema, listed = self.extra_schema(), list(items)
        with reading_ahead(self.source, listed) as source:
            for item in listed:
                yield make_row(item, source, self.options, extra_schema)


def make_row(
    item: Item, source: Source, options: IngestOptions, extra_schema: pa.Schema
) -> LoadedPair | Rejection:
    """Load, check and encode one item whose identifiers are hashed already."""
    refused = check_item(item, options.quality)
    if refused is not None:
        return refused
    try:
        image = store_image(
            source.load_image(item),
            options.short_side_pixels,
            options.jpeg_quality,
            options.image_format,
            options.quality.max_pixels,
        )
        _check_size(image, options.quality)
        extra = _extra(item, source, image, extra_schema, options.quality)
    except _WrongTypeError as error:
        return Rejection(item.path, item.pair_id, "wrong_type", f"column {error}")
    except Exception as error:
        # Only what the image's own state explains; a defect of this software is raised again.
        return Rejection(item.path, item.pair_id, *image_problem(error))
    findings, impression = resolve_sections(item)
    row = {
        "pair_id": _text(item.stored_id or item.pair_id),
        "patient_id": item.patient_id,
        "study_id": item.study_id,
        "image": image.data,
        "width": image.width,
        "height": image.height,
        "view": item.view,
        # Words for nothing (NaN) would be read as a report where none is asked for.
        "report": "" if is_missing(item.report) else _text(item.report),
        "findings": _text(findings),
        "impression": _text(impression),
        "labels": None if item.labels is None else list(dict.fromkeys(map(_text, item.labels))),
        "source": _text(item.source or source.name),
        "license": _text(item.license),
        **extra,
    }
    return LoadedPair(row, image.pixels, (image.original_width, image.original_height))


class _WrongTypeError(Exception):
    """A value that its column cannot hold; the message is the column's name."""


def _extra(
    item: Item, source: Source, image: StoredImage, schema: pa.Schema, quality: QualityConfig
) -> dict[str, Any]:
    try:
        values = {**item.extra, **source.load_extra(item)}
    except Exception as error:
        raise UnreadableImage(*mask_problem(error)) from error
    found = {field.name: values.get(field.name) for field in schema}
    for field in schema:
        try:
            pa.array([found[field.name]], field.type)
        except (*_ARROW_ERRORS, UnicodeError, OverflowError, TypeError, ValueError) as error:
            raise _WrongTypeError(field.name) from error
    mask = found.get("mask")
    if mask is not None:
        found["mask"] = fitted_mask(
            mask,
            (image.width, image.height),
            (image.original_width, image.original_height),
            quality.max_pixels,
        )
    return found


def _check_size(image: StoredImage, quality: QualityConfig) -> None:
    # The threshold is for the image as it came; what is stored may have been shrunk below it.
    if min(image.original_width, image.original_height) < quality.min_side_pixels:
        raise UnreadableImage(
            "too_small",
            f"{image.original_width} x {image.original_height}, the least side is {quality.min_side_pixels}",
        )
    check_pixels(image.pixels, quality.model_copy(update={"min_side_pixels": 1}))


def _text(text: str) -> str:
    """Text that UTF-8 can hold: a lone half of a surrogate pair becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
