"""Pictures on a dataset's page, where the user asked for them: of refused candidates, and of equal pictures.

Decisions: they are numbered within a group and never named; whom one shows is found by the group's number in
the dataset's own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestration.reporting.html import Html, element


@dataclass(frozen=True)
class Shot:
    """A picture of a patient as a `data:` address, and what is written under it."""

    uri: str
    caption: str


@dataclass(frozen=True)
class GroupShots:
    """Pictures of one group of near duplicates."""

    number: int
    """As `near_duplicates.parquet` numbers it."""
    relation: str
    pairs: int
    """All of the group; more than are shown."""
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Thumbnails:
    """What the user asked to see."""

    refused: Mapping[str, Sequence[Shot]] = field(default_factory=dict)
    """By reason, of refused candidates whose pixels could be read."""
    groups: Sequence[GroupShots] = ()

    @property
    def any(self) -> bool:
        return bool(self.groups) or any(self.refused.values())


def picture_card(shots: Sequence[Shot], title: str | None = None, pairs: int | None = None) -> Html:
    """Pictures beside each other; `pairs`: how many there are in all."""
    figures = [
        element(
            "figure",
            element("img", src=shot.uri, alt=shot.caption, loading="lazy"),
            element("figcaption", shot.caption),
            class_="shot",
        )
        for shot in shots
    ]
    more = f" · {pairs - len(shots)} more" if pairs is not None and pairs > len(shots) else ""
    return element(
        "article",
        element("p", f"{title}{more}", class_="kicker") if title else None,
        element("div", *figures, class_="shots"),
        class_="example",
    )
