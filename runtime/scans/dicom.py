"""A DICOM series as one array with its place in the world, or the rule it breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, optional
from .dicom_bytes import DicomError, parse
from .dicom_geometry import LPS_TO_RAS, Plane, order_slices
from .dicom_pixels import frame_count, stored_pixels, whole
from .dicom_series import OPHTHALMIC_TOMOGRAPHY
from .geometry import FloatArray
from .scan import MAX_VOXELS
from .source import FileRef

_AIR = {"CT": -1000.0}  # what padding becomes; 0 where a modality has no scale


@dataclass(frozen=True, eq=False)
class DicomOrigin:
    """Headers that results take their identity from.

    Attributes
    ----------
    datasets : tuple of pydicom.Dataset
        Without pixels. Of a classic series one per slice, in order of K; of a multi-frame object
        the one.
    frame_numbers : tuple of int
        Of a multi-frame object, the frame (from 1) that each slice is; empty otherwise.
    """

    datasets: tuple[Any, ...]
    frame_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One series, read.

    Attributes
    ----------
    values : ndarray of float32, shape (I, J, K)
        Column, row, slice; rescaled as each slice says.
    stored : ndarray of int, shape (I, J, K)
        The same as stored.
    affine : ndarray of float64, shape (4, 4)
        Indices to world mm (RAS+).
    kind : {"volume", "frames"}
        "frames": images to be taken one by one as stored; the affine holds their pixel size only.
    spacing : tuple of float
        Distance between rows, and between columns, in mm.
    digests : tuple of str
        SHA-256 of each file, as they were given.
    origin : DicomOrigin
        For results.
    notes, doubts : tuple of str
        What was assumed; what makes the results suspect.
    """

    values: FloatArray
    stored: NDArray[Any]
    affine: NDArray[np.float64]
    kind: Literal["volume", "frames"]
    spacing: tuple[float, float]
    digests: tuple[str, ...]
    origin: DicomOrigin
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Slice:
    """One slice, wherever it came from."""

    plane: Plane
    stored: NDArray[Any]  # [rows, columns]
    slope: float
    intercept: float
    data: Any
    frame: int = 0


def read_series(files: Sequence[FileRef]) -> DicomImage:
    """Read the files of one series.

    Parameters
    ----------
    files : sequence of FileRef
        As `find_series` groups them; their order plays no part.

    Raises
    ------
    DicomError
        Naming the rule that is broken.
    """
    digests, datasets, voxels = [], [], 0
    try:
        for file in files:
            content = file.read()
            digests.append(hashlib.sha256(content).hexdigest())
            data = parse(content)
            voxels += frame_count(data) * whole(data, "Rows") * whole(data, "Columns")
            if voxels > MAX_VOXELS:
                raise DicomError("size", f"the series has more than {MAX_VOXELS} voxels")
            datasets.append(data)
        _check_one_series(datasets)
        return _image(datasets, tuple(digests))
    except InputError:
        raise
    except MemoryError as error:
        raise DicomError("size", "the series does not fit into memory") from error
    except Exception as error:  # attributes of the wrong kind; what they say may be a name
        raise DicomError(
            "damaged", f"its header holds values that make no sense ({type(error).__name__})"
        ) from error


def _check_one_series(datasets: Sequence[Any]) -> None:
    for keyword, rule, what in (
        ("SeriesInstanceUID", "mixed-series", "series"),
        ("StudyInstanceUID", "mixed-series", "studies"),
        ("Modality", "mixed-series", "modalities"),
        ("FrameOfReferenceUID", "frame-of-reference", "frames of reference"),
    ):
        values = {str(data.get(keyword, "")) for data in datasets}
        if len(values) > 1:
            raise DicomError(rule, f"its files are of {len(values)} {what}; give one at a time")
    several = any(
        whole(data, "NumberOfFrames", 1) > 1
        or str(data.get("SOPClassUID", "")) == OPHTHALMIC_TOMOGRAPHY
        for data in datasets
    )
    if len(datasets) > 1 and several:
        raise DicomError(
            "multi-frame",
            f"it has {len(datasets)} objects that hold frames; give one of them at a time",
        )


