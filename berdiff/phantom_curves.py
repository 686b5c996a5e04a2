"""Smooth random fields and winding furrows: what a synthetic head is bent and folded with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP_MM = 0.8
"""Distance between the points that a furrow is made of."""


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a slice or a volume lie.

    Parameters
    ----------
    x, y, z : float64 [W], [H], [D]
        Positions in mm: columns to the right, rows to posterior, slices to superior.
    pixel_mm : float
        Side of a pixel, mm.
    """

    x: Array
    y: Array
    z: Array
    pixel_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return len(self.z), len(self.y), len(self.x)


@dataclass(frozen=True)
class SmoothField:
    """A smooth random function of position with mean 0 and variance 1: a sum of plane waves.

    Parameters
    ----------
    waves : float64 [K, 3]
        Wave vectors in radians per millimetre, (x, y, z).
    phases : float64 [K]
        Phases in radians.
    """

    waves: Array
    phases: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength_mm: float, count: int = 6) -> SmoothField:
        """Waves in random directions, with wavelengths within a factor 1.5 of the one given."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = wavelength_mm * np.exp(rng.uniform(-0.4, 0.4, size=(count, 1)))
        return cls(direction * 2 * np.pi / length, rng.uniform(0, 2 * np.pi, size=count))

    def __call__(self, x: Array, y: Array, z: float) -> Array:
        """Values [H, W] on the grid spanned by the axes x [W] and y [H] (mm) at height z (mm)."""
        kx, ky, kz = self.waves.T
        along_x = np.outer(kx, x)
        along_y = np.outer(y, ky) + kz * z + self.phases
        # cos(a + b) = cos a cos b - sin a sin b: two small matrix products instead of K cosines.
        total = np.cos(along_y) @ np.cos(along_x) - np.sin(along_y) @ np.sin(along_x)
        return np.asarray(total * np.sqrt(2 / len(self.phases)))

    def on(self, grid: Grid) -> Array:
        """Values [D, H, W] at the pixels of a grid."""
        return np.stack([self(grid.x, grid.y, z) for z in grid.z])


@dataclass(frozen=True)
class Furrows:
    """Sulci as curves that start somewhere and run inwards; all arrays are [n], lengths in mm.

    `start` is an angle (radians, 0 = right, pi/2 = posterior) for those that start at the
    surface, and a position along y for those that start at the interhemispheric fissure.
    """

    start: Array
    side: Array
    length: Array
    slant: Array
    bend: Array
    fork: Array
    wavelength: Array
    phase: Array
    wander: Array
    wave: Array
    width: Array

    @classmethod
    def draw(
        cls, rng: np.random.Generator, start: Array, side: Array, length: tuple[float, float]
    ) -> Furrows:
        """Furrows from the given starts; lengths uniform in the range given (mm)."""
        n = len(start)
        return cls(
            start=start,
            side=side,
            length=rng.uniform(*length, size=n),
            slant=rng.normal(0, 0.22, size=n),
            bend=rng.normal(0, 0.6, size=n),
            fork=rng.uniform(3, 8, size=n) * (rng.random(n) < 0.45),
            wavelength=rng.uniform(35, 80, size=n),
            phase=rng.uniform(0, 2 * np.pi, size=n),
            wander=rng.normal(0, 0.004, size=n),
            wave=rng.normal(0, 0.55, size=n),
            width=rng.uniform(0.45, 1.15, size=n),
        )

    def depth(self, z: float) -> Array:
        """Depth (mm) of each furrow at height z: they come and go from slice to slice."""
        swing = np.sin(np.pi * z / self.wavelength + self.phase) ** 2
        return self.length * (0.35 + 0.65 * swing)


def surface_starts(rng: np.random.Generator) -> tuple[Array, Array]:
    """Angles at which furrows meet the outline: evenly spread with jitter, none at the poles."""
    per_side = 21
    even = (np.arange(per_side) + 0.5) / per_side
    start, side = [], []
    for sign in (1.0, -1.0):
        at = (even + rng.uniform(-0.42, 0.42, size=per_side) / per_side) * np.pi - np.pi / 2
        at = at * 0.94
        start.append(at if sign > 0 else np.pi - at)
        side.append(np.full(per_side, sign))
    return np.concatenate(start), np.concatenate(side)


def grow(
    furrows: Furrows, start: Array, heading: Array, length: Array, tips: tuple[float, float]
) -> list[tuple[Array, Array]]:
    """Points along curves that grow from `start`, and along the fork at the end of each."""
    keep = length > 2.0
    body, end_heading = _paths(start, heading + furrows.slant, length, furrows.bend, furrows.wave)
    taper = np.linspace(1.9, 0.8, body.shape[1])
    width = furrows.width[:, None] * taper
    parts = [(body[keep].reshape(-1, 2), width[keep].ravel())]
    share = np.minimum(length / furrows.length, 1)
    for tip in tips:
        arm_length = furrows.fork * share
        has_arm = keep & (arm_length > 2.0)
        arm, _ = _paths(body[:, -1], end_heading + tip, arm_length, furrows.bend, furrows.wave)
        arm_width = np.broadcast_to(0.75 * furrows.width[:, None], arm.shape[:2])
        parts.append((arm[has_arm].reshape(-1, 2), arm_width[has_arm].ravel()))
    return parts


def _paths(
    start: Array, heading: Array, length: Array, bend: Array, wave: Array
) -> tuple[Array, Array]:
    """Winding curves [n, P, 2] that turn by `bend` radians on their way; their last headings."""
    count = max(2, int(np.ceil(length.max() / STEP_MM)))
    t = np.linspace(0, 1, count)
    turn = heading[:, None] + bend[:, None] * t + wave[:, None] * np.sin(2 * np.pi * t)
    step = length / (count - 1)
    forward = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * step[:, None, None]
    return start[:, None] + np.cumsum(forward, axis=1) - forward, turn[:, -1]
