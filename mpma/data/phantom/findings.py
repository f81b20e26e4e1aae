"""What is there: the structured truth of a pair, from which image, report, labels, masks and answers
are made.

Decisions: labels of the lungs name their side (`left_nodule`), so that they cannot be read from
global grey statistics and so that mirrored images carry other labels; findings are drawn
independently but for a few physical exclusions (fluid hides what lies in it); every positive fact of
the truth is told in the report and no other is, so that the facts are exactly what can be retrieved.
Besides findings there are traits of patient and film (lung volume, penetration, scoliosis, ...):
told and visible, but not labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpma.data.phantom.anatomy import (
    MILLIMETRES_PER_UNIT,
    Anatomy,
    Exposure,
    sample_anatomy,
    sample_exposure,
)
from mpma.data.phantom.draws import Draws

SIDED_KINDS: Final = ("nodule", "consolidation", "effusion", "pneumothorax", "elevated_diaphragm")
"""Kinds whose label names the side."""

DEVICES: Final = ("endotracheal_tube", "pacemaker", "central_line")
"""Kinds that share the label `support_device`."""

KINDS: Final = (*SIDED_KINDS, "atelectasis", "rib_fracture", "cardiomegaly", "interstitial_pattern", *DEVICES)
"""Every kind of finding. The report tells the side of every kind that has one."""

LABELS: Final = (
    *(f"{side}_{kind}" for kind in SIDED_KINDS for side in ("left", "right")),
    "atelectasis",
    "rib_fracture",
    "cardiomegaly",
    "interstitial_pattern",
    "support_device",
)
"""Every label a chest phantom can have, in a fixed order."""

PREVALENCE: Final = {
    "nodule": 0.17,
    "consolidation": 0.24,
    "effusion": 0.30,
    "pneumothorax": 0.32,
    "elevated_diaphragm": 0.17,
    "atelectasis": 0.13,
    "rib_fracture": 0.11,
    "cardiomegaly": 0.28,
    "interstitial_pattern": 0.13,
    "endotracheal_tube": 0.11,
    "pacemaker": 0.11,
    "central_line": 0.11,
}
"""Probability of each kind before exclusions."""

GRADES: Final = {
    "consolidation": ("small", "moderate", "large"),
    "effusion": ("small", "moderate", "large"),
    "pneumothorax": ("small", "moderate", "large"),
    "atelectasis": ("thin", "thick"),
    "cardiomegaly": ("mild", "moderate", "severe"),
    "interstitial_pattern": ("mild", "moderate", "severe"),
}
"""Size or severity classes, smallest first; kinds not listed have none (a nodule has millimetres)."""

TRAITS: Final = (
    "low_volume",
    "high_volume",
    "underpenetrated",
    "overpenetrated",
    "scoliosis",
    "prominent_aorta",
    "gastric_distension",
    "large_habitus",
    "monitoring_leads",
)
"""What is told of patient and film besides the findings."""

MOST_FINDINGS: Final = 4


@dataclass(frozen=True)
class Finding:
    """One finding: what the report says of it and where it is drawn."""

    kind: str
    side: str = ""
    """`left`, `right`, or empty where the kind has none."""
    zone: str = ""
    """`upper`, `mid`, `lower`, or empty where the kind has none."""
    grade: str = ""
    """Size or severity class of `GRADES`."""
    millimetres: int = 0
    """Diameter of the (largest) nodule; distance of a tube's tip above the carina."""
    count: int = 1
    """How many nodules."""
    rib: int = 0
    """Number of the uppermost of the three broken ribs."""
    places: tuple[tuple[float, float, float], ...] = ()
    """Centres and radii (X, Y, radius) in body units."""
    angle: float = 0.0
    """Direction of a band, radians."""
    contrast: float = 1.0
    """How well it stands out, 0.7 to 1.2; a nuisance, never told."""

    @property
    def label(self) -> str:
        """Its entry of `LABELS`."""
        if self.kind in SIDED_KINDS:
            return f"{self.side}_{self.kind}"
        return "support_device" if self.kind in DEVICES else self.kind

    @property
    def fact(self) -> tuple[str | int, ...]:
        """All that a report tells of it."""
        return (self.kind, self.side, self.zone, self.grade, self.millimetres, self.count, self.rib)


