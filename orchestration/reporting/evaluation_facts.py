"""What `evaluation.json` says, read with care: figures by task, variant and model, and what they show.

Decisions:
- A figure that does not exist is None everywhere, whatever way a file says so, so that no page can show it
  as a number.
- Each variant of a task has one lead figure, the first of its headline: it alone decides whether a model is
  better, so nobody can choose among figures after having seen them.
- A model is better on a task only where the paired interval of every lead figure lies above zero; some of
  several is "in part", and is told as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from mpma.downstream.summary import prefixed
from orchestration.reporting.evaluation_wording import METHOD_NAMES, TASK_NAMES
from orchestration.search.sections import finite

UNTRAINED: Final = "untrained"

Shown = Literal["better", "in part", "no difference", "worse", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval over patients."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    by_seed: Sequence[float | None] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high is not None and self.high < 0


def estimate(told: Any) -> Estimate:
    """An entry of the file; None in every place that holds no finite number."""
    if not isinstance(told, Mapping):
        return Estimate()
    seeds = told.get("by_seed") or ()
    return Estimate(
        finite(told.get("value")),
        finite(told.get("low")),
        finite(told.get("high")),
        tuple(finite(one) for one in seeds),
    )


@dataclass(frozen=True)
class TaskResult:
    """One task's section of the file."""

    task: str
    section: Mapping[str, Any]
    models: Sequence[str]
    """All, the judged one first."""

    @property
    def judged(self) -> str:
        """The model that the others are compared with."""
        return self.models[0]

    @property
    def state(self) -> str:
        """`done`, `partly`, `skipped` or `failed`."""
        return str(self.section.get("state", "done"))

    @property
    def reason(self) -> str:
        """Why it was skipped or failed; empty where it was not."""
        return str(self.section.get("reason") or "")

    @property
    def patients(self) -> int | None:
        """Patients that are judged."""
        found = finite(self.section.get("patients"))
        return None if found is None else int(found)

    @cached_property
    def variants(self) -> list[str]:
        """Method and share of labels; one empty text where the task has a single way."""
        order = list(METHOD_NAMES)

        def place(variant: str) -> int:
            method = variant.partition("/")[0]
            return order.index(method) if method in order else len(order)

        return sorted(self.section.get("seeds") or {}, key=place)

    @cached_property
    def names(self) -> list[str]:
        """Every figure with its variant, in the file's order."""
        found: dict[str, None] = {}
        for model in self.models:
            found.update(dict.fromkeys(self.section.get(model) or {}))
        return list(found)

    def figures(self, variant: str) -> list[str]:
        """Figures of a variant, without it."""
        if not variant:
            return list(self.names)
        return [name.removeprefix(f"{variant}/") for name in self.names if name.startswith(f"{variant}/")]

    def headline(self, variant: str) -> list[str]:
        """Those that stand first."""
        first = set(self.section.get("headline") or ())
        return [name for name in self.figures(variant) if prefixed(variant, name) in first]

    def lead(self, variant: str) -> str | None:
        """The figure that decides; None where the variant has none."""
        return next(iter(self.headline(variant)), None)

    @cached_property
    def leads(self) -> list[tuple[str, str]]:
        """(variant, lead figure) of every variant that has one."""
        found = ((variant, self.lead(variant)) for variant in self.variants)
        return [(variant, name) for variant, name in found if name is not None]

    @cached_property
    def fullest(self) -> list[str]:
        """The variant with the most labels, of each method."""
        by_method: dict[str, tuple[float, str]] = {}
        for variant in self.variants:
            method = variant.partition("/")[0]
            found = (share(variant) or 0.0, variant)
            by_method[method] = max(by_method.get(method, found), found)
        return [variant for _, variant in by_method.values()]

    def of(self, model: str, variant: str, name: str) -> Estimate:
        """A model's figure."""
        return estimate((self.section.get(model) or {}).get(prefixed(variant, name)))

    def chance(self, variant: str, name: str) -> float | None:
        """What a model that knows nothing gets."""
        return finite((self.section.get("chance") or {}).get(prefixed(variant, name)))

    def difference(self, other: str, variant: str, name: str) -> Estimate:
        """The judged model minus another, paired."""
        table = (self.section.get("differences") or {}).get(other) or {}
        return estimate(table.get(prefixed(variant, name)))

    def parts(self, variant: str) -> dict[str, list[str]]:
        """Figures that are told by label, type or the like: `auroc` -> [`auroc/effusion`, ...]."""
        names = self.figures(variant)
        found: dict[str, list[str]] = {}
        for name in names:
            base, _, rest = name.partition("/")
            if rest and base in names:
                found.setdefault(base, []).append(name)
        return found


def share(variant: str) -> float | None:
    """Share of labels of a variant: 0.1 of `linear_probe/10%`."""
    text = variant.rpartition("/")[2]
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Verdict:
    """What the lead figures of a task say of the judged model beside another."""

    shown: Shown
    better: int = 0
    worse: int = 0
    total: int = 0
    """Lead figures."""
    unknown: int = 0
    """Of these, those without a difference."""

    @property
    def open(self) -> int:
        """Those whose interval contains zero."""
        return self.total - self.better - self.worse - self.unknown


def verdict_of(result: TaskResult, other: str = UNTRAINED) -> Verdict:
    """Whether the judged model is better on the task."""
    found = [result.difference(other, variant, name) for variant, name in result.leads]
    known = [one for one in found if one.interval is not None]
    better, worse = sum(one.better for one in known), sum(one.worse for one in known)
    shown: Shown = "no difference"
    if not known:
        shown = "unknown"
    elif worse:
        shown = "worse"
    elif better == len(found):
        shown = "better"
    elif better:
        shown = "in part"
    return Verdict(shown, better, worse, len(found), len(found) - len(known))


@dataclass(frozen=True)
class Evaluation:
    """The whole file."""

    summary: Mapping[str, Any]
    results: Sequence[TaskResult] = field(default_factory=tuple)
    """Tasks that were asked for, in the order of the page."""

    @property
    def models(self) -> list[str]:
        """Names of all models, the judged one first."""
        return [str(model["name"]) for model in self.summary["models"]]

    @property
    def synthetic(self) -> bool:
        """Whether the patients are made up."""
        return bool(self.summary.get("synthetic"))

    @property
    def spoiled(self) -> bool:
        """Whether patients who are judged on were seen in pre-training.

        Patients fitted on may have been: their pictures were seen, their labels were not.
        """
        overlap = self.summary.get("overlap") or {}
        return any((overlap.get(key) or 0) > 0 for key in ("patients", "images"))

    @property
    def unchecked(self) -> bool:
        """Whether it is not known if they were."""
        return not (self.summary.get("overlap") or {}).get("checked", True)


def evaluation_of(summary: Mapping[str, Any]) -> Evaluation:
    """The file's tasks and models."""
    models = [str(model["name"]) for model in summary["models"]]
    results = [
        TaskResult(task, summary[task], models)
        for task in TASK_NAMES
        if isinstance(summary.get(task), Mapping)
    ]
    return Evaluation(summary, results)
