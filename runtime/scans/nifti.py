"""NIfTI and MGH: slices with channels and volumes, read with nibabel.

How a file is understood, after trailing axes of length 1 beyond the third are dropped:

========================================  =====================================================
shape, model                              meaning
========================================  =====================================================
``(H, W)``, one channel                   one slice as stored, rows along axis 0
``(C, H, W)``, C > 1 channels             one slice as stored, rows along axis 1
``(H, W, C)``, C > 1 channels             one slice as stored, rows along axis 0
``(1, H, W)``, ``(H, W, 1)``, one channel a slice as stored where the file states no orientation
                                          (or only the identity), otherwise a volume
``(X, Y, Z)``, one channel                a volume: turned to the model's orientation by its
                                          affine and cut into slices along the last axis
``(X, Y, Z, C)``, C > 1 channels          a volume with channels, likewise
========================================  =====================================================
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..preprocessing import Preprocessing
from .geometry import FloatArray, Grid, Layout, cut_channels, voxel_sizes, voxel_volume
from .nifti_bytes import parse
from .scan import Scan, image_ids, little_endian
from .source import FileRef, ScanSource, combined_digest

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")

_MIN_VOLUME_WIDTH = 16  # below it, an axis is one of channels or of thick sagittal slices
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unit codes of NIfTI; 0 means unknown
_NO_AFFINE = "the file states no orientation (no sform, no qform): took x to left, y to front, z up"


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """One file, decoded.

    Attributes
    ----------
    stored : ndarray
        Voxels as stored, unscaled, in the file's own shape and order of axes.
    values : ndarray of float32
        The same, scaled as the header says.
    affine : ndarray of float64, shape (4, 4)
        To world mm, whatever the file's unit.
    oriented : bool
        Whether the file states an orientation.
    header : nibabel header or None
        For results; None where the file is no NIfTI.
    sha256 : str
        Digest of the file.
    """

    stored: NDArray[Any]
    values: FloatArray
    affine: NDArray[np.float64]
    oriented: bool
    header: Any
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the header has it."""
        return self.values.shape

    def identity(self) -> bytes:
        """Stored voxels, little-endian, in the file's own order: what images are known by."""
        return little_endian(self.stored).tobytes(order="F")


def load(file: FileRef) -> NiftiFile:
    """Read and decode one file.

    Raises
    ------
    InputError
        If it is damaged, promises more than it holds, or holds what is no scan.
    """
    content = file.read()
    try:
        image = parse(content)
        stored = np.asarray(image.dataobj.get_unscaled())
        values = _scaled(stored, float(image.dataobj.slope), float(image.dataobj.inter))
        return _decoded(image, stored, values, hashlib.sha256(content).hexdigest())
    except InputError:
        raise
    except MemoryError as error:
        raise InputError("the scan does not fit into memory") from error
    except Exception as error:  # damaged files fail in many ways inside the parsers
        raise InputError(f"cannot read it as NIfTI or MGH: {error}") from error


def _decoded(image: Any, stored: NDArray[Any], values: FloatArray, sha256: str) -> NiftiFile:
    affine = np.array(image.affine, dtype=np.float64)
    if "sform_code" not in image.header.keys():  # noqa: SIM118 (headers are no mappings); MGH: always mm, and oriented if it says so
        return NiftiFile(stored, values, affine, bool(image.header["goodRASFlag"]), None, sha256)
    affine[:3] *= _mm_per_unit(image.header)
    oriented = bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)
    return NiftiFile(stored, values, affine, oriented, image.header, sha256)


def _mm_per_unit(header: Any) -> float:
    unit = int(header["xyzt_units"]) % 8
    if unit not in _MM_PER_UNIT:
        raise InputError(
            f"its header says unit of length {unit}; expected 0, 1 (m), 2 (mm), 3 (um)"
        )
    return _MM_PER_UNIT[unit]


def _scaled(stored: NDArray[Any], slope: float, inter: float) -> FloatArray:
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
        if (slope, inter) == (1.0, 0.0):
            return stored.astype(np.float32)
        return (stored * np.float64(slope) + np.float64(inter)).astype(np.float32)


def read_nifti(source: ScanSource, preprocessing: Preprocessing) -> Scan:
    """Read a scan that is one file; see the table above.

    Raises
    ------
    InputError
        If the file is damaged, or its shape, type or affine is not one the model can take.
    """
    file = load(source.files[0])
    layout = _layout(file, preprocessing)
    if layout == "volume":
        channels = file.values.reshape(*file.shape[:3], -1)
        pieces = [channels[..., c] for c in range(channels.shape[3])]
        return volume_scan(source, preprocessing, file, pieces, [file])
    slices = _plane(file.values, layout)
    check_width(slices.shape[2:], layout, file.shape)
    return Scan(
        source=source,
        kind="slice",
        slices=slices,
        spacing=_plane_spacing(file, layout),
        image_ids=image_ids([file.identity()], 1),
        sha256=file.sha256,
        grid=Grid(layout, file.shape, file.affine, header=file.header),
    )


