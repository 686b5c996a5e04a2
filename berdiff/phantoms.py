"""Phantoms: synthetic axial brain slices and volumes with exact lesion masks, from a seed.

They exist so that the demo and the tests have something to run on that anybody may have. They
are not measured from patients and say nothing about quality on real images.

The same seed gives the same head with and without lesions, and in every contrast.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.errors import InputError, optional
from berdiff.runtime.files import atomic_folder

from .phantom_anatomy import HIGHEST_MM, LOWEST_MM, Anatomy
from .phantom_appearance import CONTRASTS, draw_lesion, render
from .phantom_curves import Array, Grid

Seed = int | np.random.SeedSequence

_SMALLEST = 24  # pixels; below this no fold is left
_LONG_MM, _WIDE_MM = 192.0, 160.0  # a frame this large holds every head
_SLICE_HEIGHTS_MM = (-4.0, 26.0)  # where the ventricles are

_README = """\
Synthetic brain images ("phantoms") written by `berdiff phantoms`.

They are drawn by a program from a random seed, not measured from anybody. They show what the
software does; they say nothing about how well it works on real images, and have no clinical
meaning.

images/       the images: values from 0 to 1 (PNG: 16 bits, 0 to 65535), exactly 0 outside the brain
masks/        the lesions, under the same names (only if lesions were asked for): 0 elsewhere
manifest.csv  one line per image; seed and index are all that is needed to draw it again

PNG pictures, and NIfTI files that hold one slice in several contrasts ([contrast, row, column],
their masks [1, row, column]), have rows that grow towards posterior and columns that grow towards
the right of the head. The other NIfTI files carry their orientation and spacing in the header;
several contrasts of a volume lie along the 4th axis.
"""


@dataclass(frozen=True)
class Phantom:
    """A synthetic image and its lesions.

    Rows grow towards posterior, columns to the right of the head, slices towards superior.

    Parameters
    ----------
    image : float32 [C, H, W] or [C, D, H, W]
        Above 0 and below 1 in the brain, with a median near 0.35; exactly 0 outside.
    mask : bool [H, W] or [D, H, W]
        The lesions exactly; all False in a healthy phantom.
    contrasts : tuple of str
        Names of the C channels.
    spacing : tuple of float
        Distance in mm between slices, rows and columns.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    contrasts: tuple[str, ...]
    spacing: tuple[float, float, float]


