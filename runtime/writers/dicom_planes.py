"""Where the slices of a DICOM series lie, for objects that are drawn on them.

What highdicom makes of a source depends on much of its header, and goes into its warnings. It gets
stand-ins instead: class and UIDs of every source image, and the geometry that has been checked.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, optional
from ..scans.dicom_series import OPHTHALMIC_TOMOGRAPHY
from .dicom_identity import Origin

if TYPE_CHECKING:
    from pydicom import Dataset

FloatArray = NDArray[np.float64]

# How far, in voxels, the grid of the results may lie from the planes of the source, and how much
# its axes may differ: less than any axis that is swapped or flipped, more than headers' rounding.
_OFF, _TURNED = 0.5, 0.1
# Of direction cosines, and in mm of pixel spacings, between slices of one series.
_ALIKE = 5e-3
_INSTEAD = "write NIfTI or PNG instead"

_UID = re.compile(r"[0-9.]{1,64}")
_UIDS = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")
_COPIED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "Rows",
    "Columns",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
_LEFT_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, eq=False)
class Planes:
    """The planes of a series, in DICOM's coordinates (x to the left, y to the back, z up).

    Attributes
    ----------
    positions : ndarray of float64, shape (K, 3)
        Centre of the first pixel of each slice in mm.
    along_row, along_column : ndarray of float64, shape (3,)
        Directions in which column and row indices grow.
    spacing : tuple of float
        Distance of rows and of columns in mm.
    thickness : float or None
        Of a slice in mm, as the source says; else their distance; None where that is unknown.
    """

    positions: FloatArray
    along_row: FloatArray
    along_column: FloatArray
    spacing: tuple[float, float]
    thickness: float | None

    @property
    def distance(self) -> float | None:
        """Of neighbouring slices in mm; None of a single one, or where it varies."""
        normal = np.cross(self.along_row, self.along_column)
        steps = np.abs(np.diff(self.positions @ normal))
        if steps.size and np.ptp(steps) < 1e-2 * steps.mean():
            return float(steps.mean())
        return None

    def check_affine(self, affine: FloatArray) -> None:
        """Refuse a grid that does not lie on these planes.

        Parameters
        ----------
        affine : ndarray of float64, shape (4, 4)
            Column, row and slice index to world mm (RAS+).

        Raises
        ------
        InputError
            If any slice is off.
        """
        ours = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        count = len(self.positions)
        indices = np.stack([np.zeros(count), np.zeros(count), np.arange(count), np.ones(count)])
        off = np.linalg.norm((ours @ indices)[:3].T - self.positions, axis=1).max()
        rows, columns = self.spacing
        turned = [
            np.linalg.norm(ours[:3, 0] - columns * self.along_row) / columns,
            np.linalg.norm(ours[:3, 1] - rows * self.along_column) / rows,
        ]
        if off > _OFF * max(rows, columns, self.distance or 0) or max(turned) > _TURNED:
            raise InputError(
                f"the grid of the results lies up to {off:.3g} mm off the planes of the series, or "
                f"turned against them; {_INSTEAD}"
            )


def pixels_of(origin: Origin, values: NDArray[Any]) -> NDArray[Any]:
    """Values ``[I, J, K]`` as frames ``[K, rows, columns]`` of the source; a view.

    Raises
    ------
    InputError
        If the source has another shape.
    """
    first = origin.datasets[0]
    expected = (int(first.Columns), int(first.Rows), _count(origin))
    if values.shape != expected:
        raise InputError(
            f"the results have {values.shape} columns, rows and slices, the series {expected}; "
            f"{_INSTEAD}"
        )
    return values.transpose(2, 1, 0)


def placed(origin: Origin, affine: FloatArray) -> Planes:
    """Planes of a series whose results lie on `affine`; see `read_planes` and `check_affine`.

    B-scans of ophthalmic tomography are taken one by one, and their affine holds sizes only: where
    they lie is left to their headers.
    """
    planes = read_planes(origin)
    if str(origin.datasets[0].get("SOPClassUID", "")) != OPHTHALMIC_TOMOGRAPHY:
        planes.check_affine(affine)
    return planes


def read_planes(origin: Origin) -> Planes:
    """Read where the slices of a series lie.

    Raises
    ------
    InputError
        If it does not say so, or if its slices are not parallel or lie in one place.
    """
    try:
        places = [_place(origin, index) for index in range(_count(origin))]
        positions = np.array([place.ImagePositionPatient for place in places], np.float64)
        turns = np.array([place.ImageOrientationPatient for place in places], np.float64)
        spacings = np.array([place.PixelSpacing for place in places], np.float64)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"a slice has no position, orientation or pixel spacing in the patient; {_INSTEAD}"
        ) from error
    if not _UID.fullmatch(str(origin.datasets[0].get("FrameOfReferenceUID", ""))):
        raise InputError(f"the series has no valid FrameOfReferenceUID; {_INSTEAD}")
    _check_uids(origin)
    if max(np.ptp(turns, axis=0).max(), np.ptp(spacings, axis=0).max()) > _ALIKE:
        raise InputError(f"the slices differ in orientation or pixel spacing; {_INSTEAD}")
    along_row, along_column = turns[0, :3], turns[0, 3:]
    heights = np.sort(positions @ np.cross(along_row, along_column))
    if len(heights) > 1 and np.diff(heights).min() < 1e-3:
        raise InputError(f"several slices lie in one place; {_INSTEAD}")
    rows, columns = (float(size) for size in spacings[0])
    planes = Planes(positions, along_row, along_column, (rows, columns), None)
    thickness = _stated_thickness(places[0]) or planes.distance
    return replace(planes, thickness=thickness)


def stand_ins(origin: Origin, planes: Planes) -> list[Dataset]:
    """Headers by which highdicom refers to the source and takes over its planes, in order of K."""
    if not origin.frame_numbers:
        pairs = zip(origin.datasets, planes.positions, strict=True)
        return [_single_frame(source, position, planes) for source, position in pairs]
    dataset = optional("pydicom", "dicom").Dataset
    whole = _nameless(origin.datasets[0])
    shared, measures, turn = dataset(), dataset(), dataset()
    _measure(measures, planes)
    turn.ImageOrientationPatient = _decimals([*planes.along_row, *planes.along_column])
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    frames = []
    for position in planes.positions:
        frame, place = dataset(), dataset()
        place.ImagePositionPatient = _decimals(position)
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    whole.NumberOfFrames = len(frames)
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = frames
    return [whole]


def number_frames(result: Dataset, origin: Origin) -> None:
    """Make references to frames of the stand-in references to frames of the source."""
    if not origin.frame_numbers:
        return
    for frame in result.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                index = int(item.ReferencedFrameNumber) - 1
                item.ReferencedFrameNumber = int(origin.frame_numbers[index])


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what to do where highdicom refuses a source. Its own words may quote the header."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"highdicom cannot refer to images of this kind ({type(error).__name__}); {_INSTEAD}"
        ) from error


def _count(origin: Origin) -> int:
    return len(origin.frame_numbers or origin.datasets)


def _place(origin: Origin, index: int) -> Dataset:
    """Position, orientation and pixel measures of a slice, wherever its header holds them."""
    if not origin.frame_numbers:
        return origin.datasets[index]
    whole = origin.datasets[0]
    place = optional("pydicom", "dicom").Dataset()
    own = whole.PerFrameFunctionalGroupsSequence[origin.frame_numbers[index] - 1]
    for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
        for group in (own, *whole.get("SharedFunctionalGroupsSequence", [])):
            if group.get(name):
                place.update(group[name].value[0])
                break
    return place


def _stated_thickness(place: Dataset) -> float | None:
    """Slice thickness, which plays no part in where slices lie; None where it makes no sense."""
    try:
        stated = float(place.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        return None
    return stated if 0 < stated < 1e4 else None


def _check_uids(origin: Origin) -> None:
    """Refuse a source that a reference could not point to."""
    instances = []
    for source in origin.datasets:
        uids = [str(source.get(keyword, "")) for keyword in _UIDS]
        if not all(_UID.fullmatch(uid) for uid in uids):
            raise InputError(f"a slice lacks a UID, or has one that is none; {_INSTEAD}")
        instances.append(uids[0])
    if len(set(instances)) < len(instances):
        raise InputError(f"several slices have the same SOPInstanceUID; {_INSTEAD}")


def _single_frame(source: Dataset, position: FloatArray, planes: Planes) -> Dataset:
    result = _nameless(source)
    _measure(result, planes)
    result.ImageOrientationPatient = _decimals([*planes.along_row, *planes.along_column])
    result.ImagePositionPatient = _decimals(position)
    return result


def _nameless(source: Dataset) -> Dataset:
    result = optional("pydicom", "dicom").Dataset()
    for keyword in _COPIED:
        if keyword in source:
            result.add(source[keyword])
    for keyword in _LEFT_EMPTY:
        setattr(result, keyword, "")
    return result


def _measure(target: Dataset, planes: Planes) -> None:
    target.PixelSpacing = _decimals(planes.spacing)
    target.SliceThickness = _decimal(planes.thickness)
    if planes.distance is not None:
        target.SpacingBetweenSlices = _decimal(planes.distance)


def _decimals(values: Any) -> list[Any]:
    return [_decimal(float(value)) for value in values]


def _decimal(value: float | None) -> Any:
    """Decimal string, as exact as 16 characters can be."""
    if value is None:
        return None
    return optional("pydicom.valuerep", "dicom").DSfloat(value, auto_format=True)
