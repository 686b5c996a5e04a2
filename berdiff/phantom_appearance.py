"""How a synthetic head looks to a scanner: contrasts, lesions, bias field, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.errors import optional

from .phantom_anatomy import Tissue
from .phantom_curves import Array, Grid, SmoothField

MEDIAN = 0.35
"""Value, as a fraction of the full range, that the brain's median is near."""


@dataclass(frozen=True)
class Contrast:
    """Brightness of each tissue relative to the brain's median, and what a lesion does to it.

    `lesion` and `edge` are added, times the strength of the lesion, to its core and its rim.
    """

    csf: float
    cortex: float
    nuclei: float
    white: float
    rim: float
    lesion: float
    edge: float


CONTRASTS = {
    "flair": Contrast(0.22, 1.22, 1.13, 0.97, 0.12, lesion=1.0, edge=0.0),
    "t1": Contrast(0.28, 0.82, 0.93, 1.18, 0.0, lesion=-0.5, edge=0.0),
    "t2": Contrast(2.05, 1.14, 1.0, 0.84, 0.05, lesion=0.95, edge=0.0),
    "t1ce": Contrast(0.30, 0.84, 0.95, 1.16, 0.0, lesion=-0.45, edge=1.2),
}
"""Contrasts by name. The order is part of the random streams: append, do not reorder."""


@dataclass(frozen=True)
class Lesion:
    """One lesion on a pixel grid.

    Parameters
    ----------
    amount : float64 [D, H, W]
        0 outside to about 1 inside, uneven, with a soft edge across the outline of the mask.
    edge : float64 [D, H, W]
        1 just inside the outline, 0 elsewhere: what takes up contrast agent.
    mask : bool [D, H, W]
        The lesion exactly.
    strength : float
        Change of brightness on FLAIR in units of the brain's median.
    """

    amount: Array
    edge: Array
    mask: NDArray[np.bool_]
    strength: float


def draw_lesion(rng: np.random.Generator, tissue: Tissue, grid: Grid) -> Lesion:
    """Put a lesion of irregular outline into the white or grey matter.

    Parameters
    ----------
    rng : numpy Generator
    tissue : Tissue, arrays [D, H, W]
    grid : Grid
    """
    solid = tissue.brain & (tissue.csf < 0.1)
    if not solid.any():
        solid = tissue.brain
    places = np.flatnonzero(solid)
    # White matter is where most lesions sit; the cortex gets some.
    weight = (tissue.white + 0.25 * (tissue.cortex + tissue.nuclei)).ravel()[places] + 1e-6
    centre = np.unravel_index(rng.choice(places, p=weight / weight.sum()), grid.shape)
    cz, cy, cx = (axis[i] for axis, i in zip((grid.z, grid.y, grid.x), centre, strict=True))
    radius = float(np.clip(np.exp(rng.normal(np.log(7.5), 0.4)), 4.5, 15.0))
    stretch = np.exp(rng.normal(0, 0.22, size=3))
    coarse = SmoothField.draw(rng, 2.2 * radius)
    fine = SmoothField.draw(rng, 1.0 * radius)

    along_x, along_y, along_z = (
        factor * (axis - c)
        for factor, axis, c in zip(stretch, (grid.x, grid.y, grid.z), (cx, cy, cz), strict=True)
    )
    distance = np.sqrt(
        along_z[:, None, None] ** 2 + along_y[:, None] ** 2 + along_x[None, None] ** 2
    )
    detail = fine.on(grid)
    ragged = 0.22 * coarse.on(grid) + 0.10 * detail
    # Relative to the centre, so that the centre always belongs to the lesion.
    inner = radius * np.clip(1 + ragged - ragged[centre], 0.45, None) - distance
    softness = rng.uniform(1.0, 3.0)
    tissue_here = tissue.brain * (1 - tissue.csf)
    amount = np.clip(0.5 + inner / softness, 0, 1) * tissue_here * (0.9 - 0.1 * np.tanh(detail))
    mask = tissue.brain & (inner > 0) & (tissue.csf < 0.5)
    edge = np.exp(-(((inner - 1.8) / 1.6) ** 2)) * tissue_here
    strength = float(np.exp(rng.uniform(np.log(0.18), np.log(0.95))))
    return Lesion(amount, edge, mask, strength)


def render(
    contrast: str,
    tissue: Tissue,
    lesions: list[Lesion],
    grid: Grid,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Image of a head in one contrast.

    Parameters
    ----------
    contrast : str
        One of `CONTRASTS`.
    tissue : Tissue, arrays [D, H, W]
    lesions : list of Lesion
    grid : Grid
    rng : numpy Generator
        Gives the brightness, bias field and noise. The same numbers are drawn whatever the
        lesions, so that a head looks the same with and without them.

    Returns
    -------
    float32 [D, H, W]
        Above 0 and below 1 in the brain, with a median near 0.35 there; exactly 0 outside.
    """
    gaussian_filter = optional("scipy.ndimage", "images").gaussian_filter
    look = CONTRASTS[contrast]
    jitter = rng.normal(1, 0.03, size=4)
    rim = look.rim * rng.uniform(0, 2)
    mottle = gaussian_filter(rng.normal(size=tissue.brain.shape), (0.7, 0.9, 0.9), truncate=3)
    mottle *= rng.uniform(0.02, 0.05) / mottle.std()
    blur = rng.uniform(0.3, 0.6)
    bias = 1 + rng.uniform(0.01, 0.05) * SmoothField.draw(rng, 260).on(grid)
    bias /= bias[tissue.brain].mean()
    gain = rng.uniform(0.95, 1.04)
    sigma = rng.uniform(0.02, 0.045)
    noise = rng.normal(0, sigma, size=(2, *tissue.brain.shape))

    signal = look.csf * jitter[0] * tissue.csf
    signal += look.cortex * jitter[1] * tissue.cortex
    signal += look.nuclei * jitter[2] * tissue.nuclei
    signal += look.white * jitter[3] * tissue.white
    signal += rim * tissue.rim
    signal *= 1 + mottle
    for lesion in lesions:
        signal = _apply(lesion, look, signal)
    signal = gaussian_filter(signal, (0, blur, blur)) * bias * gain
    noisy = np.hypot(signal + noise[0], noise[1])  # Rician, as in magnitude images
    return np.where(tissue.brain, np.clip(MEDIAN * noisy, 1e-3, 0.999), 0).astype(np.float32)


def _apply(lesion: Lesion, look: Contrast, signal: Array) -> Array:
    """Move the signal towards that of the lesion; overlapping lesions do not add up."""
    ceiling = 1.0 + max(look.lesion, 0.0) * 1.2
    core = np.clip(signal + look.lesion * lesion.strength, 0.2, max(ceiling, 0.2))
    if look.lesion > 0:
        core = np.maximum(core, signal)
    changed = signal + lesion.amount * (core - signal)
    return np.minimum(changed + look.edge * lesion.strength * lesion.edge, 2.3)
