"""The thresholds of an ingest, as they are typed: `--set quality.KEY=VALUE`, `--min-words` and `--min-side`.

Decisions: every threshold has a key, the two that are changed often have a flag as well; a threshold that is
given in both ways is refused rather than decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mpma.data.quality import QualityConfig
from mpma.data.sources import parse_assignments
from mpma.errors import UserError
from mpma.strict import StrictConfig

_PREFIX: Final = "quality."


class _Keys(StrictConfig):
    quality: QualityConfig = QualityConfig()


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """The lines of `--set` that name a threshold, and those that name an option of the source."""
    every = list(overrides)
    ours = [line for line in every if line.lstrip().startswith(_PREFIX)]
    return ours, [line for line in every if line not in ours]


def thresholds(
    assignments: Iterable[str], min_words: int | None = None, min_side: int | None = None
) -> dict[str, Any]:
    """The thresholds that were given, by key of `QualityConfig`.

    Args:
        assignments: `quality.KEY=VALUE` lines.
        min_words: of `--min-words`; None: not given.
        min_side: of `--min-side`.

    Raises `UserError` for an unknown key, a value out of range, and a threshold given in both ways.
    """
    parsed = parse_assignments(_Keys, "an ingest", assignments)
    assert isinstance(parsed, _Keys)
    given: dict[str, Any] = {key: getattr(parsed.quality, key) for key in parsed.quality.model_fields_set}
    flags = (("--min-words", "min_report_words", min_words), ("--min-side", "min_side_pixels", min_side))
    for flag, key, value in flags:
        if value is None:
            continue
        if key in given:
            raise UserError(
                f"{flag} and --set {_PREFIX}{key} are both given", f"{flag} is short for it: leave one out"
            )
        given[key] = value
    return given
