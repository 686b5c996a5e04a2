"""The shapes inside a synthetic head: outline, folded cortex, ventricles, grey nuclei.

Everything is a function of position in millimetres, so that a slice and a volume come from the
same code and neighbouring slices of a volume fit together. Axes: x to the right, y towards
posterior, z towards superior; the origin is the middle of the brain.

Nothing here is measured from patients: the numbers were chosen so that the pictures look like
axial slices of a brain.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.errors import optional

from .phantom_curves import STEP_MM, Array, Furrows, Grid, SmoothField, grow, surface_starts

LOWEST_MM, HIGHEST_MM = -10.0, 62.0
"""Range of z that a volume covers."""
_CENTRE_MM, _HALF_HEIGHT_MM = 5.0, 68.0


@dataclass(frozen=True)
class Tissue:
    """What each pixel of the brain is made of.

    All arrays have the shape of the pixel grid; the four fractions sum to 1 inside `brain` and
    are 0 outside.

    Parameters
    ----------
    brain : bool
        Inside the skull-stripped brain.
    csf, cortex, nuclei, white : float64
        Fractions of fluid, cortical grey matter, deep grey matter and white matter.
    rim : float64
        1 at the wall of the lateral ventricles, falling to 0 within a few millimetres.
    """

    brain: NDArray[np.bool_]
    csf: Array
    cortex: Array
    nuclei: Array
    white: Array
    rim: Array


@dataclass(frozen=True)
class Anatomy:
    """One head: draw it with `Anatomy.draw`, cut it with `tissue`.

    Lengths are in mm and angles in radians. `atrophy` runs from 0 (narrow sulci, small
    ventricles) to 1 (wide ones); `pose` is the rotation of the head in the frame and its shift
    along x and y; arrays of two rows hold the right and the left side.
    """

    half_axes: tuple[float, float]
    taper: float
    roundness: float
    outline: SmoothField
    warp_x: SmoothField
    warp_y: SmoothField
    thickness: SmoothField
    atrophy: float
    cortex_mm: float
    pose: tuple[float, float, float]
    convex: Furrows
    medial: Furrows
    insula: Furrows
    falx: SmoothField
    fissure_reach: tuple[float, float]
    ventricle_size: Array
    ventricle_shift: Array
    ventricle_form: Array
    nuclei_jitter: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        """Draw a head."""
        atrophy = float(rng.beta(1.5, 2.5))
        convex_start, convex_side = surface_starts(rng)
        medial_start = np.concatenate([np.arange(-68, -30, 13.0), np.arange(40, 76, 11.0)])
        medial_start = np.tile(medial_start, 2)
        medial_side = np.repeat([1.0, -1.0], len(medial_start) // 2)
        medial_start = medial_start + rng.uniform(-5, 5, size=len(medial_start))
        insula_start = np.array([0.0, np.pi]) + rng.normal(0.02, 0.06, size=2) * [1, -1]
        return cls(
            half_axes=(float(rng.normal(64.5, 1.8)), float(rng.normal(83.5, 2.0))),
            taper=float(rng.uniform(0.05, 0.13)),
            roundness=float(rng.uniform(1.98, 2.2)),
            outline=SmoothField.draw(rng, 120),
            warp_x=SmoothField.draw(rng, 60),
            warp_y=SmoothField.draw(rng, 60),
            thickness=SmoothField.draw(rng, 22),
            atrophy=atrophy,
            cortex_mm=float(rng.uniform(3.0, 4.0)),
            pose=(float(rng.normal(0, 0.03)), float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2))),
            convex=Furrows.draw(rng, convex_start, convex_side, (9, 28)),
            medial=Furrows.draw(rng, medial_start, medial_side, (4, 12)),
            insula=replace(
                Furrows.draw(rng, insula_start, np.array([1.0, -1.0]), (21, 27)),
                fork=rng.uniform(8, 14, size=2),
                width=rng.uniform(0.8, 1.4, size=2),
            ),
            falx=SmoothField.draw(rng, 55),
            fissure_reach=(float(rng.uniform(-42, -35)), float(rng.uniform(36, 44))),
            ventricle_size=(0.55 + 0.75 * atrophy) * np.exp(rng.normal(0, 0.1, size=2)),
            ventricle_shift=rng.normal(0, 1.2, size=(2, 2)),
            ventricle_form=rng.normal(0, 1, size=4),
            nuclei_jitter=rng.normal(0, 0.06, size=(2, 3, 4)),
        )

    def tissue(self, grid: Grid) -> Tissue:
        """Make-up of every pixel of a grid; arrays [D, H, W]."""
        slices = [self._slice(grid.x, grid.y, float(z), grid.pixel_mm) for z in grid.z]
        return Tissue(
            *(np.stack([getattr(s, field.name) for s in slices]) for field in fields(Tissue))
        )

    def _slice(self, x: Array, y: Array, z: float, pixel_mm: float) -> Tissue:
        """Make-up of the pixels of one slice.

        Parameters
        ----------
        x, y : float64 [W] and [H]
            Positions of the columns and rows of pixels, mm.
        z : float
            Height of the slice, mm.
        pixel_mm : float
            Side of a pixel, mm; shapes thinner than a pixel fill a part of it.
        """
        u, v, depth = self._place(x, y, z)
        near = depth > 0
        px, py, pd = u[near], v[near], depth[near]
        sulcus, away = self._sulci(px, py, z, pixel_mm)
        # Gyri bulge: the outline dips where a sulcus opens.
        pd = pd - 1.5 * np.exp(-((np.maximum(away, 0) / 2.5) ** 2))
        keep = pd > 0
        px, py, pd, sulcus, away = (values[keep] for values in (px, py, pd, sulcus, away))
        brain = near
        brain[near] = keep

        surface = np.clip((0.2 + 1.0 * self.atrophy - pd) / pixel_mm + 0.5, 0, 1)
        wall = self._ventricle_distance(px, py, z)
        fluid = np.maximum.reduce([sulcus, surface, _inside(wall, pixel_mm)])

        ribbon = self.cortex_mm * (1 + 0.18 * self.thickness(x, y, z)[brain])
        cortex = _inside(np.minimum(pd - 0.5, away) - ribbon, pixel_mm)
        # No cortex between the ventricles: there the fissure has ended.
        cortex *= np.clip((wall - 2) / 3, 0, 1)
        nuclei = _inside(self._nuclei_distance(px, py, z), pixel_mm + 1.5)
        cortex = (1 - fluid) * cortex
        nuclei = (1 - fluid - cortex) * nuclei
        rim = np.exp(-np.clip(wall, 0, None) / 2.5) * (1 - fluid)

        def spread(values: Array) -> Array:
            full = np.zeros(brain.shape)
            full[brain] = values
            return full

        return Tissue(
            brain=brain,
            csf=spread(fluid),
            cortex=spread(cortex),
            nuclei=spread(nuclei),
            white=spread(1 - fluid - cortex - nuclei),
            rim=spread(rim),
        )

    def _place(self, x: Array, y: Array, z: float) -> tuple[Array, Array, Array]:
        """Where in the upright, straight head each pixel lies, and its depth in the brain (mm)."""
        angle, shift_x, shift_y = self.pose
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = (x - shift_x)[None, :], (y - shift_y)[:, None]
        u = cos * dx + sin * dy + 1.3 * self.warp_x(x, y, z)
        v = cos * dy - sin * dx + 1.3 * self.warp_y(x, y, z)
        return u, v, self._depth(u, v, z) + 0.7 * self.outline(x, y, z)

    def _scale(self, z: float) -> float:
        height = min(abs(z - _CENTRE_MM) / _HALF_HEIGHT_MM, 0.99)
        return float((1 - height**2.6) ** (1 / 2.6))

    def _depth(self, x: Array, y: Array, z: float) -> Array:
        """Distance below the outline of the brain in mm, negative outside."""
        a, b = self.half_axes
        scale = self._scale(z)
        v = y / (b * scale)
        u = x / (a * scale * (1 + self.taper * np.clip(v, -1.3, 1.3)))
        p = self.roundness
        rho = (np.abs(u) ** p + np.abs(v) ** p) ** (1 / p)
        return (1 - rho) * scale * (a + b) / 2

    def _surface_point(self, angle: Array, z: float) -> tuple[Array, Array]:
        """Points of the outline at the angles given, and the directions inwards (radians)."""
        a, b = self.half_axes
        scale, p = self._scale(z), self.roundness
        cos, sin = np.cos(angle), np.sin(angle)
        radius = (np.abs(cos) ** p + np.abs(sin) ** p) ** (-1 / p)
        v = radius * sin
        point = np.stack([radius * cos * a * (1 + self.taper * v), v * b], axis=-1) * scale
        return point, np.arctan2(-v / b, -radius * cos / a)

    def _sulci(self, x: Array, y: Array, z: float, pixel_mm: float) -> tuple[Array, Array]:
        """Fraction of each pixel that is sulcal fluid, and the distance (mm) to the nearest."""
        points, widths = zip(*self._furrow_points(z), strict=True)
        width = np.concatenate(widths) * (0.5 + 1.1 * self.atrophy)
        tree = optional("scipy.spatial", "images").cKDTree(np.concatenate(points))
        distance, nearest = tree.query(np.stack([x, y], -1), distance_upper_bound=12.0)
        half = np.append(width, 0.0)[nearest]
        distance = np.minimum(distance, 12.0)
        reach = np.minimum(distance + pixel_mm / 2, half) - np.maximum(
            distance - pixel_mm / 2, -half
        )
        return np.clip(reach / pixel_mm, 0, 1), distance - half

    def _furrow_points(self, z: float) -> list[tuple[Array, Array]]:
        """Points (mm) along every furrow at height z, and the half-width (mm) at each."""
        parts = []
        present = np.clip((34 - z) / 12, 0, 1)  # the insula lies below the vertex
        for furrows, strength, tips in (
            (self.convex, 1 + 0.4 * np.clip((z - 28) / 20, 0, 1), (0.9, -0.9)),
            (self.insula, present, (1.5, -1.5)),
        ):
            start, inwards = self._surface_point(furrows.start + furrows.wander * z, z)
            depth = furrows.depth(z) if furrows is self.convex else furrows.length
            parts += grow(furrows, start, inwards, depth * strength, tips)
        front, back = self._fissure(z)
        ahead = self.medial.start * self._scale(z)
        there = (ahead < front) | (ahead > back)
        start = np.stack([self._midline(ahead, z), ahead], axis=-1)
        inwards = np.where(self.medial.side > 0, 0.0, np.pi)
        depth = self.medial.depth(z) * there * self._scale(z)
        parts += grow(self.medial, start, inwards, depth, (0.9, -0.9))
        parts += self._fissure_points(z)
        return parts

    def _midline(self, y: Array, z: float) -> Array:
        return 1.2 * self.falx(np.zeros(1), y, z)[:, 0]

    def _fissure(self, z: float) -> tuple[float, float]:
        """Ends along y (mm) of the frontal and of the posterior part of the fissure."""
        below = np.sqrt(np.clip(1 - (z / 40) ** 2, 0, 1)) if z > 0 else 1.0
        return self.fissure_reach[0] * below, self.fissure_reach[1] * below

    def _fissure_points(self, z: float) -> list[tuple[Array, Array]]:
        b = self.half_axes[1] * self._scale(z)
        front, back = self._fissure(z)
        parts = []
        for pole, end in ((-b - 2, front), (b + 2, back)):
            y = np.linspace(pole, end, max(2, int(abs(pole - end) / STEP_MM)))
            width = 0.55 + 1.6 * np.clip((np.abs(y) - b + 9) / 9, 0, 1)
            parts.append((np.stack([self._midline(y, z), y], axis=-1), width))
        return parts

    def _ventricle_distance(self, x: Array, y: Array, z: float) -> Array:
        """Distance (mm) to the wall of the nearest ventricle, negative inside."""
        distance = np.full(x.shape, 40.0)
        for side, size, (shift_x, shift_y) in zip(
            (1.0, -1.0), self.ventricle_size, self.ventricle_shift, strict=True
        ):
            near = np.flatnonzero((side * x > -6) & (side * x < 42) & (np.abs(y) < 56))
            px, py = side * x[near] - shift_x / 3, y[near] - shift_y
            gap = distance[near]
            path, width = _lateral_ventricle(z, float(size), self.ventricle_form)
            for (cx, cy), half in zip(path, width, strict=True):
                np.minimum(gap, np.sqrt((px - cx) ** 2 + (py - cy) ** 2) - half, out=gap)
            distance[near] = gap
        third = (0.5 + 1.6 * self.atrophy) * np.clip((12 - z) / 8, -1, 1)
        if third > 0:
            along = np.abs(y - 6) / 13
            np.minimum(distance, np.hypot(x, 4 * along**4) - third, out=distance)
        return distance

    def _nuclei_distance(self, x: Array, y: Array, z: float) -> Array:
        """Distance (mm, roughly) to caudate, putamen and thalamus, negative inside."""
        spread = 4.0 * (float(self.ventricle_size.mean()) - 0.9)
        #        x, y, half-axis across, half-axis along, tilt, highest z
        shapes = (
            (14.5 + spread, -19.0, 4.5, 9.0, -0.25, 30.0),
            (26.0, -3.0, 5.0, 14.0, -0.22, 22.0),
            (10.5 + spread / 2, 9.0, 7.5, 13.0, 0.35, 20.0),
        )
        distance = np.full(x.shape, 40.0)
        for side, jitters in zip((1.0, -1.0), self.nuclei_jitter, strict=True):
            for (cx, cy, across, along, tilt, top), jitter in zip(shapes, jitters, strict=True):
                shrink = np.clip((top - z) / 10, 0, 1)
                if shrink == 0:
                    continue
                dx, dy = side * x - cx * (1 + jitter[0]), y - cy - 20 * jitter[1]
                cos, sin = np.cos(tilt + jitter[2]), np.sin(tilt + jitter[2])
                u = (cos * dx + sin * dy) / (across * shrink)
                v = (cos * dy - sin * dx) / (along * shrink)
                gap = (np.hypot(u, v) - 1) * across * shrink * (1 + jitter[3])
                np.minimum(distance, gap, out=distance)
        return distance


def _inside(distance: Array, blur_mm: float) -> Array:
    """Fraction of a pixel within a surface at this distance (negative = inside)."""
    return np.clip(0.5 - distance / blur_mm, 0, 1)


def _lateral_ventricle(z: float, size: float, form: Array) -> tuple[Array, Array]:
    """Centre line [P, 2] and half-width [P] in mm of the right lateral ventricle."""
    body = float(np.clip((z - 4) / 12, 0, 1))  # low slices cut the horns, high ones the body
    close = float(np.clip((34 - z) / 10, 0, 1)) * float(np.clip((z + 22) / 10, 0, 1))
    inner = np.array([10.5, 6.0, 2.4, 1.3, 1.8 + body, 6.0, 13.0, 18.0, 22.0])
    y = np.array([-35.0, -30.0, -21.0, -11.0, 0.0, 14.0, 25.0, 34.0, 44.0])
    half = np.array([1.4, 4.4, 4.8, 3.0, -2 + 5.5 * body, -2 + 6.5 * body, 4.8, 4.0, 0.8])
    horn, atrium, tip, spread = form
    front, back = np.clip(-y / 25, 0, 1), np.clip(y / 25, 0, 1)
    half = half * size * (1 + 0.13 * horn * front + 0.16 * atrium * back) - 6.0 * (1 - close)
    inner = inner + front**2 * tip + 2.0 * back * spread
    y = y * (1 + 0.05 * horn * front + 0.07 * tip * back)
    knots = np.arange(len(y))
    t = np.linspace(0, len(y) - 1, 49)
    x, y, half = (np.interp(t, knots, v) for v in (inner + np.maximum(half, 0.5), y, half))
    keep = half > 0.3
    return np.stack([x, y * (0.85 + 0.15 * close)], -1)[keep], half[keep]