def phantom_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Seed of one member of a set; depends on nothing but the two numbers."""
    return np.random.SeedSequence(seed, spawn_key=(index,))


def phantom_slice(
    seed: Seed,
    *,
    size: tuple[int, int] = (96, 96),
    contrasts: Sequence[str] = ("flair",),
    lesion: bool = False,
) -> Phantom:
    """Draw one axial slice at the height of the lateral ventricles.

    Parameters
    ----------
    seed : int or SeedSequence
    size : (H, W)
        Pixels; the spacing follows from it (2 mm for 96 x 96), so the head fills the frame.
    contrasts : sequence of str
        Any of "flair", "t1", "t2", "t1ce", one channel each.
    lesion : bool
        Put in one to three lesions. The head stays the same.

    Returns
    -------
    Phantom
        With image [C, H, W] and mask [H, W].

    Raises
    ------
    InputError
        If a contrast is unknown or the size too small.
    """
    height = _stream(seed, 0).uniform(*_SLICE_HEIGHTS_MM)
    phantom = _draw(seed, np.array([height]), size, contrasts, lesion, slice_mm=2.0)
    return Phantom(phantom.image[:, 0], phantom.mask[0], phantom.contrasts, phantom.spacing)


def phantom_volume(
    seed: Seed,
    *,
    shape: tuple[int, int, int] = (24, 96, 96),
    contrasts: Sequence[str] = ("flair",),
    lesion: bool = False,
) -> Phantom:
    """Draw the upper part of a head as a stack of axial slices.

    Parameters
    ----------
    seed : int or SeedSequence
    shape : (D, H, W)
        Voxels; they are 72 / D mm thick.
    contrasts : sequence of str
        Any of "flair", "t1", "t2", "t1ce", one channel each.
    lesion : bool
        Put in one to three lesions. The head stays the same.

    Returns
    -------
    Phantom
        With image [C, D, H, W] and mask [D, H, W].

    Raises
    ------
    InputError
        If a contrast is unknown or the shape too small.
    """
    if shape[0] < 1:
        raise InputError(f"a volume needs at least 1 slice, got {shape[0]}")
    step = (HIGHEST_MM - LOWEST_MM) / shape[0]
    heights = np.array([LOWEST_MM + step * (k + 0.5) for k in range(shape[0])])
    return _draw(seed, heights, shape[1:], contrasts, lesion, slice_mm=step)


def write_phantoms(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (96, 96),
    contrasts: Sequence[str] = ("flair",),
    lesions: bool = False,
    slices: int | None = None,
    file_format: str = "png",
) -> None:
    """Write a set of phantoms: `images/`, `masks/` (with lesions), `manifest.csv`, `README.txt`.

    Parameters
    ----------
    folder : Path
        Must be empty or not exist; it appears when the set is complete.
    count : int
        Number of phantoms. Phantom i depends only on `seed` and i.
    seed, size, contrasts, lesions
        As for `phantom_slice`; lesions go into every phantom or into none.
    slices : int or None
        Write volumes of that many slices; None writes single slices.
    file_format : "png" or "nifti"
        PNG holds single slices of one contrast. NIfTI holds all: single slices of several
        contrasts as [C, H, W] without geometry, the rest in RAS with its spacing.

    Raises
    ------
    InputError
        If the options contradict each other, or a value is unknown or out of range.
    BerdiffError
        If the folder is not empty.
    """
    if file_format not in ("png", "nifti"):
        raise InputError(f"unknown file format '{file_format}'; expected 'png' or 'nifti'")
    if file_format == "png" and (slices is not None or len(contrasts) > 1):
        raise InputError("PNG holds one slice of one contrast; choose the file format 'nifti'")
    if count < 1:
        raise InputError(f"expected a count of at least 1, got {count}")
    suffix = ".png" if file_format == "png" else ".nii.gz"
    with atomic_folder(folder) as part:
        (part / "images").mkdir()
        if lesions:
            (part / "masks").mkdir()
        rows = []
        for index in range(count):
            phantom = _member(seed, index, size, contrasts, lesions, slices)
            name = f"phantom-{index:05d}{suffix}"
            _write(part / "images" / name, phantom.image, phantom)
            if lesions:
                _write(part / "masks" / name, phantom.mask[None], phantom)
            spacing = [f"{length:g}" for length in phantom.spacing]
            rows.append([name, seed, index, "+".join(contrasts), phantom.mask.sum(), *spacing])
        _write_manifest(part / "manifest.csv", rows)
        (part / "README.txt").write_text(_README, encoding="utf-8")


def _member(
    seed: int,
    index: int,
    size: tuple[int, int],
    contrasts: Sequence[str],
    lesion: bool,
    slices: int | None,
) -> Phantom:
    own = phantom_seed(seed, index)
    if slices is None:
        return phantom_slice(own, size=size, contrasts=contrasts, lesion=lesion)
    return phantom_volume(own, shape=(slices, *size), contrasts=contrasts, lesion=lesion)


def _stream(seed: Seed, *purpose: int) -> np.random.Generator:
    """Independent random numbers for one purpose, so that one never shifts another."""
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    key = (*root.spawn_key, *purpose)
    return np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=key))


def _draw(
    seed: Seed,
    heights: Array,
    size: tuple[int, int],
    contrasts: Sequence[str],
    lesion: bool,
    slice_mm: float,
) -> Phantom:
    known = list(CONTRASTS)
    if not contrasts or any(name not in CONTRASTS for name in contrasts):
        raise InputError(f"got the contrasts {list(contrasts)}; expected some of {known}")
    if min(size) < _SMALLEST:
        raise InputError(f"got a size of {size[0]} x {size[1]}; expected {_SMALLEST} or more")
    pixel_mm = max(_LONG_MM / size[0], _WIDE_MM / size[1])
    y, x = (np.float64(pixel_mm) * (np.arange(n) - (n - 1) / 2) for n in size)
    grid = Grid(x, y, heights, pixel_mm)
    tissue = Anatomy.draw(_stream(seed, 1)).tissue(grid)
    lesions = []
    if lesion:
        rng = _stream(seed, 2)
        lesions = [draw_lesion(rng, tissue, grid) for _ in range(rng.integers(1, 4))]
    image = [
        render(name, tissue, lesions, grid, _stream(seed, 3, known.index(name)))
        for name in contrasts
    ]
    mask = np.zeros(grid.shape, dtype=bool)
    for one in lesions:
        mask |= one.mask
    return Phantom(np.stack(image), mask, tuple(contrasts), (slice_mm, pixel_mm, pixel_mm))


def _write(path: Path, image: NDArray[np.generic], phantom: Phantom) -> None:
    """Write the image or the mask ([1, ...]) of a phantom in the format the suffix names."""
    truth = image.dtype == np.bool_
    if path.suffix == ".png":
        pixels = np.where(image[0], 255, 0) if truth else np.rint(image[0] * 65535.0)
        depth = np.uint8 if truth else np.uint16
        optional("PIL.Image", "images").fromarray(pixels.astype(depth)).save(path)
        return
    import nibabel as nib

    data = image.astype(np.uint8 if truth else np.float32)
    if data.ndim == 3 and len(phantom.contrasts) > 1:
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)  # channels first: no geometry fits
        return
    if data.ndim == 3:
        data = data[:, None]
    # [C, D, H, W] with rows to posterior -> (right, anterior, superior, C), as NIfTI counts.
    data = data.transpose(3, 2, 1, 0)[:, ::-1]
    if data.shape[-1] == 1:
        data = data[..., 0]
    step = np.array(phantom.spacing[::-1])
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = -step * (np.array(data.shape[:3]) - 1) / 2
    nib.save(nib.Nifti1Image(data, affine), path)


def _write_manifest(path: Path, rows: Iterable[Sequence[object]]) -> None:
    header = ["name", "seed", "index", "contrasts", "lesion_pixels"]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, "slice_mm", "row_mm", "column_mm"])
        writer.writerows(rows)
