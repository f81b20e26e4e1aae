"""Synthetic phantom: procedural chest radiographs with true reports. They show no patient."""

from __future__ import annotations

from mpma.data.phantom.ceiling import retrieval_ceiling
from mpma.data.phantom.findings import KINDS, LABELS, Description, Finding
from mpma.data.phantom.generate import (
    LICENSE,
    PHANTOM_SCHEMA,
    SOURCE,
    PhantomPair,
    PhantomText,
    generate_pair,
    generate_text,
    phantom_rows,
)
from mpma.data.phantom.planted import PlantedPair, codes_in_cells, information_bits, one_sided_attributes

__all__ = [
    "KINDS",
    "LABELS",
    "LICENSE",
    "PHANTOM_SCHEMA",
    "SOURCE",
    "Description",
    "Finding",
    "PhantomPair",
    "PhantomText",
    "PlantedPair",
    "codes_in_cells",
    "generate_pair",
    "generate_text",
    "information_bits",
    "one_sided_attributes",
    "phantom_rows",
    "retrieval_ceiling",
]
