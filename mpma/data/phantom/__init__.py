"""Synthetic phantom: procedural chest radiographs with true reports. They show no patient."""

from __future__ import annotations

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
    "generate_pair",
    "generate_text",
    "phantom_rows",
]
