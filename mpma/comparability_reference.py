"""Writes the tables of docs/search.md on what may be searched, and what may rank it, from the lists.

`python -m mpma.comparability_reference` rewrites them. Decisions: the tables ask `objection` as a search
does, so they cannot say anything else; keys with equal verdicts share a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mpma.comparability import LOSSES, MOVES, NOT_SEARCHED, OBJECTIVES, TERMS, objection

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "search.md"
BEGIN: Final = "<!-- verdicts: written by python -m mpma.comparability_reference -->\n"
END: Final = "<!-- end of the verdicts -->\n"


def reference() -> str:
    """Markdown: searchable keys by the objectives that they rule out, and keys that are not searched."""
    lines = ["| while one of these is searched | these cannot be the objective | because |", "|---|---|---|"]
    free = []
    for (refused, because), keys in _verdicts().items():
        if refused:
            lines.append(f"| {_keys(keys)} | {_metrics(refused)} | {'; '.join(because)} |")
        else:
            free = keys
    lines += ["", f"Every objective compares while these are searched: {_keys(free)}.", ""]
    lines += ["| never searched | because |", "|---|---|"]
    by_reason: dict[str, list[str]] = {}
    for key, reason in NOT_SEARCHED.items():
        by_reason.setdefault(reason, []).append(key)
    lines += [f"| {_keys(keys)} | {reason} |" for reason, keys in by_reason.items()]
    return "\n".join(lines) + "\n"


def _verdicts() -> dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]]:
    """Searchable keys by (objectives refused, reasons)."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for key in MOVES:
        against = [one for metric in OBJECTIVES if (one := objection(metric, key)) is not None]
        refused = tuple(one.metric for one in against)
        because = tuple(dict.fromkeys(one.reason for one in against))
        found.setdefault((refused, because), []).append(key)
    return found


def _keys(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def _metrics(refused: Iterable[str]) -> str:
    """Objectives in few words. A term's training and validation loss, always refused together, are told by
    the term's name."""
    left = set(refused)
    if left >= set(LOSSES):
        return ", ".join(["every loss", *(f"`{name}`" for name in OBJECTIVES if name in left - set(LOSSES))])
    words = []
    for term in TERMS:
        both = {f"loss/{term}", f"val/loss/{term}"}
        if both <= left:
            words.append(f"`{term}`")
            left -= both
    return ", ".join([*words, *(f"`{name}`" for name in OBJECTIVES if name in left)])


def replaced(page: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + reference() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
