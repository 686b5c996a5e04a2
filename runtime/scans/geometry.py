"""From a volume's own array axes to slices as the model wants them, and back.

Arrays of volumes are ``[I, J, K]`` on the file's own axes; an affine (4, 4) takes ``(i, j, k, 1)``
to world coordinates in mm, x to the patient's right, y to the front, z up (RAS+).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

FloatArray = NDArray[np.float32]
Layout = Literal["picture", "plane", "channels-first", "channels-last", "volume"]

# Cosine of the angle between two axes above which they count as sheared. Rounding in headers stays
# far below; half a degree moves nothing by a voxel within a slice.
MAX_SHEAR = 0.01


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's own grid, and the way of its slices back onto it.

    Attributes
    ----------
    layout : str
        How the array axes of the file are understood.
    shape : tuple of int
        Shape of the file's array; of a volume (I, J, K) without an axis of channels, but with
        the trailing axes of length 1 that the file may have.
    affine : ndarray of float64, shape (4, 4), or None
        Voxel indices to world mm (RAS+); None where the file says nothing of the kind.
    to_file : ndarray, shape (3, 2), or None
        nibabel's orientation transform from (row, column, slice) to the file's axes; None where
        the file holds one image as stored.
    header : nibabel header or None
        Of a NIfTI file, as read.
    """

    layout: Layout
    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None
    to_file: NDArray[np.float64] | None = None
    header: Any = None

    @property
    def slice_axis(self) -> int | None:
        """Array axis of the file along which the slices lie; None where it is one image."""
        return None if self.to_file is None else int(self.to_file[2, 0])

    def file_index(self, index: int) -> int:
        """Position of slice `index` in the file, along `slice_axis`."""
        if self.to_file is None or self.to_file[2, 1] > 0:
            return index
        return self.shape[int(self.to_file[2, 0])] - 1 - index

    def volume(self, values: NDArray[Any]) -> NDArray[Any]:
        """Slices ``[S, H0, W0]`` as ``[I, J, K]``; one image as stored as ``[H0, W0, 1]``."""
        planes = np.moveaxis(values, 0, -1)
        return planes if self.to_file is None else _turn(planes, self.to_file)

    def arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        """Images ``[S, C, H0, W0]`` in the file's own layout, channels last in a volume.

        A volume of one channel is ``[I, J, K]``; one slice with channels keeps its channel axis.
        """
        if self.to_file is not None:
            channels = [self.volume(values[:, c]) for c in range(values.shape[1])]
            if len(channels) == 1:
                return channels[0].reshape(channels[0].shape + self.shape[3:])
            return np.stack(channels, axis=-1)
        if self.layout == "picture":
            return values[0, 0] if values.shape[1] == 1 else np.moveaxis(values[0], 0, -1)
        if self.layout == "plane":
            stored = values[0, 0].reshape(self.shape[:3])
        elif self.layout == "channels-first":
            stored = values[0]
        else:
            stored = np.moveaxis(values[0], 0, -1)
        return stored.reshape(stored.shape + self.shape[3:])


def cut(
    values: FloatArray, affine: NDArray[np.float64], orientation: str
) -> tuple[FloatArray, tuple[float, float], NDArray[np.float64]]:
    """Turn a volume to the model's orientation and cut it into slices.

    The axes are swapped and flipped to the orientation they are nearest to; nothing is
    interpolated.

    Parameters
    ----------
    values : ndarray of float32, shape (I, J, K)
        The volume on its own axes.
    affine : ndarray, shape (4, 4)
        To world mm.
    orientation : str
        Axis codes towards which rows, columns and slices grow.

    Returns
    -------
    slices : ndarray of float32, shape (S, H0, W0)
        A view of `values`.
    spacing : tuple of float
        Row and column pixel size in mm.
    to_file : ndarray, shape (3, 2)
        For `Grid`.

    Raises
    ------
    InputError
        If the affine is singular, not finite or sheared.
    """
    import nibabel.orientations as orientations

    check_affine(affine)
    own = orientations.io_orientation(affine)
    model = orientations.axcodes2ornt(tuple(orientation))
    turned = _turn(values, orientations.ornt_transform(own, model))
    to_file = orientations.ornt_transform(model, own)
    sizes = voxel_sizes(affine)
    rows, columns = (float(sizes[int(axis)]) for axis in to_file[:2, 0])
    return np.moveaxis(turned, -1, 0), (rows, columns), to_file


def cut_channels(
    channels: Sequence[FloatArray], affine: NDArray[np.float64], orientation: str
) -> tuple[FloatArray, tuple[float, float], NDArray[np.float64]]:
    """Cut the channels of a volume, which lie on one grid, into slices ``[S, C, H0, W0]``.

    The rest is as `cut` has it.
    """
    first, spacing, to_file = cut(channels[0], affine, orientation)
    slices = np.empty((len(first), len(channels), *first.shape[1:]), np.float32)
    slices[:, 0] = first
    for number, values in enumerate(channels[1:], start=1):
        slices[:, number] = cut(values, affine, orientation)[0]
    return slices, spacing, to_file


def _turn(values: NDArray[Any], transform: NDArray[np.float64]) -> NDArray[Any]:
    import nibabel.orientations as orientations

    turned: NDArray[Any] = orientations.apply_orientation(values, transform)
    return turned


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine whose axes have no direction, or are not at right angles.

    Raises
    ------
    InputError
        Naming the affine.
    """
    axes = affine[:3, :3]
    sizes = voxel_sizes(affine)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(axes)) > 1e-6 * np.prod(sizes) > 0):
        raise InputError(
            f"its affine is singular or not finite, so its axes have no direction: "
            f"{axes.tolist()}; correct the header"
        )
    cosines = np.abs(np.triu((axes / sizes).T @ (axes / sizes), 1))
    if cosines.max() > MAX_SHEAR:
        angle = float(np.degrees(np.arccos(min(1.0, cosines.max()))))
        raise InputError(
            f"its affine is sheared: two axes meet at {angle:.1f} degrees, expected 90; resample "
            "the scan to a grid with right angles"
        )


def voxel_sizes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel size along each array axis in mm, ``[3]``."""
    sizes: NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return sizes


def voxel_volume(affine: NDArray[np.float64]) -> float:
    """Volume of a voxel in cubic mm."""
    return abs(float(np.linalg.det(affine[:3, :3])))
