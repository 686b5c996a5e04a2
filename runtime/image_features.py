"""An image summed up in a few numbers that a person can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .preprocessing import foreground

FloatArray = NDArray[np.float64]

SHAPE_FEATURES = ("coverage", "row centre", "column centre", "height", "width", "row skew")
# No measure of the brightest pixels: a lesion would stand out by them.
CHANNEL_FEATURES = (
    "mean",
    "5 % level",
    "25 % level",
    "median",
    "75 % level",
    "sharpness",
    "fineness",
    "row balance",
    "concentration",
)
LEVELS = 1000


def feature_names(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Names of what `describe` measures.

    Of the foreground (pixels where any channel is above 0), in parts of the grid: ``coverage``,
    its area; ``row centre`` and ``column centre``, its mean position; ``height`` and ``width``, its
    standard deviation along rows and columns; ``row skew``, its skewness from top to bottom.

    Of each channel inside the foreground: ``mean``, ``5 % level``, ``25 % level``, ``median``,
    ``75 % level`` of its intensity; ``sharpness``, mean absolute difference of neighbours;
    ``fineness``, that over the difference of pixels two apart; ``row balance``, how far its
    intensity lies below the foreground's centre, in heights; ``concentration``, the mean squared
    distance of its intensity from that centre over that of the foreground: below 1 where the
    middle is brighter.
    """
    return SHAPE_FEATURES + tuple(
        f"{name} {feature}" for name in modalities for feature in CHANNEL_FEATURES
    )


def describe(images: NDArray[Any]) -> FloatArray:
    """Measure what `feature_names` names.

    Parameters
    ----------
    images : ndarray, shape (N, C, H, W)
        On the model's grid, in [0, 1], finite.

    Returns
    -------
    ndarray of float64, shape (N, F)
        F = 6 + 9 C. Zeros for an image that shows nothing.
    """
    count, channels = images.shape[:2]
    rows = np.zeros((count, len(SHAPE_FEATURES) + channels * len(CHANNEL_FEATURES)))
    for image, inside, row in zip(images, foreground(images), rows, strict=True):
        if inside.any():
            place = _Place.of(inside)
            row[: len(SHAPE_FEATURES)] = place.features
            row[len(SHAPE_FEATURES) :] = [
                value for plane in image for value in _channel(plane, inside, place)
            ]
    return rows


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the foreground lies, and which of its pixels are 1 and 2 apart along each axis.

    The masks are of float32, with their sum: a product with them is the fastest sum over pairs.
    """

    features: tuple[float, ...]
    box: tuple[slice, slice]
    pairs: tuple[tuple[int, int, NDArray[np.float32], int], ...]

    @classmethod
    def of(cls, inside: NDArray[np.bool_]) -> _Place:
        down, across = (np.count_nonzero(inside, axis=axis).astype(float) for axis in (1, 0))
        (top, height, skew), (left, width, _) = _moments(down), _moments(across)
        box = _extent(down), _extent(across)
        pairs = []
        for step in (1, 2):
            for axis in (0, 1):
                one, other = _apart(inside[box], axis, step)
                both = (one & other).ravel()
                pairs.append((axis, step, both.astype(np.float32), int(np.count_nonzero(both))))
        features = (float(inside.mean()), top, left, height, width, skew)
        return cls(features, box, tuple(pairs))


def _extent(sums: FloatArray) -> slice:
    """From the first to the last that is not 0."""
    filled = np.flatnonzero(sums)
    return slice(int(filled[0]), int(filled[-1]) + 1)


def _moments(sums: FloatArray) -> tuple[float, float, float]:
    """Mean, standard deviation (in parts of the grid) and skewness of positions, weighted."""
    position = np.arange(len(sums)) / len(sums)
    weight = sums / sums.sum()
    mean = float(weight @ position)
    off = position - mean
    spread = float(np.sqrt(weight @ off**2))
    # Nothing is narrower than a pixel.
    return mean, spread, float(weight @ off**3) / max(spread, 1 / len(sums)) ** 3


def _apart(plane: NDArray[Any], axis: int, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixels, and those `step` further along an axis."""
    if axis == 0:
        return plane[step:], plane[:-step]
    return plane[:, step:], plane[:, :-step]


def _channel(plane: NDArray[Any], inside: NDArray[np.bool_], place: _Place) -> list[float]:
    """Features of one channel, as `CHANNEL_FEATURES` names them."""
    values = plane[inside]
    near, far = _differences(plane[place.box], place)
    _, top, left, height, width, _ = place.features
    down = _offsets(plane.sum(axis=1, dtype=np.float64), top)
    across = _offsets(plane.sum(axis=0, dtype=np.float64), left)
    return [
        float(values.mean(dtype=np.float64)),
        *_quantiles(values, (0.05, 0.25, 0.5, 0.75)),
        near,
        near / far if far > 0 else 0.0,
        down[0] / max(height, 1 / len(plane)),
        (down[1] + across[1]) / max(height**2 + width**2, 1e-6),
    ]


def _quantiles(values: NDArray[Any], parts: tuple[float, ...]) -> list[float]:
    """Quantiles of values in [0, 1], to a thousandth: of a histogram, which is fast."""
    counts = np.bincount((values * np.float32(LEVELS)).astype(np.intp))
    ranks = [int(part * (values.size - 1)) for part in parts]
    found = np.searchsorted(np.cumsum(counts), ranks, side="right")
    return [float(level) / LEVELS for level in found]


def _differences(plane: NDArray[Any], place: _Place) -> tuple[float, float]:
    """Mean absolute difference of pixels 1 and 2 apart, both inside, along rows and columns."""
    sums, counts = {1: 0.0, 2: 0.0}, {1: 0, 2: 0}
    for axis, step, both, count in place.pairs:
        one, other = _apart(plane, axis, step)
        sums[step] += float(np.abs(one - other).ravel() @ both)
        counts[step] += count
    near, far = (sums[step] / max(counts[step], 1) for step in (1, 2))
    return near, far


def _offsets(sums: FloatArray, centre: float) -> tuple[float, float]:
    """Mean and mean square of the offset from `centre`, in parts of the grid, weighted."""
    total = float(sums.sum())
    if total <= 0:
        return 0.0, 0.0
    off = np.arange(len(sums)) / len(sums) - centre
    return float(sums @ off) / total, float(sums @ off**2) / total