def _image(datasets: Sequence[Any], digests: tuple[str, ...]) -> DicomImage:
    first = datasets[0]
    if str(first.get("SOPClassUID", "")) == OPHTHALMIC_TOMOGRAPHY:
        return _frames(first, digests)
    multi = "PerFrameFunctionalGroupsSequence" in first
    if not multi and whole(first, "NumberOfFrames", 1) > 1:
        raise DicomError("position", "its frames do not say where they lie; expected positions")
    slices = _of_multi_frame(first) if multi else [_classic(data) for data in datasets]
    planes = [item.plane for item in slices]
    step, notes = _single_step(slices[0]) if len(slices) == 1 else (None, ())
    if not str(first.get("FrameOfReferenceUID", "")):
        notes = (*notes, "its files state no frame of reference; took them to have one")
    order, affine = order_slices(planes, step)
    slices = [slices[index] for index in order]
    headers = [slices[0].data] if multi else [item.data for item in slices]
    return DicomImage(
        values=_stack([_scaled(item) for item in slices]),
        stored=_stack([item.stored for item in slices]),
        affine=affine,
        kind="volume",
        spacing=planes[0].spacing,
        digests=digests,
        origin=_origin(headers, tuple(item.frame for item in slices) if multi else ()),
        notes=notes,
        doubts=_doubts(slices),
    )