@dataclass(frozen=True)
class Description:
    """The whole truth of one pair."""

    anatomy: Anatomy
    exposure: Exposure
    findings: tuple[Finding, ...]
    traits: tuple[tuple[str, str], ...]
    """(trait, side or empty), in the order of `TRAITS`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels present, in the order of `LABELS`."""
        present = {finding.label for finding in self.findings}
        return tuple(label for label in LABELS if label in present)

    @property
    def facts(self) -> frozenset[tuple[str | int, ...]]:
        """Everything told that the image shows; two pairs with equal facts cannot be told apart."""
        return frozenset(finding.fact for finding in self.findings) | frozenset(self.traits)

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)


def sample_description(index: int, seed: int) -> Description:
    """The truth of pair `index`; a pure function of its arguments, independent of the image's size."""
    draws = Draws(index, seed, "findings")
    kinds = [kind for kind in KINDS if draws.chance(PREVALENCE[kind])]
    while len(kinds) > MOST_FINDINGS:
        kinds.pop(draws.integer(0, len(kinds) - 1))
    sides = {kind: draws.choice(("left", "right")) for kind in KINDS}
    hides_lung = {sides[kind] for kind in ("effusion", "consolidation", "atelectasis") if kind in kinds}
    if "pneumothorax" in kinds and sides["pneumothorax"] in hides_lung:
        kinds.remove("pneumothorax")
    raised = sides["elevated_diaphragm"] if "elevated_diaphragm" in kinds else ""
    traits = _sample_traits(draws, normal_volume=bool(raised))
    heart = draws.weighted((("mild", 0.3), ("moderate", 0.4), ("severe", 0.3)))
    body = Draws(index, seed, "anatomy")
    volume = "low" if "low_volume" in traits else "high" if "high_volume" in traits else "normal"
    anatomy = sample_anatomy(
        body,
        volume=volume,
        heart=heart if "cardiomegaly" in kinds else "normal",
        raised=raised,
        traits=traits,
    )
    penetration = (
        "under" if "underpenetrated" in traits else "over" if "overpenetrated" in traits else "normal"
    )
    exposure = sample_exposure(body, penetration)
    fluid = ""
    findings: list[Finding] = []
    for kind in sorted(kinds, key=lambda kind: kind != "effusion"):
        finding = _sample_finding(draws, anatomy, kind, sides, heart, fluid)
        if kind == "effusion":
            fluid = finding.grade
        findings.append(finding)
    findings.sort(key=lambda finding: KINDS.index(finding.kind))
    return Description(
        anatomy, exposure, tuple(findings), tuple((name, traits[name]) for name in TRAITS if name in traits)
    )


def _sample_traits(draws: Draws, *, normal_volume: bool) -> dict[str, str]:
    traits: dict[str, str] = {}
    volume = draws.weighted((("", 0.80), ("low_volume", 0.11), ("high_volume", 0.09)))
    penetration = draws.weighted((("", 0.90), ("underpenetrated", 0.05), ("overpenetrated", 0.05)))
    for name in ("" if normal_volume else volume, penetration):
        if name:
            traits[name] = ""
    if draws.chance(0.07):
        traits["scoliosis"] = draws.choice(("left", "right"))
    for name, probability in (
        ("prominent_aorta", 0.06),
        ("gastric_distension", 0.05),
        ("large_habitus", 0.06),
        ("monitoring_leads", 0.10),
    ):
        if draws.chance(probability):
            traits[name] = ""
    return traits


