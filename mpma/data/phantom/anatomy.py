"""The synthetic patient: where lungs, heart, ribs and diaphragm lie, and how the film was exposed.

Decisions: the body has its own coordinates, X from -1 to 1 across and Y from -1 to 1 downwards, with
the patient's LEFT at positive X (the right of the image, as radiographs are shown); one unit is
`MILLIMETRES_PER_UNIT`. A patient is a few numbers, so that a place can be chosen inside a lung
without drawing a pixel. Tilt is a shear, which keeps Y constant along image rows: every profile that
depends on height alone is then one column of numbers, which is most of the generator's speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpma.data.phantom.draws import Draws

MILLIMETRES_PER_UNIT: Final = 180.0

SIDES: Final = ("right", "left")

ZONES: Final = ("upper", "mid", "lower")

HEART_CLASSES: Final = {
    "normal": (0.39, 0.465),
    "mild": (0.535, 0.565),
    "moderate": (0.575, 0.615),
    "severe": (0.63, 0.69),
}
"""Heart width over inner thoracic width by class. Above 0.5 is cardiomegaly; the gap around 0.5 keeps
the truth clear of the rendering's resolution."""

HEART_TILT: Final = 0.40
"""Sideways shift of the heart's chord per unit of height: its apex points to the patient's left."""

VOLUME_CLASSES: Final = {"low": (0.24, 0.34), "normal": (0.46, 0.56), "high": (0.66, 0.74)}
"""Height Y of the right dome of the diaphragm by lung volume."""


@dataclass(frozen=True)
class Anatomy:
    """One patient's shape, in body units unless a name says otherwise."""

    scale: float
    shift_x: float
    shift_y: float
    shear: float
    thorax_half_width: float
    apex: float
    base_right: float
    base_left: float
    usual_base_right: float
    """Where the dome would stand were it not raised."""
    usual_base_left: float
    mediastinum_half_width: float
    heart_ratio: float
    """Heart width over inner thoracic width."""
    heart_shift: float
    """Centre of the heart towards the patient's left, as a share of its half width."""
    heart_height: float
    """Vertical half axis of the heart."""
    knob_radius: float
    spine_curve: float
    """Sideways amplitude of the spine; positive is convex to the patient's left."""
    gastric_radius: float
    rib_pitch: float
    rib_contrast: float
    rib_slope: float
    clavicle_slope: float
    habitus: float
    """Soft tissue, 0 slim to 1 large."""
    breast: float
    """Strength of the breast shadows, 0 for none."""
    vessel_contrast: float

    def base(self, side: str) -> float:
        """Height of the top of the side's dome."""
        return self.base_left if side == "left" else self.base_right

    @property
    def heart_half_width(self) -> float:
        """Half of the heart's greatest width."""
        return self.heart_ratio * self.thorax_half_width

    @property
    def heart_half_axis(self) -> float:
        """Half chord at the heart's middle: an ellipse sheared by `HEART_TILT` is that much wider."""
        return float((self.heart_half_width**2 - (HEART_TILT * self.heart_height) ** 2) ** 0.5)

    @property
    def heart_x(self) -> float:
        """Centre of the heart; positive is the patient's left."""
        return self.heart_shift * self.heart_half_width

    @property
    def heart_y(self) -> float:
        """Height of the heart's centre: the heart rests on the diaphragm."""
        return min(self.base_left, self.base_right + 0.04) - 0.62 * self.heart_height

    def lateral(self, y: float) -> float:
        """Distance of the lung's outer edge from the midline at height y."""
        middle = 0.30
        rise = min(max((middle - y) / (middle - self.apex), 0.0), 1.0)
        return self.thorax_half_width * float((1.0 - rise**2.6) ** 0.62)

    def medial(self, y: float, side: str) -> float:
        """Distance from the midline at which the side's lung field begins: mediastinum or heart."""
        edge = self.mediastinum_half_width
        height = (y - self.heart_y) / self.heart_height
        if abs(height) < 1.0:
            sign = 1.0 if side == "left" else -1.0
            centre = self.heart_x + HEART_TILT * (y - self.heart_y)
            edge = max(edge, sign * centre + self.heart_half_axis * float((1.0 - height * height) ** 0.5))
        return edge

    def zone_range(self, zone: str, side: str) -> tuple[float, float]:
        """Top and bottom height of a third of the side's lung."""
        height = (self.base(side) - self.apex) / 3.0
        top = self.apex + ZONES.index(zone) * height
        return top, top + height

    def rib_height(self, number: int, x: float) -> float:
        """Height of the centre of posterior rib `number` (1..10) at |X| = x."""
        across = x / self.thorax_half_width
        return self.apex + 0.02 + self.rib_pitch * (number - 1) + rib_offset(across, self.rib_slope)

    def place(self, draws: Draws, side: str, zone: str, margin: float) -> tuple[float, float]:
        """A random point (X, Y) of the side's lung zone, `margin` from its edges where there is room."""
        top, bottom = self.zone_range(zone, side)
        sign = 1.0 if side == "left" else -1.0
        best = (-1.0, sign * 0.4, 0.5 * (top + bottom))
        for _ in range(12):
            y = draws.uniform(top + 0.2 * (bottom - top), bottom - 0.15 * (bottom - top))
            inner, outer = self.medial(y, side) + margin, self.lateral(y) - margin
            if outer - inner > best[0]:
                x = draws.uniform(inner, outer) if outer > inner else 0.5 * (inner + outer)
                best = (outer - inner, sign * x, y)
            if best[0] > 0.08:
                break
        return best[1], best[2]


