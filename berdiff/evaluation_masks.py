"""Masks of an evaluation: which belongs to which scan, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.errors import InputError
from berdiff.runtime.scan_job import ScanJob
from berdiff.runtime.scans import find_files, read_scan, scan_names


def pair_masks(names: Sequence[str], masks: Path) -> dict[str, Path]:
    """Find the mask of each scan, by the scan's name.

    Parameters
    ----------
    names : sequence of str
        Names of the scans: path below their folder without suffix.
    masks : Path
        Folder with masks of the same names (suffixes may differ), or the mask of the one scan.

    Raises
    ------
    InputError
        Naming the scans whose mask is missing.
    """
    found = find_files(masks)
    if not masks.is_dir() and len(names) == 1:
        return dict.fromkeys(names, found[0])
    by_name = {name: path for path, name in scan_names(found, masks).items()}
    missing = [name for name in names if name not in by_name]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{len(missing)} of {len(names)} scans have no mask in {masks}: {listed}; a mask has "
            "the scan's file name, with any suffix, in the same subfolder"
        )
    return {name: by_name[name] for name in names}


def read_mask(path: Path, job: ScanJob) -> NDArray[np.bool_]:
    """Read the mask of a scan.

    Parameters
    ----------
    path : Path
        A scan of one channel: 0 is healthy, anything else is not.
    job : ScanJob
        The scan it belongs to.

    Returns
    -------
    ndarray of bool, shape (S, H0, W0)
        Oriented like the scan.

    Raises
    ------
    InputError
        If it cannot be read, is a JPEG, or does not fit the scan.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"{path}: JPEG blurs the edges of a mask; save it as PNG or NIfTI")
    one_channel = dataclasses.replace(job.preprocessing, channels=1, modalities=("mask",))
    try:
        scan = read_scan(path, one_channel, allow_constant=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    mask = scan.slices[:, 0] != 0
    flat, flat_mask = job.scan.kind != "volume", scan.kind != "volume"
    if mask.shape != job.inside.shape or flat != flat_mask:
        raise InputError(
            f"{path}: the mask is a {scan.kind} of {_size(mask)}, its scan {job.scan.source.key} "
            f"is a {job.scan.kind} of {_size(job.inside)}; they must be the same grid"
        )
    return mask


def _size(mask: NDArray[np.bool_]) -> str:
    slices, rows, columns = mask.shape
    return f"{rows} x {columns} pixels" + (f", {slices} slices" if slices > 1 else "")
