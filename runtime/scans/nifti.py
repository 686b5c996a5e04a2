"""NIfTI: slices with channels and volumes, read and written on the file's own grid (nibabel).

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
========================================  =====================================================
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomic
from ..preprocessing import Preprocessing
from .scan import MAX_VOXELS, FloatArray, Scan, image_ids, little_endian, read_content

SUFFIXES = (".nii", ".nii.gz")

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1032  # what deflate can reach at best
_MAX_BYTES_BESIDE_VOXELS = 2**26
_MIN_VOLUME_WIDTH = 16  # below it, an axis is one of channels or of thick sagittal slices
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unit codes of NIfTI; 0 means unknown

Layout = Literal["plane", "channels-first", "channels-last", "volume"]


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """Writes results on the grid of a NIfTI file: its shape, affine and header.

    Maps are float32, masks uint8, both ``.nii.gz``. A map of a slice with channels keeps the
    channel axis, with length 1, so that the affine still fits.

    Attributes
    ----------
    header : nibabel header
        As read; extensions, intensity window and free text are not passed on.
    shape : tuple of int
        Array shape of the file.
    layout : str
        How its axes are understood.
    to_file : ndarray, shape (3, 2), or None
        nibabel's orientation transform from (row, column, slice) to the file's axes; None where
        the file holds one slice as stored.
    """

    header: Any
    shape: tuple[int, ...]
    layout: Layout
    to_file: NDArray[np.float64] | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the files it writes."""
        return ".nii.gz"

    @property
    def slice_axis(self) -> int | None:
        """Array axis of the file along which the slices lie; None where it is one slice."""
        return None if self.to_file is None else int(self.to_file[2, 0])

    def file_index(self, index: int) -> int:
        """Position of slice `index` in the file, along `slice_axis`."""
        if self.to_file is None or self.to_file[2, 1] > 0:
            return index
        return self.shape[int(self.to_file[2, 0])] - 1 - index

    def write_map(self, path: Path, values: FloatArray) -> float:
        """Write a map ``[S, H0, W0]`` as float32; a stored 1 always stands for 1."""
        self._write(path, self._arrange(values[:, None].astype(np.float32)), "berdiff map")
        return 1.0

    def write_mask(self, path: Path, mask: NDArray[np.bool_]) -> None:
        """Write a mask ``[S, H0, W0]`` as uint8, 0 or 1."""
        self._write(path, self._arrange(mask[:, None].astype(np.uint8)), "berdiff mask")

    def write_images(self, path: Path, images: FloatArray) -> None:
        """Write images ``[S, C, H0, W0]`` as float32 in the input's own layout."""
        self._write(path, self._arrange(images.astype(np.float32)), "berdiff reconstruction")

    def _arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        """``[S, C, H0, W0]`` to the array axes of the file."""
        if self.to_file is not None:
            volume = np.moveaxis(values[:, 0], 0, -1)
            stored = _nibabel().orientations.apply_orientation(volume, self.to_file)
        elif self.layout == "plane":
            stored = values[0, 0].reshape(self.shape[:3])
        elif self.layout == "channels-first":
            stored = values[0]
        else:
            stored = np.moveaxis(values[0], 0, -1)
        return stored.reshape(stored.shape + self.shape[3:])

    def _write(self, path: Path, stored: NDArray[Any], description: str) -> None:
        nibabel = _nibabel()
        header = self.header.copy()
        header.extensions.clear()  # they describe the input, and may name the patient
        for name in ("db_name", "aux_file", "intent_name"):
            if name in header.keys():  # noqa: SIM118 (headers are no mappings)
                header[name] = b""
        header["descrip"] = description.encode()
        header["cal_min"] = header["cal_max"] = 0  # the input's window would hide a map
        header["intent_code"] = 0
        header["vox_offset"] = 0
        header.set_data_dtype(stored.dtype)
        header.set_slope_inter(1, 0)
        if int(header["xyzt_units"]) % 8 == 0:
            header["xyzt_units"] = int(header["xyzt_units"]) + 2  # mm
        wide = isinstance(header, nibabel.Nifti2Header)
        image = (nibabel.Nifti2Image if wide else nibabel.Nifti1Image)(stored, None, header)
        buffer = io.BytesIO()
        # No time and no name inside: equal results are equal files.
        with gzip.GzipFile("", "wb", compresslevel=3, fileobj=buffer, mtime=0) as stream:
            stream.write(image.to_bytes())
        write_atomic(path, buffer.getvalue())