def volume_scan(
    source: ScanSource,
    preprocessing: Preprocessing,
    first: NiftiFile,
    channels: list[FloatArray],
    files: list[NiftiFile],
    notes: tuple[str, ...] = (),
) -> Scan:
    """Put a volume together.

    Parameters
    ----------
    source : ScanSource
        What it was read from.
    preprocessing : Preprocessing
        Says the orientation.
    first : NiftiFile
        The file whose grid the scan has.
    channels : list of ndarray, shape (I, J, K)
        In the model's order, on that grid.
    files : list of NiftiFile
        All files, for the digest and the identity of the slices.
    notes : tuple of str
        What was assumed already.

    Raises
    ------
    InputError
        If the affine is singular or sheared, or a slice would be too narrow to be one.
    """
    slices, spacing, to_file = cut_channels(channels, first.affine, preprocessing.orientation)
    shape = first.shape if len(channels) == 1 else first.shape[:3]
    check_width(slices.shape[2:], "volume", first.shape)
    return Scan(
        source=source,
        kind="volume",
        slices=slices,
        spacing=spacing,
        voxel_mm3=voxel_volume(first.affine),
        image_ids=image_ids((file.identity() for file in files), len(slices)),
        sha256=combined_digest([file.sha256 for file in files]),
        grid=Grid("volume", shape, first.affine, to_file, first.header),
        notes=notes if first.oriented else (*notes, _NO_AFFINE),
    )


def _layout(file: NiftiFile, preprocessing: Preprocessing) -> Layout:
    shape, channels = file.shape, preprocessing.channels
    axes = shape[:3]
    if channels > 1:
        return _layout_of_channels(shape, preprocessing)
    if len(shape) < 2 or math.prod(shape[3:]) != 1:
        raise InputError(f"got {len(shape)}-D data of shape {shape}; expected one image or volume")
    if len(axes) == 2:
        return "plane"
    oriented = file.oriented and not np.array_equal(file.affine, np.eye(4))
    return "volume" if oriented or 1 not in (axes[0], axes[2]) else "plane"


def _layout_of_channels(shape: tuple[int, ...], preprocessing: Preprocessing) -> Layout:
    axes, channels = shape[:3], preprocessing.channels
    if len(shape) > 3 and shape[3] == channels and math.prod(shape[4:]) == 1:
        return "volume"
    if len(axes) == 3 and math.prod(shape[3:]) == 1:
        if axes[0] == channels:
            return "channels-first"
        if axes[2] == channels:
            return "channels-last"
    raise InputError(
        f"got shape {shape}; the model takes {channels} channels "
        f"({', '.join(preprocessing.modalities)}): as [channel, row, column], as [x, y, z, "
        "channel], or as one file per channel in a BraTS, nnU-Net or BIDS folder"
    )


def check_width(size: tuple[int, ...], layout: Layout, shape: tuple[int, ...]) -> None:
    """Refuse what is no image: a line of pixels, or an axis of channels taken for one of space.

    Raises
    ------
    InputError
        Naming the shape.
    """
    if layout == "volume" and min(size) < _MIN_VOLUME_WIDTH:
        raise InputError(
            f"got shape {shape}, whose slices would measure {size[0]} x {size[1]} pixels; "
            f"expected {_MIN_VOLUME_WIDTH} at least. If one axis holds channels: the model takes 1"
        )
    if min(size) < 2:
        raise InputError(f"got shape {shape}; expected an image, not a line of pixels")


def _plane(values: FloatArray, layout: Layout) -> FloatArray:
    """Arrange one slice as ``[1, C, H, W]``."""
    axes = values.reshape(values.shape[:3])
    if layout == "channels-last":
        axes = np.moveaxis(axes, -1, 0)
    elif layout == "plane":
        axes = axes.reshape(_plane_shape(axes.shape))
    return np.ascontiguousarray(axes)[None]


def _plane_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """``(H, W)``, ``(H, W, 1)`` or ``(1, H, W)`` as ``(1, H, W)``."""
    rows, columns = shape[:2] if len(shape) == 2 or shape[2] == 1 else shape[1:]
    return 1, rows, columns


def _plane_spacing(file: NiftiFile, layout: Layout) -> tuple[float, float] | None:
    """Pixel size in mm of a slice as stored; None where the header leaves it at its default."""
    one_first = layout == "plane" and len(file.shape) > 2 and file.shape[2] != 1
    start = 1 if layout == "channels-first" or one_first else 0
    rows, columns = (float(size) for size in voxel_sizes(file.affine)[start:][:2])
    if not file.oriented and (rows, columns) == (1.0, 1.0):
        return None
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise InputError(f"its header says pixels of {rows} x {columns} mm; correct the header")
    return rows, columns