def _sample_finding(
    draws: Draws, anatomy: Anatomy, kind: str, sides: dict[str, str], heart: str, fluid: str
) -> Finding:
    side = sides[kind]
    contrast = draws.uniform(0.7, 1.2)
    zones: tuple[str, ...] = ("upper", "mid", "lower")
    if fluid and sides["effusion"] == side:
        zones = {"small": ("upper", "mid"), "moderate": ("upper", "mid"), "large": ("upper",)}[fluid]
    zone = draws.choice(zones)
    if kind == "nodule":
        return _nodule(draws, anatomy, side, zone, contrast)
    if kind == "consolidation":
        grade = draws.choice(GRADES[kind])
        radius = {"small": (0.14, 0.16), "moderate": (0.20, 0.23), "large": (0.28, 0.33)}[grade]
        x, y = anatomy.place(draws, side, zone, 0.06)
        place = (x, y, draws.uniform(*radius))
        return Finding(kind, side, zone, grade, places=(place,), contrast=contrast)
    if kind == "effusion":
        grade = draws.weighted((("small", 0.3), ("moderate", 0.38), ("large", 0.32)))
        height = anatomy.base(side) - anatomy.apex
        share = {"small": (0.0, 0.04), "moderate": (0.19, 0.26), "large": (0.40, 0.52)}[grade]
        level = anatomy.base(side) - draws.uniform(*share) * height
        return Finding(kind, side, "lower", grade, places=((0.0, level, 0.0),), contrast=contrast)
    if kind == "pneumothorax":
        grade = draws.choice(GRADES[kind])
        gap = {"small": (0.08, 0.10), "moderate": (0.15, 0.19), "large": (0.25, 0.32)}[grade]
        return Finding(kind, side, "", grade, places=((0.0, 0.0, draws.uniform(*gap)),), contrast=contrast)
    if kind == "atelectasis":
        if zone == "upper" and "mid" in zones:
            zone = "mid"
        grade = draws.choice(GRADES[kind])
        x, y = anatomy.place(draws, side, zone, 0.10)
        thickness = draws.uniform(0.024, 0.030) if grade == "thin" else draws.uniform(0.05, 0.065)
        return Finding(
            kind,
            side,
            zone,
            grade,
            places=((x, y, thickness),),
            angle=draws.uniform(-0.45, 0.45),
            contrast=contrast,
        )
    if kind == "rib_fracture":
        rib = draws.integer(3, 6)
        across = draws.uniform(0.70, 0.86) * anatomy.thorax_half_width
        sign = 1.0 if side == "left" else -1.0
        places = tuple(
            (sign * across, anatomy.rib_height(number, across), draws.uniform(0.042, 0.052))
            for number in (rib, rib + 1, rib + 2)
        )
        return Finding(kind, side, rib=rib, places=places, contrast=contrast)
    if kind == "cardiomegaly":
        return Finding(kind, grade=heart)
    if kind == "interstitial_pattern":
        grade = draws.choice(GRADES[kind])
        return Finding(kind, zone=draws.choice(("upper", "lower")), grade=grade, contrast=contrast)
    if kind == "endotracheal_tube":
        return Finding(kind, millimetres=10 * draws.integer(1, 5), contrast=contrast)
    return Finding(kind, side, contrast=contrast)


def _nodule(draws: Draws, anatomy: Anatomy, side: str, zone: str, contrast: float) -> Finding:
    count = draws.weighted(((1, 0.75), (2, 0.17), (3, 0.08)))
    millimetres = draws.integer(20, 54)
    places: list[tuple[float, float, float]] = []
    for number in range(count):
        size = millimetres if number == 0 else draws.uniform(0.6, 0.9) * millimetres
        radius = 0.5 * max(size, 9.0) / MILLIMETRES_PER_UNIT
        for _ in range(8):
            x, y = anatomy.place(draws, side, zone, radius + 0.02)
            if all((x - a) ** 2 + (y - b) ** 2 > (radius + other + 0.02) ** 2 for a, b, other in places):
                places.append((x, y, radius))
                break
    return Finding(
        "nodule",
        side,
        zone,
        millimetres=millimetres,
        count=len(places),
        places=tuple(places),
        contrast=contrast,
    )
