"""A scan in memory: its slices as the model reads them, and the grid its results go back to."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

FloatArray = NDArray[np.float32]

# A header can promise any size: what is larger is refused before anything is allocated.
MAX_VOXELS = 2**29
MAX_FILE_BYTES = 2**32


class Grid(Protocol):
    """A scan's own pixels, geometry and file format; writes results that match the input.

    Every method takes slices in the order and orientation of `Scan.slices` and undoes both.
    """

    @property
    def suffix(self) -> str:
        """Suffix of the files it writes: ".nii.gz" or ".png"."""
        ...

    @property
    def slice_axis(self) -> int | None:
        """Array axis of the file along which the slices were taken; None where it is one image."""
        ...

    def file_index(self, index: int) -> int:
        """Position in the file, along `slice_axis`, of slice `index`."""
        ...

    def write_map(self, path: Path, values: FloatArray) -> float:
        """Write values ``[S, H0, W0]``, at least 0; return the value full scale stands for."""
        ...

    def write_mask(self, path: Path, mask: NDArray[np.bool_]) -> None:
        """Write a mask ``[S, H0, W0]``."""
        ...

    def write_images(self, path: Path, images: FloatArray) -> None:
        """Write images ``[S, C, H0, W0]`` in [0, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class Scan:
    """One file, read.

    Attributes
    ----------
    path : Path
        The file.
    kind : {"picture", "slice", "volume"}
        A picture; one (possibly multi-channel) slice in a NIfTI file; a volume.
    slices : ndarray of float32, shape (S, C, H0, W0)
        Stored intensities (scaled as the file says), oriented as the model expects.
    spacing : tuple of float or None
        Row and column pixel size in mm; None where the file carries none.
    voxel_mm3 : float or None
        Volume of a voxel in cubic mm; None where the file does not say.
    image_ids : ndarray of uint64, shape (S,)
        First 8 bytes of the SHA-256 of the stored voxels (little-endian), plus the slice index,
        modulo 2**64: which noise each slice draws. File names play no part.
    sha256 : str
        SHA-256 of the file.
    grid : Grid
        Writes results on the scan's own grid.
    notes : tuple of str
        What was assumed and a reader of the results should know.
    """

    path: Path
    kind: Literal["picture", "slice", "volume"]
    slices: FloatArray
    spacing: tuple[float, float] | None
    voxel_mm3: float | None
    image_ids: NDArray[np.uint64]
    sha256: str
    grid: Grid
    notes: tuple[str, ...] = ()


def image_ids(stored: bytes | memoryview, count: int) -> NDArray[np.uint64]:
    """Identities of the slices of a scan.

    Parameters
    ----------
    stored : bytes
        The stored voxels, unscaled, little-endian, in the file's own order.
    count : int
        Number of slices S.

    Returns
    -------
    ndarray of uint64, shape (S,)
        SHA-256's first 8 bytes as a little-endian number, plus 0..S-1, modulo 2**64.
    """
    first = int.from_bytes(hashlib.sha256(stored).digest()[:8], "little")
    return np.array([(first + index) % 2**64 for index in range(count)], dtype=np.uint64)


def little_endian(stored: NDArray[Any]) -> NDArray[Any]:
    """Return the array with little-endian elements, whatever the file and this machine use."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False)


def read_content(path: Path) -> bytes:
    """Read a whole file, or say why it cannot be.

    Raises
    ------
    InputError
        If it is no regular file, empty, too large or not readable.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError("this is not a regular file")
        if status.st_size == 0:
            raise InputError("the file is empty (0 bytes)")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"the file has {status.st_size} bytes; the limit is {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror or error}") from error


def check_content(slices: FloatArray, allow_constant: bool = False) -> None:
    """Refuse a scan that holds NaN or infinity, or (unless allowed) shows nothing.

    Raises
    ------
    InputError
        Naming what was found.
    """
    finite = np.isfinite(slices)
    if not finite.all():
        bad = int(finite.size - np.count_nonzero(finite))
        raise InputError(f"{bad} of {slices.size} values are NaN or infinite; repair the file")
    if allow_constant:
        return
    low, high = float(slices.min()), float(slices.max())
    if low == high:
        raise InputError(f"the image is constant (every value is {low:g})")
    if all(is_constant(image) for image in slices):
        raise InputError("every slice is constant; are the axes of the file what it says?")


def is_constant(image: NDArray[Any]) -> bool:
    """Whether an image shows nothing: every value is the same."""
    return bool(image.min() == image.max())
