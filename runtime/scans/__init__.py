"""Scans: finding them, reading them, and the grid their results go back to."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..preprocessing import Preprocessing
from . import channels, nifti, picture
from .find import (
    FORMATS,
    SUFFIXES,
    Found,
    InputFormat,
    file_source,
    find_files,
    find_scans,
    scan_names,
)
from .geometry import Grid
from .privacy import hide_names
from .scan import Scan, check_content
from .source import FileRef, ScanSource

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "FileRef",
    "Found",
    "Grid",
    "InputFormat",
    "Scan",
    "ScanSource",
    "file_source",
    "find_files",
    "find_scans",
    "hide_names",
    "read_scan",
    "scan_names",
]


def read_scan(
    source: ScanSource | Path, preprocessing: Preprocessing, *, allow_constant: bool = False
) -> Scan:
    """Read a scan.

    Parameters
    ----------
    source : ScanSource or Path
        From `find_scans`; or a file: NIfTI, MGH or a picture.
    preprocessing : Preprocessing
        The model's intended input: number of channels, orientation.
    allow_constant : bool
        Accept an image that shows nothing, as a mask may.

    Raises
    ------
    InputError
        Saying what is wrong with it and what was expected.
    MissingDependency
        If the library that reads this format is not installed.
    """
    if isinstance(source, Path):
        source = file_source(source)
    if source.problem:
        raise InputError(source.problem)
    scan = _read(source, preprocessing)
    check_content(scan.slices, allow_constant)
    return scan


def _read(source: ScanSource, preprocessing: Preprocessing) -> Scan:
    if source.format == "dicom":
        from .dicom_source import read_dicom

        return read_dicom(source, preprocessing)
    if source.format == "picture":
        return picture.read_picture(source, preprocessing)
    if len(source.files) > 1:
        return channels.read_channels(source, preprocessing)
    return nifti.read_nifti(source, preprocessing)
