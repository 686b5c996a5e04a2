"""Where the slices of a DICOM series lie: the rules that make a volume of them, or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .dicom_bytes import DicomError

Vector = NDArray[np.float64]

_SAME_DIRECTION = 1e-3  # difference of direction cosines
_SAME_SPACING = 1e-3  # mm
# Parts of the distance between slices.
_DUPLICATE, _REGULAR, _ASIDE = 0.01, 0.02, 0.01
_SHIFTED = 0.25  # parts of a pixel

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Plane:
    """Where one slice lies, as its header says (LPS+, mm).

    Attributes
    ----------
    position : ndarray, shape (3,)
        Centre of the first pixel.
    orientation : ndarray, shape (6,)
        Direction along a row (towards higher columns), then along a column.
    spacing : tuple of float
        Distance between rows, and between columns.
    shape : tuple of int
        Rows, columns.
    """

    position: Vector
    orientation: Vector
    spacing: tuple[float, float]
    shape: tuple[int, int]


def order_slices(
    planes: Sequence[Plane], single_step: float | None = None
) -> tuple[list[int], Vector]:
    """Order the slices of a series and find their place in the world.

    Parameters
    ----------
    planes : sequence of Plane
        In any order.
    single_step : float, optional
        Distance between slices, in mm, for a series of one.

    Returns
    -------
    order : list of int
        Indices of `planes` along the normal: rows x columns x normal is right-handed.
    affine : ndarray of float64, shape (4, 4)
        Column, row and slice index to world mm (RAS+).

    Raises
    ------
    DicomError
        With the rule that is broken: "matrix", "spacing", "orientation", "duplicate-position",
        "missing-slice", "irregular-spacing", "tilt".
    """
    first = planes[0]
    _check_alike(planes)
    along_row, along_column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(along_row, along_column)
    positions = np.array([plane.position for plane in planes])
    heights = positions @ normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    if len(planes) == 1:
        step = normal * (single_step or 1.0)
    else:
        _check_steps(positions[order], heights[order], normal)
        _check_line(positions[order], normal, min(first.spacing))
        step = (positions[order[-1]] - positions[order[0]]) / (len(planes) - 1)
    affine = np.eye(4)
    affine[:3, 0] = along_row * first.spacing[1]
    affine[:3, 1] = along_column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return order, LPS_TO_RAS @ affine


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        listed = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes)[:4])
        raise DicomError(
            "matrix", f"its slices have different sizes ({listed}); separate what is mixed"
        )
    spacings = np.array([plane.spacing for plane in planes])
    if not (np.isfinite(spacings).all() and (spacings > 0).all()):
        raise DicomError("spacing", f"it says pixels of {first.spacing[0]} x {first.spacing[1]} mm")
    if np.abs(spacings - spacings[0]).max() > _SAME_SPACING:
        raise DicomError("spacing", "its slices have different pixel spacings")
    _check_directions(first.orientation)
    turned = [
        plane
        for plane in planes
        if not np.abs(plane.orientation - first.orientation).max() <= _SAME_DIRECTION
    ]
    if turned:
        few = min(len(turned), len(planes) - len(turned))
        raise DicomError(
            "orientation",
            f"{few} of its {len(planes)} slices lie at an angle to the others, as a localizer "
            "does; remove them from the series",
        )


def _check_directions(orientation: Vector) -> None:
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    sane = np.isfinite(orientation).all() and np.abs(np.array(lengths) - 1).max() < 0.01
    if not sane or abs(float(along_row @ along_column)) > 0.01:
        raise DicomError("orientation", "its image orientation is no pair of unit vectors at 90°")


def _check_line(positions: Vector, normal: Vector, pixel: float) -> None:
    """Refuse a slice that lies aside of the line through the first and the last."""
    share = np.linspace(0, 1, len(positions))[:, None]
    off = positions - (positions[0] * (1 - share) + positions[-1] * share)
    aside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if aside.max() > _SHIFTED * pixel:
        raise DicomError(
            "shifted-slice",
            f"a slice lies {aside.max():.2f} mm aside of the others; send the series again",
        )


def _check_steps(positions: Vector, heights: Vector, normal: Vector) -> None:
    """Refuse slices that do not lie one above the other at equal distances."""
    steps = np.diff(heights)
    total = heights[-1] - heights[0]
    usual = float(np.median(steps))
    same = steps < max(_DUPLICATE * (usual or total), 1e-3)
    if same.any():
        places = 1 + int(np.count_nonzero(~same))
        raise DicomError(
            "duplicate-position",
            f"{len(heights)} slices share {places} positions: slices twice, or several volumes "
            "(times, echoes, b-values) in one series; separate them",
        )
    away = positions[-1] - positions[0]
    aside = float(np.linalg.norm(away - (away @ normal) * normal))
    if aside > _ASIDE * total:
        angle = np.degrees(np.arctan(aside / total))
        raise DicomError(
            "tilt",
            f"its slices are not stacked along their normal (off by {angle:.1f} degrees), as with "
            "a tilted gantry; resample the series first",
        )
    off = np.abs(steps - usual) > _REGULAR * usual
    if off.any():
        lowest = float(steps.min())
        multiples = steps / lowest
        whole = np.abs(multiples - np.rint(multiples)).max() < 0.1
        if whole and np.rint(multiples).max() > 1:
            missing = int(np.rint(multiples).sum()) - len(steps)
            raise DicomError(
                "missing-slice",
                f"{missing} slices are missing: distances of {lowest:.3g} mm, and in "
                f"{int(off.sum())} places more; send the series again",
            )
        raise DicomError(
            "irregular-spacing",
            f"distances between its slices vary from {lowest:.3g} to {steps.max():.3g} mm; "
            "expected equal ones",
        )