def read_nifti(path: Path, preprocessing: Preprocessing) -> Scan:
    """Read a NIfTI-1 or NIfTI-2 file, compressed or not; see the table above.

    Raises
    ------
    InputError
        If the file is damaged, or its shape, type or affine is not one the model can take.
    """
    content = read_content(path)
    try:
        image = _parse(content)
        stored = np.asarray(image.dataobj.get_unscaled())
        values = _scaled(stored, float(image.dataobj.slope), float(image.dataobj.inter))
    except InputError:
        raise
    except MemoryError as error:
        raise InputError("the scan does not fit into memory") from error
    except Exception as error:  # damaged files fail in many ways inside the parsers
        raise InputError(f"cannot read it as NIfTI: {error}") from error
    layout = _layout(image, preprocessing)
    spacing: tuple[float, float] | None
    if layout == "volume":
        slices, spacing, to_file = _cut(image, values, preprocessing.orientation)
    else:
        slices, spacing, to_file = _plane(values, layout), _plane_spacing(image, layout), None
    _check_width(slices.shape[2:], layout, image.shape)
    volume = to_file is not None
    return Scan(
        path=path,
        kind="volume" if volume else "slice",
        slices=slices,
        spacing=spacing,
        voxel_mm3=abs(float(np.linalg.det(_affine_mm(image)))) if volume else None,
        # The file's own order is Fortran order of the array.
        image_ids=image_ids(little_endian(stored).tobytes(order="F"), len(slices)),
        sha256=hashlib.sha256(content).hexdigest(),
        grid=NiftiGrid(image.header, image.shape, layout, to_file),
        notes=() if _states_affine(image) or not volume else (_NO_AFFINE,),
    )


_NO_AFFINE = "the file states no orientation (no sform, no qform): took x to left, y to front, z up"


def _nibabel() -> Any:
    import nibabel

    return nibabel


def _parse(content: bytes) -> Any:
    """Check what the header promises against what is there, then hand it to nibabel."""
    packed = content.startswith(_GZIP_MAGIC)
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(content)) if packed else io.BytesIO(content)
    head = stream.read(540)
    image_class, header_class, size = _version(head)
    header = header_class(head[:size], check=False)  # nibabel checks it below, and says so once
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if not shape or min(shape) < 1:
        raise InputError(f"the scan is empty: its header says shape {shape}")
    if dtype.kind not in "iuf":
        raise InputError(f"got voxels of type {dtype}; expected integer or floating-point numbers")
    voxels = math.prod(shape)
    offset = int(header.get_data_offset()) or size + 4  # 0 means: right after the header
    if voxels > MAX_VOXELS:
        raise InputError(f"its header says shape {shape}; the limit is {MAX_VOXELS} voxels")
    if not size + 4 <= offset <= _MAX_BYTES_BESIDE_VOXELS:
        raise InputError(f"its header says that voxels start at byte {offset}")
    expected = offset + voxels * dtype.itemsize
    if expected > len(content) * (_GZIP_MAX_RATIO if packed else 1):
        raise InputError(_truncated(expected, len(content)))
    data = head + stream.read(expected - len(head))
    if len(data) < expected:
        raise InputError(_truncated(expected, len(data)))
    beyond = 0
    while block := stream.read(2**20):  # to the end, so that gzip checks its sum
        beyond += len(block)
        if beyond > _MAX_BYTES_BESIDE_VOXELS:
            raise InputError("the file goes on long after its voxels; its header is damaged")
    return image_class.from_bytes(data)


def _version(head: bytes) -> tuple[Any, Any, int]:
    nibabel = _nibabel()
    for size, image, header in (
        (348, nibabel.Nifti1Image, nibabel.Nifti1Header),
        (540, nibabel.Nifti2Image, nibabel.Nifti2Header),
    ):
        if head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            if len(head) < size:
                raise InputError(_truncated(size, len(head)))
            return image, header, size
    raise InputError("this is not a NIfTI file: it does not start with a NIfTI header")


