"""Where a dataset's pairs come from: the steps that its marker tells.

Decisions: a dataset made from others takes over their steps and adds its own, so that the marker alone
tells the whole way from the archives; a step names its parents by fingerprint, and each step carries
the fingerprint of what it made, so that the two can be told to be the same; a step that two parents
share is told once. Dates are left out: equal inputs give equal markers, and a file knows its date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mpma.data.dataset_info import DatasetInfo, HistoryStep, ParentInfo, SplitInfo
from mpma.data.sources.contract import Rejection


@dataclass(frozen=True)
class Origin:
    """What a dataset is made from."""

    step: Literal["ingest", "onto", "merge"]
    source: str | None = None
    """Name of the archive's source, where there is one."""
    parents: tuple[DatasetInfo, ...] = ()
    carried: tuple[Rejection, ...] = ()
    """What the parents had refused; the new quarantine keeps it."""

    def history(
        self,
        splits: Mapping[str, SplitInfo],
        refused: Iterable[Rejection],
        fingerprint: str,
        tokenizer: Literal["trained", "kept"],
        software: Mapping[str, str],
    ) -> list[HistoryStep]:
        """The parents' steps, each once, and the one that made `splits` and refused `refused`."""
        reasons = Counter(item.reason for item in refused)
        pairs = {name: split.pairs for name, split in splits.items()}
        steps: list[HistoryStep] = []
        for step in (step for parent in self.parents for step in parent.history):
            if step not in steps:
                steps.append(step)
        own = HistoryStep(
            step=self.step,
            source=self.source,
            parents=[
                ParentInfo(fingerprint=parent.fingerprint, pairs=_pairs(parent)) for parent in self.parents
            ],
            candidates=sum(pairs.values()) + reasons.total(),
            quarantined=dict(sorted(reasons.items())),
            pairs=pairs,
            tokenizer=tokenizer,
            fingerprint=fingerprint,
            software=dict(software),
        )
        return [*steps, own]


def _pairs(info: DatasetInfo) -> int:
    return sum(split.pairs for split in info.splits.values())
