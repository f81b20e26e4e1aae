"""From the truth to pixels and masks.

Decisions: everything is attenuation added up in body coordinates and then exposed (gain, gamma,
gradients, grain), so that what lies behind something else is hidden as in a radiograph; edges are
linear ramps about a pixel wide, because exponentials over whole images would cost most of the time;
vessels, wires and tubes are poly-lines drawn by Pillow on a canvas of twice the size. Nuisances are
chosen against shortcuts: skin folds look like pleural lines, nipples like nodules, breast shadows
and gradients like haze, mottle like interstitial texture, monitoring leads like catheters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mpma.data.phantom.anatomy import HEART_TILT, MILLIMETRES_PER_UNIT, rib_offset
from mpma.data.phantom.draws import Draws, generator
from mpma.data.phantom.findings import Description, Finding

Grid = NDArray[np.float32]
Mask = NDArray[np.bool_]

_LINE_SCALE = 2
_CARINA_Y = -0.20
_AIR = np.float32(0.44)


@dataclass(frozen=True)
class Rendering:
    """Pixels and truth masks of one pair, all [size, size]."""

    grey: NDArray[np.uint8]
    lungs: Mask
    """Lung fields as anatomy has them, also where fluid hides them; without heart and mediastinum."""
    findings: tuple[Mask, ...]
    """One mask per finding of the description, in its order."""


def render(description: Description, index: int, seed: int, size: int) -> Rendering:
    """Draw one phantom; a pure function. `size` is height and width in pixels, at least 32."""
    return _Film(description, index, seed, size).develop()


def _ramp(distance: NDArray[np.floating]) -> Grid:
    """0 below -1/2, 1 above 1/2, linear between: a soft edge."""
    return np.asarray(np.clip(distance + np.float32(0.5), 0.0, 1.0), dtype=np.float32)


class _Film:
    """One rendering in progress: coordinates, lung fields and the attenuation summed so far."""

    def __init__(self, description: Description, index: int, seed: int, size: int) -> None:
        self.description, self.anatomy, self.size = description, description.anatomy, size
        self.texture = generator(index, seed, "texture")
        self.grain = generator(index, seed, "noise")
        self.line_draws = Draws(index, seed, "leads")
        body = self.anatomy
        centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2.0 / size) - np.float32(
            1.0
        )
        rows = centre[:, None]
        self.y: Grid = (rows - np.float32(body.shift_y)) / np.float32(body.scale)
        self.x: Grid = (
            centre[None, :] - np.float32(body.shear) * rows - np.float32(body.shift_x)
        ) / np.float32(body.scale)
        self.across: Grid = np.abs(self.x)
        self.sharp = np.float32(0.5 * size * body.scale)
        """Ramp steepness of an edge one pixel wide, per body unit."""
        self._wires = Image.new("L", (size * _LINE_SCALE, size * _LINE_SCALE))
        self.wire_pen = ImageDraw.Draw(self._wires)

    def develop(self) -> Rendering:
        """The whole pass, from the body's outline to grey values."""
        self._outline()
        self._lung_fields()
        air = self.lungs.copy()
        bone = self._bones()
        vessels = self._vessels()
        extra = np.float32(0.02) * self._clouds(7)
        masks: list[Mask] = []
        for finding in self.description.findings:
            masks.append(getattr(self, f"_{finding.kind}")(finding, air, extra, vessels))
        self._distractors(extra)
        film = self.soft - _AIR * air + bone + extra + vessels * air + self._wire_layer()
        film *= self.body
        return Rendering(self._expose(film), self.lungs > 0.5, tuple(masks))

    # Anatomy

    def _outline(self) -> None:
        body, y = self.anatomy, self.y
        torso = body.thorax_half_width * 1.10 + 0.04 + 0.16 * body.habitus
        half = torso + 0.75 * np.clip((-0.22 - y) * 2.2, 0.0, 1.0)
        neck = 0.24 + 0.06 * body.habitus
        shoulder = _ramp((y + 0.88 - 0.22 * self.across) * 16)
        trunk = _ramp((half - self.across) * 12)
        self.body = np.maximum(trunk * shoulder, _ramp((neck - self.across) * 16) * _ramp((-0.6 - y) * 4))
        depth = np.clip((half - self.across) / np.float32(0.30), 0.0, 1.0)
        self.soft = np.float32(0.42 + 0.12 * body.habitus) + np.float32(0.22) * depth

    def _lung_fields(self) -> None:
        body, y, across = self.anatomy, self.y, self.across
        rise = np.clip((0.30 - y) / np.float32(0.30 - body.apex), 0.0, 1.0)
        self.lateral: Grid = (np.float32(body.thorax_half_width) * (1.0 - rise**2.6) ** 0.62).astype(
            np.float32
        )
        spine = np.float32(body.spine_curve) * np.sin((y + 0.55) * np.float32(2.4))
        self.midline_x: Grid = self.x - spine
        self.is_left = (self.x > 0).astype(np.float32)
        base = body.base_right + (body.base_left - body.base_right) * self.is_left
        self.dome: Grid = base + np.float32(0.12) * ((across - 0.34) / np.float32(0.40)) ** 2
        inside = _ramp((self.lateral - across) * self.sharp * 0.7)
        inside *= _ramp((np.abs(self.x - 0.5 * spine) - body.mediastinum_half_width) * self.sharp * 0.5)
        self.thorax: Grid = inside * _ramp((y - body.apex) * self.sharp * 0.5)
        whole = self.thorax * _ramp((self.dome - y) * self.sharp * 0.7)
        lean = np.float32(HEART_TILT) * (y - body.heart_y)
        radius = ((self.x - body.heart_x - lean) / np.float32(body.heart_half_axis)) ** 2
        radius = radius + ((y - body.heart_y) / np.float32(body.heart_height)) ** 2
        self.heart: Grid = _ramp((1.0 - radius) * self.sharp * np.float32(0.22 * body.heart_half_width))
        knob = (self.midline_x - 0.07) ** 2 + (y + 0.34) ** 2
        knob_shadow = _ramp((np.float32(body.knob_radius) - np.sqrt(knob)) * self.sharp * 0.5)
        shadow: Grid = np.maximum(self.heart, knob_shadow)
        self.lungs: Grid = (whole * (1.0 - shadow)).astype(np.float32)
        self.soft += np.float32(0.04) * shadow

    def _bones(self) -> Grid:
        body, y, across = self.anatomy, self.y, self.across
        share = across / np.float32(body.thorax_half_width)
        turn = np.float32(2 * np.pi / body.rib_pitch)
        start = body.apex + 0.02
        behind = np.cos((y - start - rib_offset_grid(share, body.rib_slope)) * turn)
        side_height = rib_offset(1.0, body.rib_slope) + start
        front = np.cos((y - side_height - np.float32(0.55) * (1.0 - share)) * turn)
        ribs = _ramp((behind - 0.35) * 1.6) * (1.0 - 0.35 * np.clip(behind - 0.6, 0.0, 0.4) / 0.4)
        ribs += 0.55 * _ramp((front - 0.45) * 1.6) * (share > 0.40)
        cage = _ramp((self.lateral + 0.03 - across) * self.sharp * 0.4) * _ramp((y - body.apex - 0.04) * 12)
        cage *= _ramp((self.dome + 0.22 - y) * 6) * _ramp((share - 0.12) * 12)
        bone = ribs * cage * np.float32(body.rib_contrast)
        vertebra = 0.75 + 0.25 * np.cos(y * np.float32(2 * np.pi / 0.115))
        bone += np.float32(0.11) * vertebra * _ramp((0.075 - np.abs(self.midline_x)) * 16)
        trachea = _ramp((0.040 - np.abs(self.midline_x)) * 24) * _ramp((_CARINA_Y - y) * 12)
        bone -= np.float32(0.13) * trachea
        collar = -0.47 - np.float32(body.clavicle_slope) * (across - 0.08)
        band = _ramp((0.026 - np.abs(y - collar)) * self.sharp * 0.8)
        bone += np.float32(0.10) * band * _ramp((across - 0.09) * 16) * _ramp((0.95 - across) * 8)
        stomach = (self.x - 0.36) ** 2 + (
            y - np.float32(body.base_left + 0.07 + body.gastric_radius * 0.8)
        ) ** 2 * 1.6
        bubble = _ramp((np.float32(body.gastric_radius) - np.sqrt(stomach)) * self.sharp * 0.35)
        bone -= np.float32(0.34) * bubble * (1.0 - self.lungs) * (y > self.dome + 0.02)
        return bone

    def _vessels(self) -> Grid:
        canvas = Image.new("L", self._wires.size)
        pen = ImageDraw.Draw(canvas)
        steps = np.arange(6, dtype=np.float32) / 5.0
        for sign in (-1.0, 1.0):
            fan = self.texture.random((9, 4), dtype=np.float32)
            angle = (np.arange(9) - 4.0) * 0.36 + (fan[:, 0] - 0.5) * 0.3
            bend = (fan[:, 1] - 0.5) * 0.9
            reach = 0.34 + 0.26 * fan[:, 2]
            heading = angle[:, None] + bend[:, None] * steps[None, :]
            x = 0.14 + np.cumsum(np.cos(heading), axis=1) * reach[:, None] / 5.0
            y = -0.02 + np.cumsum(np.sin(heading), axis=1) * reach[:, None] * 1.25 / 5.0
            px, py = self._pixels(sign * x, y)
            widths = np.maximum(1, np.rint(fan[:, 3:] * 1.2 + 4.2 * (1.0 - steps[None, :])) * self.size / 128)
            points = np.stack([px, py], axis=2).tolist()
            for branch, line in enumerate(points):
                for step in range(5):
                    start, end = line[step], line[step + 1]
                    pen.line((*start, *end), fill=200 - 28 * step, width=int(widths[branch, step]))
        drawn = self._reduce(canvas)
        hilum = (self.across - 0.17) ** 2 * 2.2 + (self.y + 0.02) ** 2
        drawn += 0.8 * np.clip(1.0 - hilum * 60, 0.0, 1.0)
        return drawn * np.float32(self.anatomy.vessel_contrast * 1.5)

    # Findings: each draws itself into `air` (1 aerated, 0 solid) or `extra` and returns its mask.

    def _nodule(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        mask = np.zeros(self.x.shape, dtype=np.bool_)
        for x, y, radius in finding.places:
            distance = np.sqrt((self.x - np.float32(x)) ** 2 + (self.y - np.float32(y)) ** 2)
            extra += np.float32(0.30 * finding.contrast) * _ramp(
                (np.float32(radius) - distance) * self.sharp * 0.6
            )
            mask |= distance <= radius
        return mask

    def _consolidation(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        x, y, radius = finding.places[0]
        distance = np.sqrt((self.x - np.float32(x)) ** 2 * 1.25 + (self.y - np.float32(y)) ** 2 * 0.8)
        ragged = np.float32(radius) * (1.0 + 0.30 * self._clouds(9)) - distance
        solid = _ramp(ragged * np.float32(9.0)) * self.lungs
        patchy = np.clip(0.80 + 0.20 * self._clouds(17), 0.35, 1.0) * np.float32(finding.contrast)
        air *= 1.0 - np.minimum(solid * patchy, np.float32(0.9))
        return np.asarray((solid > 0.5) & self._side(finding), dtype=np.bool_)

    def _effusion(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        level = finding.places[0][1]
        outward = np.clip(self.across / np.maximum(self.lateral, np.float32(0.05)), 0.0, 1.0)
        meniscus = np.float32(level) + np.float32(0.05) - np.float32(0.16) * outward**4
        side = self._side(finding)
        fluid = _ramp((self.y - meniscus) * self.sharp * 0.22) * side
        air *= 1.0 - np.float32(min(0.80 + 0.15 * finding.contrast, 0.96)) * fluid
        return np.asarray((fluid * self.lungs > 0.4) & side, dtype=np.bool_)

    def _pneumothorax(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        gap = np.float32(finding.places[0][2]) * (1.15 - 0.45 * np.clip((self.y + 0.7), 0.0, 1.3))
        depth = self.lateral - self.across - gap
        side = self._side(finding)
        outside = _ramp(-depth * self.sharp * 0.7) * side
        vessels *= 1.0 - outside
        extra -= np.float32(0.15 * finding.contrast) * outside * self.lungs
        line = _ramp(1.0 - np.abs(depth) * self.sharp * 0.7) * side * self.lungs
        extra += np.float32(0.16 * finding.contrast) * line
        return np.asarray((depth < 0) & side & (self.lungs > 0.5), dtype=np.bool_)

    def _elevated_diaphragm(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        body = self.anatomy
        lost = body.usual_base_left - body.base_left + body.usual_base_right - body.base_right
        risen = (self.y > self.dome) & (self.y < self.dome + np.float32(lost)) & (self.thorax > 0.5)
        return np.asarray(risen & self._side(finding), dtype=np.bool_)

    def _atelectasis(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        x, y, thickness = finding.places[0]
        cos, sin = np.float32(np.cos(finding.angle)), np.float32(np.sin(finding.angle))
        along = (self.x - np.float32(x)) * cos + (self.y - np.float32(y)) * sin
        off = (self.y - np.float32(y)) * cos - (self.x - np.float32(x)) * sin
        band = _ramp((np.float32(thickness) - np.abs(off)) * self.sharp * 0.7)
        band *= _ramp((0.23 - np.abs(along)) * 14) * self.lungs
        extra += np.float32(0.28 * finding.contrast) * band
        return np.asarray((band > 0.4) & self._side(finding), dtype=np.bool_)

    def _rib_fracture(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        mask = np.zeros(self.x.shape, dtype=np.bool_)
        for x, y, radius in finding.places:
            dx, dy = self.x - np.float32(x), self.y - np.float32(y)
            distance = np.sqrt(dx**2 * 0.6 + dy**2)
            callus = _ramp((np.float32(radius) - distance) * self.sharp * 0.6)
            gap = _ramp(0.9 - np.abs(dx) * self.sharp * 0.7)
            gap *= _ramp((np.float32(radius) * 1.2 - np.abs(dy)) * self.sharp)
            extra += np.float32(0.24 * finding.contrast) * callus - np.float32(0.22 * finding.contrast) * gap
            mask |= distance <= radius
        return mask

    def _cardiomegaly(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        return np.asarray(self.heart > 0.5, dtype=np.bool_)

    def _interstitial_pattern(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        middle = 0.5 * (self.anatomy.apex + self.anatomy.base_right)
        weight = (
            _ramp((self.y - np.float32(middle)) * (1.2 if finding.zone == "lower" else -1.2)) * self.lungs
        )
        net = np.abs(self._clouds(41))
        strength = {"mild": 0.06, "moderate": 0.09, "severe": 0.12}[finding.grade] * finding.contrast
        extra += np.float32(strength) * (0.95 - net) * 1.6 * weight
        return np.asarray(weight > 0.5, dtype=np.bool_)

    def _endotracheal_tube(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        tip = _CARINA_Y - finding.millimetres / MILLIMETRES_PER_UNIT
        heights = np.linspace(-1.2, tip, 8)
        return self._wire(self._on_spine(heights, 0.0), heights, width=7, fill=235)

    def _pacemaker(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        sign = 1.0 if finding.side == "left" else -1.0
        x, y = sign * 0.50, -0.36
        corners = self._pixels(np.array([x - 0.14, x + 0.14]), np.array([y - 0.10, y + 0.10]))
        before = self._wires.copy()
        self.wire_pen.rounded_rectangle(
            (corners[0][0], corners[1][0], corners[0][1], corners[1][1]), radius=self.size * 0.06, fill=250
        )
        body = self.anatomy
        tip = (body.heart_x + 0.45 * body.heart_half_width, body.heart_y + 0.5 * body.heart_height)
        lead_x = np.array([x, sign * 0.30, sign * 0.12, -0.09, -0.08, -0.05, tip[0]])
        lead_y = np.array([y - 0.05, -0.52, -0.48, -0.30, -0.05, body.heart_y + 0.05, tip[1]])
        self._wire(lead_x, lead_y, width=4, fill=235)
        drawn = np.asarray(self._wires, dtype=np.int16) - np.asarray(before, dtype=np.int16)
        return self._shrink(drawn > 0)

    def _central_line(self, finding: Finding, air: Grid, extra: Grid, vessels: Grid) -> Mask:
        sign = 1.0 if finding.side == "left" else -1.0
        x = np.array([sign * 0.62, sign * 0.46, sign * 0.26, sign * 0.12, -0.085, -0.10, -0.10])
        y = np.array([-0.86, -0.60, -0.52, -0.47, -0.38, -0.22, 0.02])
        return self._wire(x, y, width=4, fill=235)

    # Nuisances and exposure

    def _distractors(self, extra: Grid) -> None:
        film, body = self.description.exposure, self.anatomy
        if film.nipples:
            for sign in (-1.0, 1.0):
                height = 0.30 + 0.04 * sign * body.shear * 10
                distance = np.sqrt(
                    (self.x - np.float32(sign * 0.44)) ** 2 + (self.y - np.float32(height)) ** 2
                )
                extra += np.float32(film.nipples) * _ramp((0.032 - distance) * self.sharp * 0.5)
        if body.breast:
            bulge = ((self.across - 0.42) / np.float32(0.36)) ** 2 + ((self.y - 0.22) / np.float32(0.34)) ** 2
            extra += np.float32(0.09 * body.breast) * _ramp((1.0 - bulge) * 4) * (self.y > 0.0)
        if film.fold is not None:
            x, y, angle, strength = film.fold
            off = (self.y - np.float32(y)) * np.float32(np.cos(angle)) - (
                self.x - np.float32(x)
            ) * np.float32(np.sin(angle))
            extra += np.float32(strength) * _ramp(off * self.sharp * 0.5) * np.clip(1.0 - off * 4.0, 0.0, 1.0)
        if ("monitoring_leads", "") in self.description.traits:
            self._leads()
        if film.marker:
            self._marker(film.marker)

    def _leads(self) -> None:
        draws = self.line_draws
        for sign in (-1.0, 1.0):
            x, y = sign * draws.uniform(0.25, 0.62), draws.uniform(-0.42, 0.42)
            exit_x = sign * draws.uniform(0.2, 0.95)
            along = np.linspace(0.0, 1.0, 7)
            swing = draws.uniform(-0.2, 0.2) * np.sin(along * np.pi)
            self._wire(x + (exit_x - x) * along + swing, y + (1.15 - y) * along, width=2, fill=170)
            px, py = self._pixels(np.array([x]), np.array([y]))
            radius = self.size * _LINE_SCALE * 0.018
            self.wire_pen.ellipse((px[0] - radius, py[0] - radius, px[0] + radius, py[0] + radius), fill=190)

    def _marker(self, letter: str) -> None:
        sign = 1.0 if letter == "L" else -1.0
        px, py = self._pixels(np.array([sign * 0.84]), np.array([-0.62]))
        unit = self.size * _LINE_SCALE * 0.022
        x, y = float(px[0]), float(py[0])
        strokes = {
            "L": ((-1, -2, -1, 2), (-1, 2, 1, 2)),
            "R": ((-1, -2, -1, 2), (-1, -2, 1, -2), (1, -2, 1, 0), (1, 0, -1, 0), (-1, 0, 1, 2)),
        }[letter]
        for a, b, c, d in strokes:
            self.wire_pen.line(
                (x + a * unit, y + b * unit, x + c * unit, y + d * unit), fill=230, width=int(unit * 0.7) or 1
            )

    def _expose(self, film: Grid) -> NDArray[np.uint8]:
        how, size = self.description.exposure, self.size
        if how.blur:
            soft = film.copy()
            soft[1:-1] = (film[:-2] + film[2:]) * 0.25 + film[1:-1] * 0.5
            film = film + np.float32(how.blur) * (soft - film)
        centre = np.linspace(-1.0, 1.0, size, dtype=np.float32)
        shown = film * np.float32(how.gain) + np.float32(how.offset)
        shown += np.float32(how.gradient_x) * centre[None, :] * self.body
        shown += np.float32(how.gradient_y) * centre[:, None] * self.body
        np.clip(shown, 0.004, 1.0, out=shown)
        np.power(shown, np.float32(how.gamma), out=shown)
        noise = self.grain.standard_normal((size, size), dtype=np.float32)
        shown += np.float32(how.noise) * noise
        if how.mottle > 0.004:
            shown += np.float32(how.mottle) * self._clouds(max(size // 4, 8))
        left, right, top, bottom = (round(share * size) for share in how.collimation)
        shown[:, :left] = shown[:top] = 0.02
        shown[:, size - right :] = shown[size - bottom :] = 0.02
        return np.clip(shown * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)

    # Drawing

    def _side(self, finding: Finding) -> Mask:
        return np.asarray(self.x > 0 if finding.side == "left" else self.x < 0, dtype=np.bool_)

    def _on_spine(self, y: NDArray[np.float64], x: float) -> NDArray[np.float64]:
        return x + self.anatomy.spine_curve * np.sin((y + 0.55) * 2.4)

    def _pixels(
        self, x: NDArray[np.floating], y: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Body coordinates to pixels of the line canvas."""
        body = self.anatomy
        rows = y * body.scale + body.shift_y
        columns = x * body.scale + body.shear * rows + body.shift_x
        half = 0.5 * self.size * _LINE_SCALE
        return (columns + 1.0) * half, (rows + 1.0) * half

    def _wire(self, x: NDArray[np.floating], y: NDArray[np.floating], *, width: int, fill: int) -> Mask:
        px, py = self._pixels(x, y)
        line = np.stack([px, py], axis=1).ravel().tolist()
        pixels = max(1, round(width * self.size * _LINE_SCALE / 256))
        self.wire_pen.line(line, fill=fill, width=pixels, joint="curve")
        mark = Image.new("L", self._wires.size)
        ImageDraw.Draw(mark).line(line, fill=255, width=pixels, joint="curve")
        return self._shrink(np.asarray(mark) > 0)

    def _shrink(self, drawn: NDArray[np.bool_]) -> Mask:
        size = self.size
        return np.asarray(
            drawn.reshape(size, _LINE_SCALE, size, _LINE_SCALE).any(axis=(1, 3)), dtype=np.bool_
        )

    def _reduce(self, canvas: Image.Image) -> Grid:
        return np.asarray(canvas.reduce(_LINE_SCALE), dtype=np.float32) * np.float32(1.0 / 255.0)

    def _wire_layer(self) -> Grid:
        return self._reduce(self._wires) * np.float32(0.42)

    def _clouds(self, cells: int) -> Grid:
        """Smooth noise of unit variance at its nodes, `cells` nodes across."""
        nodes = self.texture.standard_normal((cells, cells), dtype=np.float32)
        return np.asarray(Image.fromarray(nodes).resize((self.size, self.size), Image.Resampling.BICUBIC))


def rib_offset_grid(share: Grid, slope: float) -> Grid:
    """`rib_offset` over a grid."""
    return np.float32(slope) * (share * share * share - np.float32(0.22) * share)
