"""A scan whose channels lie in files of their own: BraTS, nnU-Net, BIDS.

The first file's grid is the scan's. A channel on another grid is resampled to it by its affine
(SimpleITK, linear), since it shows the same head at other places of its array.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, optional
from ..preprocessing import Preprocessing
from .geometry import FloatArray, check_affine, voxel_sizes
from .nifti import NiftiFile, load, volume_scan
from .scan import Scan
from .source import ScanSource

# Grids are the same where corresponding voxels lie no farther apart than this part of a voxel.
_SAME_GRID = 0.01
# Part of the scan's field of view that a channel has to show.
_MIN_COVERED = 0.5


def read_channels(source: ScanSource, preprocessing: Preprocessing) -> Scan:
    """Read one file per channel, in the model's order.

    Raises
    ------
    InputError
        If a file cannot be used, is no volume, or shows another place than the first.
    """
    files: list[NiftiFile] = []
    channels: list[FloatArray] = []
    notes: list[str] = []
    with ThreadPoolExecutor(len(source.files)) as pool:
        loading = [pool.submit(load, file) for file in source.files]
        for modality, ref, loaded in zip(source.modalities, source.files, loading, strict=True):
            try:
                file = loaded.result()
                files.append(file)
                check_affine(files[0].affine)
                grid = files[0].affine, files[0].shape[:3]
                values, moved = on_grid(_volume(file), file.affine, *grid)
            except InputError as error:
                raise InputError(f"{modality} ({ref.label}): {error}") from error
            channels.append(values)
            if moved:
                notes.append(resampled_note(modality, source.modalities[0]))
    return volume_scan(source, preprocessing, files[0], channels, files, tuple(notes))


def on_grid(
    values: FloatArray,
    affine: NDArray[np.float64],
    onto: NDArray[np.float64],
    shape: tuple[int, ...],
) -> tuple[FloatArray, bool]:
    """Bring a volume to a grid; return it, and whether it had to be resampled for that.

    Parameters and errors are those of `resample`.
    """
    if _same_grid(shape, onto, values.shape, affine):
        return values, False
    return resample(values, affine, onto, shape), True


def resampled_note(name: str, first: str) -> str:
    """What a reader of the results should know of a channel that was resampled."""
    return f"{name} was resampled to the grid of {first}"


def _volume(file: NiftiFile) -> FloatArray:
    shape = file.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise InputError(f"got an array of shape {shape}; expected one volume [x, y, z]")
    return file.values.reshape(shape[:3])


def _same_grid(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    other_shape: tuple[int, ...],
    other_affine: NDArray[np.float64],
) -> bool:
    """Whether voxels of one index lie at one place, corner for corner."""
    if other_shape != shape:
        return False
    ends = [(0, length - 1) for length in shape]
    corners = np.array(np.meshgrid(*ends, [1], indexing="ij")).reshape(4, -1)
    gap = np.linalg.norm(((affine - other_affine) @ corners)[:3], axis=0).max()
    return bool(gap <= _SAME_GRID * voxel_sizes(affine).min())


def resample(
    values: FloatArray,
    affine: NDArray[np.float64],
    onto: NDArray[np.float64],
    shape: tuple[int, ...],
) -> FloatArray:
    """Resample a volume to another grid, linear; 0 outside of it.

    Parameters
    ----------
    values : ndarray of float32, shape (I, J, K)
        The volume.
    affine, onto : ndarray, shape (4, 4)
        Its own affine and the one wanted.
    shape : tuple of int
        Shape wanted.

    Raises
    ------
    InputError
        If an affine has no inverse or is sheared, or most of the new grid lies outside.
    """
    itk = optional("SimpleITK", "volumes")
    check_affine(affine)
    frame = itk.Image([int(length) for length in shape], itk.sitkFloat32)
    _place(frame, onto)
    image = itk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    _place(image, affine)
    identity = itk.Transform(3, itk.sitkIdentity)
    moved = itk.Resample(image, frame, identity, itk.sitkLinear, 0.0)
    ones = itk.Image(image.GetSize(), itk.sitkUInt8) + 1
    ones.CopyInformation(image)
    inside = itk.Resample(ones, frame, identity, itk.sitkNearestNeighbor, 0.0)
    covered = float(itk.GetArrayViewFromImage(inside).mean())
    if covered < _MIN_COVERED:
        raise InputError(
            f"it shows {covered:.0%} of the first channel's field of view; are both of one head, "
            "in one frame of reference?"
        )
    result: FloatArray = itk.GetArrayFromImage(moved).transpose(2, 1, 0)
    return result


def _place(image: Any, affine: NDArray[np.float64]) -> None:
    """Give a SimpleITK image a place in the world, which is LPS there."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    sizes = voxel_sizes(affine)
    image.SetOrigin(lps[:, 3].tolist())
    image.SetSpacing(sizes.tolist())
    # SimpleITK wants a direction that is orthogonal to rounding: the nearest one.
    left, _, right = np.linalg.svd(lps[:, :3] / sizes)
    image.SetDirection((left @ right).ravel().tolist())
