"""Received objects on the disk: what their headers say of them, and how they get there for good."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...preprocessing import Preprocessing
from ...scans.dicom_bytes import DicomError, parse

Buffer = bytes | bytearray | memoryview

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "NumberOfFrames", "ImagesInAcquisition", "NumberOfSlices",
]  # fmt: skip
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MOST = 10**6  # what no count of slices exceeds


@dataclass(frozen=True)
class Header:
    """What a node has to know of an object.

    Attributes
    ----------
    unit : str
        SHA-256 of what is examined as one: the UID of its series, or, where the model takes several
        contrasts, those of its study and frame of reference.
    series : str
        SHA-256 of its SeriesInstanceUID.
    sop : str
        SHA-256 of its SOPInstanceUID.
    slices : int
        How many slices it holds.
    stated : int
        How many images its header says there are; 0 where it says nothing.
    """

    unit: str
    series: str
    sop: str
    slices: int
    stated: int


def hashed(*uids: str) -> str:
    """SHA-256 by which logs and files name what has these UIDs."""
    return hashlib.sha256("\0".join(uids).encode()).hexdigest()


def read_header(content: bytes, sop_class: str, sop: str, preprocessing: Preprocessing) -> Header:
    """Read what is needed from an object as it came.

    Parameters
    ----------
    content : bytes
        The object, with DICOM's preamble.
    sop_class, sop : str
        What it was announced as.
    preprocessing : Preprocessing
        Says whether series or studies are examined.

    Raises
    ------
    DicomError
        If it is damaged, or not what it was announced as.
    """
    data = parse(content, header_only=True, tags=_TAGS)
    try:
        uids = {name: str(data.get(name) or "") for name in _TAGS[:5]}
        counts = {name: _count(data.get(name)) for name in _TAGS[5:]}
    except Exception as error:  # a value that its representation cannot hold
        raise DicomError("damaged", "its header cannot be read") from error
    if (uids["SOPClassUID"], uids["SOPInstanceUID"]) != (sop_class, sop):
        raise DicomError("announced", "it is not the object that was announced")
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not _UID.fullmatch(uids[name]) or len(uids[name]) > 64:
            raise DicomError("uid", f"its {name} is missing or none")
    study, series = uids["StudyInstanceUID"], uids["SeriesInstanceUID"]
    one = preprocessing.channels == 1
    return Header(
        unit=hashed(series) if one else hashed(study, uids["FrameOfReferenceUID"]),
        series=hashed(series),
        sop=hashed(uids["SOPInstanceUID"]),
        slices=max(1, counts["NumberOfFrames"]),
        stated=max(counts["ImagesInAcquisition"], counts["NumberOfSlices"]),
    )


def _count(value: Any) -> int:
    try:
        return min(_MOST, max(0, int(value or 0)))
    except (TypeError, ValueError):
        return 0


def place_of(folder: Path, header: Header, digest: str) -> Path:
    """Where an object lies: a path of its content, so that no content ever changes."""
    return folder / "objects" / header.unit[:32] / f"{header.sop[:32]}-{digest[:32]}.dcm"


def digest_of(parts: Iterable[Buffer]) -> str:
    """SHA-256 of a file made of these parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_durably(path: Path, parts: Sequence[Buffer]) -> None:
    """Write a file that a power cut cannot take back once this has returned.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with open(handle, "wb", buffering=0) as stream:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[stream.write(left) :]
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or made inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, kept: set[str], jobs: set[str]) -> None:
    """Remove what a killed node left: files that no record names, and results of no job.

    Only while nothing is received.

    Parameters
    ----------
    folder : Path
        The spool.
    kept : set of str
        Paths below it of the objects that are recorded.
    jobs : set of str
        Names of the folders of results that are recorded.
    """
    for unit in _entries(folder / "objects"):
        for file in _entries(unit):
            if file.relative_to(folder).as_posix() not in kept:
                file.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            unit.rmdir()
    for results in _entries(folder / "results"):
        if results.name not in jobs:
            shutil.rmtree(results)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def free_mib(folder: Path) -> float:
    """MiB that are free on the disk of a folder."""
    return shutil.disk_usage(folder).free / 2**20