def _stack(planes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Slices ``[rows, columns]`` as ``[I, J, K]``: column, row, slice."""
    return np.stack([plane.T for plane in planes], axis=-1)


def _origin(headers: Sequence[Any], frames: tuple[int, ...]) -> DicomOrigin:
    """Keep the headers, and let go of the pixels."""
    dataset = optional("pydicom.dataset", "dicom").Dataset
    kept = []
    for data in headers:
        bare = dataset(data)  # the same elements, without what was decoded
        bare.file_meta = data.file_meta
        del bare["PixelData"]
        kept.append(bare)
    return DicomOrigin(tuple(kept), frames)


def _scaled(item: _Slice) -> FloatArray:
    values = item.stored * np.float64(item.slope) + np.float64(item.intercept)
    padding = item.data.get("PixelPaddingValue")
    if padding is not None:
        number, bits = int(padding), whole(item.data, "BitsAllocated")
        if item.stored.dtype.kind == "i" and number >= 2 ** (bits - 1):
            number -= 2**bits  # written without its sign
        values[item.stored == number] = _AIR.get(str(item.data.get("Modality", "")), 0.0)
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
        return values.astype(np.float32)


def _classic(data: Any) -> _Slice:
    return _Slice(
        plane=_plane(data, data, data, data),
        stored=stored_pixels(data)[0],
        slope=_float(data, "RescaleSlope", 1.0),
        intercept=_float(data, "RescaleIntercept", 0.0),
        data=data,
    )


def _plane(size: Any, position: Any, orientation: Any, measures: Any) -> Plane:
    for holder, keyword, count in (
        (position, "ImagePositionPatient", 3),
        (orientation, "ImageOrientationPatient", 6),
        (measures, "PixelSpacing", 2),
    ):
        value = holder.get(keyword) if holder is not None else None
        if value is None or len(value) != count:
            raise DicomError("position", f"a slice has no {keyword}; expected {count} numbers")
    rows, columns = (float(value) for value in measures.PixelSpacing)
    place = np.array(position.ImagePositionPatient, np.float64)
    if not np.isfinite(place).all() or np.abs(place).max() > 1e6:
        raise DicomError("position", "a slice's ImagePositionPatient makes no sense")
    return Plane(
        position=place,
        orientation=np.array(orientation.ImageOrientationPatient, np.float64),
        spacing=(rows, columns),
        shape=(whole(size, "Rows"), whole(size, "Columns")),
    )


def _of_multi_frame(data: Any) -> list[_Slice]:
    """Slices of an enhanced object; each frame may have its own position and rescaling."""
    frames = stored_pixels(data)
    groups = data.PerFrameFunctionalGroupsSequence
    if len(groups) < len(frames):
        raise DicomError(
            "truncated", f"it has {len(frames)} frames and says of {len(groups)} where they lie"
        )
    slices = []
    for number, (stored, own) in enumerate(zip(frames, groups, strict=False), start=1):
        scaling = _group(data, own, "PixelValueTransformationSequence")
        slices.append(
            _Slice(
                plane=_plane(
                    data,
                    _group(data, own, "PlanePositionSequence"),
                    _group(data, own, "PlaneOrientationSequence"),
                    _group(data, own, "PixelMeasuresSequence"),
                ),
                stored=stored,
                slope=_float(scaling, "RescaleSlope", 1.0),
                intercept=_float(scaling, "RescaleIntercept", 0.0),
                data=data,
                frame=number,
            )
        )
    return slices


def _group(data: Any, own: Any, keyword: str) -> Any:
    """A functional group of one frame: its own, or the one all share; None where neither is."""
    shared = data.get("SharedFunctionalGroupsSequence")
    for holder in (own, shared[0] if shared else None):
        sequence = holder.get(keyword) if holder is not None else None
        if sequence:
            return sequence[0]
    return None


def _float(holder: Any, keyword: str, default: float) -> float:
    value = holder.get(keyword) if holder is not None else None
    number = default if value is None else float(value)
    if not np.isfinite(number):
        raise DicomError("damaged", f"its {keyword} is {number}")
    return number


def _single_step(item: _Slice) -> tuple[float, tuple[str, ...]]:
    """Thickness of a lone slice, from the tag that else plays no part."""
    measures = item.data
    if item.frame:
        measures = _group(
            item.data, item.data.PerFrameFunctionalGroupsSequence[0], "PixelMeasuresSequence"
        )
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step = abs(_float(measures, keyword, 0.0))
        if step > 0:
            return step, (f"one slice; its thickness is {keyword}",)
    return 1.0, ("one slice without a thickness: took 1 mm",)


def _doubts(slices: Sequence[_Slice]) -> tuple[str, ...]:
    """Where the header promises more than there is."""
    if slices[0].frame:
        return ()
    promised = max(
        (
            whole(item.data, keyword)
            for item in slices
            for keyword in ("ImagesInAcquisition", "NumberOfSlices")
        ),
        default=0,
    )
    if promised > len(slices):
        return (f"its header promises {promised} images and there are {len(slices)}",)
    return ()


def _frames(data: Any, digests: tuple[str, ...]) -> DicomImage:
    """B-scans of ophthalmic tomography, one by one as they are stored."""
    stored = stored_pixels(data)
    groups = data.get("PerFrameFunctionalGroupsSequence") or [None]
    measures = _group(data, groups[0], "PixelMeasuresSequence")
    size = measures.get("PixelSpacing") if measures is not None else data.get("PixelSpacing")
    if size is None or len(size) != 2:
        raise DicomError("spacing", "it does not say how large its pixels are")
    rows, columns = (float(value) for value in size)
    if not (0 < rows < 1e3 and 0 < columns < 1e3):
        raise DicomError("spacing", f"it says pixels of {rows} x {columns} mm")
    slope, intercept = _float(data, "RescaleSlope", 1.0), _float(data, "RescaleIntercept", 0.0)
    thickness = abs(_float(measures, "SliceThickness", 0.0)) or 1.0
    numbers = tuple(range(1, len(stored) + 1))
    stacked = _stack(list(stored))
    return DicomImage(
        values=stacked.astype(np.float32) * np.float32(slope) + np.float32(intercept),
        stored=stacked,
        affine=LPS_TO_RAS @ np.diag([columns, rows, thickness, 1.0]),
        kind="frames",
        spacing=(rows, columns),
        digests=digests,
        origin=_origin([data], numbers),
        notes=("B-scans, taken one by one as they are stored",),
    )
