"""A scan in memory: its slices as the model reads them, and the grid its results go back to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .geometry import FloatArray, Grid
from .source import ScanSource

# A header can promise any size: what is larger is refused before anything is allocated.
MAX_VOXELS = 2**29


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, read.

    Attributes
    ----------
    source : ScanSource
        What it was read from.
    kind : {"picture", "slice", "volume", "frames"}
        A picture; one (possibly multi-channel) slice in a NIfTI file; a volume; images of one
        DICOM series that are taken one by one as they are stored.
    slices : ndarray of float32, shape (S, C, H0, W0)
        Stored intensities (scaled as the file says), oriented as the model expects.
    spacing : tuple of float or None
        Row and column pixel size in mm; None where the file carries none.
    image_ids : ndarray of uint64, shape (S,)
        First 8 bytes of the SHA-256 of the stored voxels (little-endian), plus the slice index,
        modulo 2**64: which noise each slice draws. File names play no part.
    sha256 : str
        Digest of its files; see `combined_digest`.
    grid : Grid
        Its own grid.
    voxel_mm3 : float or None
        Volume of a voxel in cubic mm; None where the file does not say.
    notes : tuple of str
        What was assumed and a reader of the results should know.
    doubts : tuple of str
        What makes the results suspect.
    origin : object
        Of a DICOM series: the headers its results take their identity from.
    """

    source: ScanSource
    kind: Literal["picture", "slice", "volume", "frames"]
    slices: FloatArray
    spacing: tuple[float, float] | None
    image_ids: NDArray[np.uint64]
    sha256: str
    grid: Grid
    voxel_mm3: float | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    origin: Any = None


def image_ids(stored: Iterable[bytes | memoryview], count: int) -> NDArray[np.uint64]:
    """Identities of the slices of a scan.

    Parameters
    ----------
    stored : iterable of bytes
        The stored voxels, unscaled, little-endian, in the file's own order; one piece for each
        file.
    count : int
        Number of slices S.

    Returns
    -------
    ndarray of uint64, shape (S,)
        SHA-256's first 8 bytes as a little-endian number, plus 0..S-1, modulo 2**64.
    """
    digest = hashlib.sha256()
    for piece in stored:
        digest.update(piece)
    first = int.from_bytes(digest.digest()[:8], "little")
    return np.array([(first + index) % 2**64 for index in range(count)], dtype=np.uint64)


def little_endian(stored: NDArray[Any]) -> NDArray[Any]:
    """Return the array with little-endian elements, whatever the file and this machine use."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False)


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
