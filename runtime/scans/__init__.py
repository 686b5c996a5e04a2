"""Scans: finding files, reading them, and writing results back onto their own grid."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..preprocessing import Preprocessing
from . import nifti, picture
from .scan import Scan, check_content

SUFFIXES = (*nifti.SUFFIXES, *picture.SUFFIXES)

__all__ = [
    "SUFFIXES",
    "Scan",
    "find_scans",
    "other_files",
    "read_scan",
    "result_suffix",
    "scan_names",
]


def suffix_of(path: Path) -> str:
    """Return the suffix a scan is read by, in lower case ("" where it is none of ours)."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def result_suffix(path: Path) -> str:
    """Suffix of a scan's results: ".nii.gz" for NIfTI, ".png" for pictures."""
    return ".nii.gz" if suffix_of(path) in nifti.SUFFIXES else ".png"


def find_scans(path: Path) -> list[Path]:
    """List the scans of a folder and its subfolders, or the one file given, sorted by path.

    Hidden files and folders (a leading dot) are passed over, and so are links to folders.

    Raises
    ------
    InputError
        If there is none.
    """
    path = Path(path)
    expected = f"expected {', '.join(SUFFIXES)}"
    if path.is_dir():
        found = [file for file in _files(path) if suffix_of(file)]
        if not found:
            raise InputError(f"found no scan in {path}; {expected}")
        return found
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not suffix_of(path):
        raise InputError(f"{path} is no scan by its name; {expected}")
    return [path]


def other_files(path: Path) -> list[Path]:
    """List the files of a folder that `find_scans` ignores because of their suffix."""
    path = Path(path)
    return [file for file in _files(path) if not suffix_of(file)] if path.is_dir() else []


def _files(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


def scan_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """Name each scan for its results: path below `root` without suffix, unique.

    Files that differ in their suffix only (``a.png``, ``a.nii.gz``), or in upper and lower case
    only, keep their full name, with dots as dashes at the end: ``a-png``, ``a-nii-gz``.
    """
    names = {path: _relative(path, root)[: -len(suffix_of(path))] for path in paths}
    for attempt in range(len(paths)):
        counts = Counter(name.casefold() for name in names.values())
        clashes = [path for path, name in names.items() if counts[name.casefold()] > 1]
        if not clashes:
            break
        for number, path in enumerate(clashes):
            full = names[path] + suffix_of(path).replace(".", "-")
            names[path] = full if attempt == 0 else f"{full}-{number}"
    return names


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path != root else Path(path.name)).as_posix()


def read_scan(path: Path, preprocessing: Preprocessing, *, allow_constant: bool = False) -> Scan:
    """Read a scan.

    Parameters
    ----------
    path : Path
        A file with one of `SUFFIXES`.
    preprocessing : Preprocessing
        The model's intended input: number of channels, orientation.
    allow_constant : bool
        Accept an image that shows nothing, as a mask may.

    Raises
    ------
    InputError
        Saying what is wrong with the file and what was expected.
    MissingDependency
        If the library that reads this format is not installed.
    """
    path = Path(path)
    reader = nifti.read_nifti if suffix_of(path) in nifti.SUFFIXES else picture.read_picture
    scan = reader(path, preprocessing)
    check_content(scan.slices, allow_constant)
    return scan