def _truncated(expected: int, got: int) -> str:
    return f"its header promises {expected} bytes and the file holds {got}: truncated or damaged"


def _scaled(stored: NDArray[Any], slope: float, inter: float) -> FloatArray:
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
        if (slope, inter) == (1.0, 0.0):
            return stored.astype(np.float32)
        return (stored * np.float64(slope) + np.float64(inter)).astype(np.float32)


def _layout(image: Any, preprocessing: Preprocessing) -> Layout:
    shape, channels = image.shape, preprocessing.channels
    axes = shape[:3]
    if len(shape) < 2 or math.prod(shape[3:]) != 1:
        raise InputError(f"got {len(shape)}-D data of shape {shape}; expected one image or volume")
    if channels > 1:
        if len(axes) == 3 and axes[0] == channels:
            return "channels-first"
        if len(axes) == 3 and axes[2] == channels:
            return "channels-last"
        raise InputError(
            f"got shape {shape}; the model takes {channels} channels "
            f"({', '.join(preprocessing.modalities)}) as [channel, row, column]"
        )
    if len(axes) == 2:
        return "plane"
    oriented = _states_affine(image) and not np.array_equal(image.affine, np.eye(4))
    return "volume" if oriented or 1 not in (axes[0], axes[2]) else "plane"


def _check_width(size: tuple[int, ...], layout: Layout, shape: tuple[int, ...]) -> None:
    if layout == "volume" and min(size) < _MIN_VOLUME_WIDTH:
        raise InputError(
            f"got shape {shape}, whose axial slices would measure {size[0]} x {size[1]} pixels; "
            f"expected {_MIN_VOLUME_WIDTH} at least. If one axis holds channels: the model takes 1"
        )
    if min(size) < 2:
        raise InputError(f"got shape {shape}; expected an image, not a line of pixels")


def _states_affine(image: Any) -> bool:
    return bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)


def _affine_mm(image: Any) -> NDArray[np.float64]:
    unit = int(image.header["xyzt_units"]) % 8
    if unit not in _MM_PER_UNIT:
        raise InputError(
            f"its header says unit of length {unit}; expected 0, 1 (m), 2 (mm), 3 (um)"
        )
    return np.asarray(image.affine[:3, :3], dtype=np.float64) * _MM_PER_UNIT[unit]


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


def _plane_spacing(image: Any, layout: Layout) -> tuple[float, float] | None:
    """Pixel size in mm of a slice as stored; None where the header leaves it at its default."""
    one_first = layout == "plane" and len(image.shape) > 2 and image.shape[2] != 1
    start = 1 if layout == "channels-first" or one_first else 0
    rows, columns = (float(size) for size in np.linalg.norm(_affine_mm(image), axis=0)[start:][:2])
    if not _states_affine(image) and (rows, columns) == (1.0, 1.0):
        return None
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise InputError(f"its header says pixels of {rows} x {columns} mm; correct the header")
    return rows, columns


def _cut(
    image: Any, values: FloatArray, orientation: str
) -> tuple[FloatArray, tuple[float, float], NDArray[np.float64]]:
    """Turn a volume to the model's orientation: slices ``[S, 1, H, W]``, spacing, way back."""
    affine = _affine_mm(image)
    sizes = np.linalg.norm(affine, axis=0)
    orientations = _nibabel().orientations
    regular = np.isfinite(sizes).all() and abs(np.linalg.det(affine)) > 1e-6 * np.prod(sizes)
    own = orientations.io_orientation(image.affine) if regular else np.full((3, 2), np.nan)
    if np.isnan(own).any():
        raise InputError(
            f"its affine is singular or not finite, so its axes have no direction: "
            f"{image.affine[:3, :3].tolist()}; correct the header"
        )
    model = orientations.axcodes2ornt(tuple(orientation))
    turned = orientations.apply_orientation(
        values.reshape(values.shape[:3]), orientations.ornt_transform(own, model)
    )
    to_file = orientations.ornt_transform(model, own)
    rows, columns = (float(sizes[int(axis)]) for axis in to_file[:2, 0])
    return np.ascontiguousarray(np.moveaxis(turned, -1, 0))[:, None], (rows, columns), to_file