def rib_offset(across: float, slope: float) -> float:
    """Height of a posterior rib at `across` of the half thorax below its height at the spine."""
    return slope * (across**3 - 0.22 * across)


@dataclass(frozen=True)
class Exposure:
    """How the film was taken: no finding, all nuisance, save the penetration class told in reports."""

    gain: float
    offset: float
    gamma: float
    gradient_x: float
    gradient_y: float
    noise: float
    """Standard deviation of the fine noise, in display units of 0..1."""
    mottle: float
    """Standard deviation of the coarse noise."""
    blur: float
    """Strength of the unsharpness, 0 to 1."""
    collimation: tuple[float, float, float, float]
    """Shares of the image hidden at left, right, top and bottom."""
    marker: str
    """Side letter shown in a corner: `L`, `R` or empty."""
    nipples: float
    """Strength of the pair of nipple shadows, 0 for none."""
    fold: tuple[float, float, float, float] | None
    """A skin fold: X and Y of a point, direction in radians, strength."""


def sample_anatomy(draws: Draws, *, volume: str, heart: str, raised: str, traits: dict[str, str]) -> Anatomy:
    """A patient of the given lung volume and heart class; `raised` is the side of a raised diaphragm.

    `traits` may hold `scoliosis` (side), `prominent_aorta`, `gastric_distension` and `large_habitus`.
    """
    base = draws.uniform(*VOLUME_CLASSES[volume])
    base_left = base + draws.uniform(0.02, 0.06)
    usual = (base, base_left)
    if raised == "right":
        base -= draws.uniform(0.18, 0.27)
    elif raised == "left":
        base_left -= draws.uniform(0.22, 0.31)
    curve = draws.uniform(-0.012, 0.012)
    if "scoliosis" in traits:
        curve = draws.uniform(0.075, 0.12) * (1.0 if traits["scoliosis"] == "left" else -1.0)
    thorax = draws.uniform(0.64, 0.79)
    return Anatomy(
        scale=draws.uniform(0.90, 1.08),
        shift_x=draws.uniform(-0.06, 0.06),
        shift_y=draws.uniform(-0.05, 0.07),
        shear=draws.uniform(-0.05, 0.05),
        thorax_half_width=thorax,
        apex=draws.uniform(-0.76, -0.66),
        base_right=base,
        base_left=base_left,
        usual_base_right=usual[0],
        usual_base_left=usual[1],
        mediastinum_half_width=draws.uniform(0.105, 0.145),
        heart_ratio=draws.uniform(*HEART_CLASSES[heart]),
        heart_shift=draws.uniform(0.24, 0.36),
        heart_height=draws.uniform(0.30, 0.36) + (0.04 if heart in ("moderate", "severe") else 0.0),
        knob_radius=draws.uniform(0.145, 0.18) if "prominent_aorta" in traits else draws.uniform(0.07, 0.095),
        spine_curve=curve,
        gastric_radius=draws.uniform(0.15, 0.19)
        if "gastric_distension" in traits
        else draws.uniform(0.03, 0.07),
        rib_pitch=draws.uniform(0.142, 0.168),
        rib_contrast=draws.uniform(0.06, 0.11),
        rib_slope=draws.uniform(0.24, 0.36),
        clavicle_slope=draws.uniform(0.10, 0.34),
        habitus=draws.uniform(0.85, 1.0) if "large_habitus" in traits else draws.uniform(0.0, 0.45),
        breast=draws.uniform(0.4, 1.0) if draws.chance(0.4) else 0.0,
        vessel_contrast=draws.uniform(0.07, 0.13),
    )


def sample_exposure(draws: Draws, penetration: str) -> Exposure:
    """The film's nuisances; `penetration` is `under`, `normal` or `over` and sets the gamma's range."""
    gamma = {"under": (0.50, 0.62), "normal": (0.85, 1.20), "over": (1.60, 1.95)}[penetration]
    edges = [0.0, 0.0, 0.0, 0.0]
    if draws.chance(0.35):
        for _ in range(draws.integer(1, 2)):
            edges[draws.integer(0, 3)] = draws.uniform(0.02, 0.07)
    fold = None
    if draws.chance(0.3):
        fold = (
            draws.uniform(-0.7, 0.7),
            draws.uniform(-0.3, 0.4),
            draws.uniform(-0.5, 0.5) + 1.5708,
            draws.uniform(0.04, 0.09) * (1.0 if draws.chance(0.5) else -1.0),
        )
    return Exposure(
        gain=draws.uniform(0.86, 1.14),
        offset=draws.uniform(-0.05, 0.05),
        gamma=draws.uniform(*gamma),
        gradient_x=draws.uniform(-0.06, 0.06),
        gradient_y=draws.uniform(-0.05, 0.05),
        noise=draws.uniform(0.006, 0.022),
        mottle=draws.uniform(0.0, 0.014) + (draws.uniform(0.01, 0.026) if draws.chance(0.25) else 0.0),
        blur=draws.uniform(0.0, 0.8),
        collimation=(edges[0], edges[1], edges[2], edges[3]),
        marker=draws.choice(("L", "R", "")),
        nipples=draws.uniform(0.05, 0.11) if draws.chance(0.3) else 0.0,
        fold=fold,
    )
