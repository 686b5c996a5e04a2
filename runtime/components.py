"""Connected parts of a mask: how large they are, where they lie, how anomalous they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import optional

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Place = tuple[float, float, float]

# Of a scan; a mask of more parts is noise, and its largest parts say so well enough.
MAX_COMPONENTS = 1000


@dataclass(frozen=True)
class Component:
    """One connected part of a mask (26 neighbours).

    Attributes
    ----------
    number : int
        1 for the largest.
    voxels : int
        Its size.
    volume_ml : float or None
        The same in ml; None where the scan has no voxel size.
    centroid_index : tuple of float
        Mean index (i, j, k) on the file's own axes, counted from 0.
    centroid_mm : tuple of float or None
        The same place in world mm, to the patient's right, front and head; None without an
        affine.
    peak : float
        Highest value of the anomaly map in it.
    peak_index : tuple of int
        Where that is; the first such voxel in C order.
    peak_mm : tuple of float or None
        The same place in world mm.
    mean : float
        Mean of the anomaly map in it.
    """

    number: int
    voxels: int
    volume_ml: float | None
    centroid_index: Place
    centroid_mm: Place | None
    peak: float
    peak_index: tuple[int, int, int]
    peak_mm: Place | None
    mean: float


class Components(tuple[Component, ...]):
    """Components of a scan, largest first.

    Attributes
    ----------
    left_out : int
        Smaller ones there are beside them.
    """

    left_out: int = 0


def find_components(
    mask: BoolArray,
    anomaly: FloatArray,
    affine: NDArray[np.float64] | None,
    voxel_mm3: float | None,
) -> Components:
    """Find the connected parts of a mask, largest first, at most `MAX_COMPONENTS`.

    Parameters
    ----------
    mask : ndarray of bool, shape (I, J, K)
        On the file's own axes; one image is ``[I, J, 1]``.
    anomaly : ndarray of float32, shape (I, J, K)
        Anomaly map, finite.
    affine : ndarray, shape (4, 4), or None
        Indices to world mm.
    voxel_mm3 : float or None
        Volume of a voxel in cubic mm.

    Returns
    -------
    Components
        A tuple of Component: parts of equal size by their highest value, then by where it lies.
    """
    if not mask.any():
        return Components()
    ndimage = optional("scipy.ndimage", "images")
    # Only the box around the mask is searched: most of a volume lies outside.
    filled = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in filled)
    mask = np.ascontiguousarray(mask[box])
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
    # In C order, as the label and the values below.
    places = np.argwhere(mask) + [edge.start for edge in box]
    label = labels[mask]
    values = anomaly[box][mask].astype(np.float64)
    sizes = np.bincount(label, minlength=count + 1)
    sums = [np.bincount(label, weights=axis, minlength=count + 1) for axis in places.T]
    totals = np.bincount(label, weights=values, minlength=count + 1)
    # The first voxel of each label once they are sorted by label, then by value, highest first.
    order = np.lexsort((np.arange(label.size), -values, label))
    peaks = order[np.searchsorted(label[order], np.arange(1, count + 1))]
    ranked = sorted(
        range(1, count + 1), key=lambda n: (-sizes[n], -values[peaks[n - 1]], peaks[n - 1])
    )
    found = []
    for number, n in enumerate(ranked[:MAX_COMPONENTS], start=1):
        size, peak = int(sizes[n]), peaks[n - 1]
        centre = tuple(float(total[n] / size) for total in sums)
        found.append(
            Component(
                number=number,
                voxels=size,
                volume_ml=None if voxel_mm3 is None else round(size * voxel_mm3 / 1000, 6),
                centroid_index=_rounded(centre),
                centroid_mm=_world(affine, centre),
                peak=float(values[peak]),
                peak_index=(int(places[peak][0]), int(places[peak][1]), int(places[peak][2])),
                peak_mm=_world(affine, places[peak]),
                mean=float(totals[n] / size),
            )
        )
    kept = Components(found)
    kept.left_out = count - len(found)
    return kept


def _world(affine: NDArray[np.float64] | None, index: object) -> Place | None:
    if affine is None:
        return None
    return _rounded(affine[:3, :3] @ np.asarray(index, np.float64) + affine[:3, 3])


def _rounded(place: object) -> Place:
    """Thousandths of a voxel or of a mm: what is beyond is noise of the last digit."""
    x, y, z = (round(float(value), 3) for value in np.asarray(place))
    return x, y, z
