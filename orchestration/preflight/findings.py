"""What a check found: fine, to be known, or to be mended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    level: Literal["ok", "warning", "failure"]
    name: str
    """What was looked at."""
    found: str
    """What there is."""
    remedy: str = ""
    """What to do; empty where all is well."""


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding("ok", name, found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Something that may be meant."""
    return Finding("warning", name, found, remedy)


def failure(name: str, found: str, remedy: str) -> Finding:
    """Something that a run would fail by, or that lets strangers in."""
    return Finding("failure", name, found, remedy)
