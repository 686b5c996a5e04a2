"""Anomaly maps, their segmentation, and the image score.

All functions work on float32 arrays on one grid; nothing here depends on an engine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import optional
from .manifest import AnomalyMapKind
from .median import median_5x5

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

MIN_PIXELS = 16
TOP_FRACTION = 0.01


def anomaly_map(
    kind: AnomalyMapKind,
    images: FloatArray,
    reconstruction: FloatArray,
    unchanged: FloatArray | None,
    flips: FloatArray | None,
) -> FloatArray:
    """Combine what the loop gives into one map per image, smoothed by a 5x5 median.

    Parameters
    ----------
    kind : str
        "squared": sum over channels of (reconstruction - image)^2, the published map.
        "absolute": sum of |reconstruction - image|.
        "signed": sum of image - reconstruction where positive, for lesions that are brighter than
        healthy tissue.
        "change": sum of unchanged - reconstruction where positive: what the loop itself darkened,
        without the decoder's blur.
        "flips": the flip map.
    images : ndarray, shape (N, C, H, W)
        What was encoded, in [0, 1].
    reconstruction : ndarray, shape (N, C, H, W)
        The healthy counterpart, in [0, 1].
    unchanged : ndarray, shape (N, C, H, W), or None
        Decoded from the image's own code; needed by "change" only.
    flips : ndarray, shape (N, H, W), or None
        The flip map on the same grid; needed by "flips" only.

    Returns
    -------
    ndarray of float32, shape (N, H, W)
        At least 0; larger is more anomalous.
    """
    if kind == "flips":
        if flips is None:
            raise ValueError("the map 'flips' needs the flip map")
        return median_filter(flips)
    if kind == "change":
        if unchanged is None:
            raise ValueError("the map 'change' needs the decoded original code")
        difference = np.maximum(unchanged - reconstruction, 0)
    elif kind == "signed":
        difference = np.maximum(images - reconstruction, 0)
    elif kind == "absolute":
        difference = np.abs(images - reconstruction)
    elif kind == "squared":
        difference = np.square(reconstruction - images)
    else:
        raise ValueError(f"unknown anomaly map {kind!r}")
    return median_filter(difference.sum(axis=1, dtype=np.float32))


def median_filter(maps: FloatArray) -> FloatArray:
    """Median of each 5x5 neighbourhood, ``[N, H, W] -> [N, H, W]``, edges mirrored."""
    return median_5x5(maps)


def smooth(planes: FloatArray, inside: BoolArray, sigma: float) -> FloatArray:
    """Gaussian smoothing within the foreground: what lies outside does not bleed in.

    Parameters
    ----------
    planes : ndarray of float32, shape (..., H, W)
        Maps or images.
    inside : ndarray of bool, shape (..., H, W)
        Foreground.
    sigma : float
        Standard deviation in pixels; 0 leaves the values as they are.

    Returns
    -------
    ndarray of float32, shape (..., H, W)
        0 outside the foreground.
    """
    kept = np.where(inside, planes, np.float32(0))
    if sigma <= 0 or not inside.any():
        return kept
    ndimage = optional("scipy.ndimage", "images")
    sigmas = (0,) * (planes.ndim - 2) + (sigma, sigma)
    # Beyond the foreground all is 0, and stays out of the sums.
    box = (..., _extent(inside, -2), _extent(inside, -1))
    shown = inside[box]
    weight = ndimage.gaussian_filter(shown.astype(np.float32), sigmas, mode="constant")
    blurred = ndimage.gaussian_filter(kept[box], sigmas, mode="constant")
    blurred /= np.maximum(weight, np.float32(1e-6))
    kept[box] = np.where(shown, blurred, np.float32(0))
    return kept


def _extent(inside: BoolArray, axis: int) -> slice:
    """From the first to the last place along an axis that holds foreground."""
    filled = np.flatnonzero(np.moveaxis(inside, axis, 0).reshape(inside.shape[axis], -1).any(1))
    return slice(int(filled[0]), int(filled[-1]) + 1)


def flip_mean(flips: FloatArray) -> FloatArray:
    """Mean over the K bits of each position, ``[N, K, h, w] -> [N, h, w]``."""
    return flips.mean(axis=1, dtype=np.float32)


def flip_map(flips: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Bring flip probabilities of code positions to image size, bilinear in between.

    The value of a position lies at the centre of its pixels; beyond the outermost centres it
    stays as it is.

    Parameters
    ----------
    flips : ndarray of float32, shape (N, h, w)
        Mean over steps and bits of the probability that the healthy bit differs.
    size : tuple of int
        (H, W), multiples of (h, w).

    Returns
    -------
    ndarray of float32, shape (N, H, W)
        In [0, 1].
    """
    # Columns first, while there are few rows; in float64, so that no machine rounds differently.
    wide = _stretch(flips.astype(np.float64), size[1], axis=2)
    return _stretch(wide, size[0], axis=1).astype(np.float32)


def _stretch(values: NDArray[np.float64], length: int, axis: int) -> NDArray[np.float64]:
    """Bring one axis to another length, linear between the centres of its elements."""
    count = values.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    below = place.astype(np.intp)
    above = np.minimum(below + 1, count - 1)
    weight = np.expand_dims(place - below, tuple(range(1, values.ndim - axis)))
    return values.take(below, axis) * (1 - weight) + values.take(above, axis) * weight


def otsu(values: NDArray[np.floating]) -> float:
    """Threshold that best splits values into two classes (Otsu 1979), over 256 bins.

    Parameters
    ----------
    values : ndarray
        Any shape; finite.

    Returns
    -------
    float
        Upper edge of the lower class; the common value where all are equal.
    """
    values = np.asarray(values, dtype=np.float64)  # float32 may not have 256 steps between them
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        return high
    counts, edges = np.histogram(values, bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    variance = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    return float(edges[int(np.argmax(variance)) + 1])


def segment(
    anomaly: FloatArray, threshold: float, foreground: BoolArray, min_pixels: int = MIN_PIXELS
) -> BoolArray:
    """Mask of pixels above a threshold, without specks.

    Parameters
    ----------
    anomaly : ndarray, shape (H, W)
        Anomaly map.
    threshold : float
        Pixels above it are kept.
    foreground : ndarray of bool, shape (H, W)
        Where the image shows anything; the mask stays inside.
    min_pixels : int
        Connected components (8 neighbours) with fewer pixels are dropped.

    Returns
    -------
    ndarray of bool, shape (H, W)
    """
    ndimage = optional("scipy.ndimage", "images")
    mask = (anomaly > threshold) & foreground
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    large = np.bincount(labels.ravel(), minlength=count + 1) >= min_pixels
    large[0] = False
    return large[labels]


def image_score(anomaly: FloatArray, foreground: BoolArray) -> float:
    """Mean of the highest 1 % of the anomaly map inside the foreground; 0 without foreground."""
    values = anomaly[foreground]
    if values.size == 0:
        return 0.0
    count = max(1, round(TOP_FRACTION * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))
