"""Finding DICOM series: which files hold images, and which belong together."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .dicom_bytes import is_dicom, parse
from .source import FileRef

MAX_MEMBERS = 100_000
_MAX_UNPACKED = 2**37  # bytes that an archive may claim to hold
_MAX_DIRECTORY = 2**25  # bytes that describe its members
_MAX_COMMENT = 2**16 + 200  # how far from its end the place of those is written

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "Modality", "SeriesNumber", "SeriesDescription", "ProtocolName",
    "ContrastBolusAgent", "EchoTime", "RepetitionTime", "InversionTime", "Rows", "Columns",
]  # fmt: skip
_START = 2**18  # bytes that nearly always hold these

OPHTHALMIC_TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
# Storage classes with Rows and Columns that are no images of a scan.
_NO_SCAN = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "an RT dose",
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture",
}


def _words(*words: str) -> re.Pattern[str]:
    """Match any of some words, whatever they are joined with."""
    return re.compile(rf"(?<![a-z0-9])({'|'.join(words)})(?![a-z])")


_FLAIR = _words("t2flair", "flair", "dark.?fluid")
_T1 = _words("t1", "t1w", "t1ce", "t1c", "mprage", "mp2rage", "bravo", "spgr", "tfl3d")
_T2 = _words("t2", "t2w")
_ENHANCED = _words("gd", "gad", "gado", "ce", "t1ce", "t1c", "post", "km", r"\+c", "contrast")
_PLAIN = _words("pre", "without", "no", "non", "native?", "wo", "w/o", "plain")
_NO_AGENT = _words("none", "no", "null", "n/a")
_OTHER = _words(
    "swi", "dwi", "diff", "adc", "dti", "bold", "epi", "asl", "perf", r"t2\*", "t2star", "t1.?map",
    "t2.?map", "tof", "scout", "localizer", "loc", "survey",
)  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """A file that is no image of a scan; without a reason, it is no DICOM at all."""

    file: FileRef
    reason: str = ""


@dataclass(frozen=True)
class DicomSeries:
    """The images of one series.

    Attributes
    ----------
    series_uid, study_uid, frame_of_reference : str
        Its UIDs; the last empty where it has none.
    sop_class : str
        Storage class of its first image.
    modality : str
        (0008,0060), such as "MR".
    series_number : int or None
        (0020,0011).
    contrast : str or None
        "t1", "t1ce", "t2", "flair", "ct", "oct"; None where the header does not say clearly.
    files : tuple of FileRef
        Sorted by SOP instance UID: whatever they are called, and wherever they lie.
    """

    series_uid: str
    study_uid: str
    frame_of_reference: str
    sop_class: str
    modality: str
    series_number: int | None
    contrast: str | None
    files: tuple[FileRef, ...]

    @property
    def summary(self) -> str:
        """What it is, without anything that might name somebody."""
        number = "" if self.series_number is None else f" {self.series_number}"
        return f"{self.modality} series{number}, contrast {self.contrast or 'not stated'}"


def expand(archive: FileRef) -> list[FileRef]:
    """List the members of a zip archive; nothing is unpacked.

    Folders, encrypted members and archives inside the archive are left out.

    Raises
    ------
    InputError
        If it is no zip archive, or claims more members or bytes than are allowed.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive.path) as opened:
            members = opened.infolist()
    except InputError:
        raise
    except Exception as error:  # damaged archives fail in many ways
        raise InputError(f"it cannot be read as a zip archive ({type(error).__name__})") from error
    if len(members) > MAX_MEMBERS:
        raise InputError(f"the archive has {len(members)} members; the limit is {MAX_MEMBERS}")
    claimed = sum(member.file_size for member in members)
    if claimed > _MAX_UNPACKED:
        raise InputError(
            f"the archive claims to hold {claimed} bytes; the limit is {_MAX_UNPACKED}"
        )
    return [
        FileRef(archive.path, member.filename)
        for member in members
        if member.filename
        and not member.is_dir()
        and not member.flag_bits & 1
        and not member.filename.lower().endswith(".zip")
    ]


def _check_directory(archive: FileRef) -> None:
    """Refuse a directory of members that is too large before Python reads it."""
    size = archive.path.stat().st_size
    with open(archive.path, "rb") as stream:
        stream.seek(max(0, size - _MAX_COMMENT))
        end = stream.read()
    at, large = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    members = directory = 0
    if 0 <= at <= len(end) - 22:
        members, directory = struct.unpack_from("<HI", end, at + 10)
    if 0 <= large <= len(end) - 56:  # numbers that need more bits
        members, directory = struct.unpack_from("<QQ", end, large + 32)
    if members > MAX_MEMBERS or directory > _MAX_DIRECTORY:
        raise InputError(
            f"the archive has {members} members, described in {directory} bytes; the limits are "
            f"{MAX_MEMBERS} and {_MAX_DIRECTORY}"
        )


def find_series(
    files: Sequence[FileRef], *, force: bool = False
) -> tuple[list[DicomSeries], list[Skipped]]:
    """Group files into series by what their headers say.

    Parameters
    ----------
    files : sequence of FileRef
        Any files.
    force : bool
        Take files without DICOM's preamble for DICOM too.

    Returns
    -------
    list of DicomSeries
        Sorted by study and series number.
    list of Skipped
        All other files.
    """
    groups: dict[str, list[tuple[str, FileRef]]] = {}
    headers: dict[str, Any] = {}
    skipped: list[Skipped] = []
    for file in files:
        try:
            header = _header(file, force)
        except InputError as error:
            skipped.append(Skipped(file, str(error)))
            continue
        reason = "" if header is None else _no_image(header)
        if header is None or reason:
            skipped.append(Skipped(file, reason))
            continue
        uid = _text(header, "SeriesInstanceUID")
        headers.setdefault(uid, header)
        groups.setdefault(uid, []).append((_text(header, "SOPInstanceUID"), file))
    series = [_series(uid, headers[uid], members) for uid, members in groups.items()]
    return sorted(series, key=lambda s: (s.study_uid, s.series_number or 0, s.series_uid)), skipped


def _header(file: FileRef, force: bool) -> Any:
    """Read what identifies an image; None where the file is no DICOM."""
    start = file.read_start(_START)
    if not is_dicom(start) and not force:
        return None
    whole = len(start) < _START
    try:
        header = parse(start, header_only=True, tags=_TAGS)
    except InputError:
        if whole:
            raise
        header = None
    # A cut within a header is no error to pydicom: what comes late may be missing.
    if header is None or not (whole or _number(header, "Columns")):
        header = parse(file.read(), header_only=True, tags=_TAGS)
    return header


def _text(header: Any, keyword: str) -> str:
    try:
        value = header.get(keyword)
    except Exception:  # a value that its representation cannot hold
        return ""
    return "" if value is None else str(value).strip()


def _number(header: Any, keyword: str) -> float | None:
    try:
        return float(_text(header, keyword))
    except ValueError:
        return None


def _no_image(header: Any) -> str:
    """Why an object is no image of a scan; empty where it is one."""
    if not _text(header, "SeriesInstanceUID"):
        return "DICOM without a series"
    kind = _NO_SCAN.get(_text(header, "SOPClassUID").removesuffix(".1"), "")
    if not kind and not (_number(header, "Rows") and _number(header, "Columns")):
        kind = "an object without an image"
    return f"DICOM, but {kind}" if kind else ""


def _series(uid: str, header: Any, members: list[tuple[str, FileRef]]) -> DicomSeries:
    number = _number(header, "SeriesNumber")
    sane = number is not None and abs(number) < 2**31
    return DicomSeries(
        series_uid=uid,
        study_uid=_text(header, "StudyInstanceUID"),
        frame_of_reference=_text(header, "FrameOfReferenceUID"),
        sop_class=_text(header, "SOPClassUID"),
        modality=re.sub(r"[^A-Z0-9]", "", _text(header, "Modality").upper())[:16] or "unknown",
        series_number=int(number) if sane and number is not None else None,
        contrast=_contrast(header),
        files=tuple(file for _, file in sorted(members)),
    )


def _contrast(header: Any) -> str | None:
    """Contrast by modality, by description, and where that says nothing by the timing of MR.

    Descriptions that name a map, diffusion, perfusion or a localizer say nothing about contrast.
    Timing counts only where it is typical: inversion over 1.5 s with an echo over 60 ms is FLAIR,
    repetition under 0.9 s with an echo under 30 ms and no inversion T1, repetition over 2 s with an
    echo over 70 ms and no inversion T2.
    """
    modality = _text(header, "Modality").upper()
    if modality in ("CT", "OPT"):
        return {"CT": "ct", "OPT": "oct"}[modality]
    if modality != "MR":
        return None
    said = f"{_text(header, 'SeriesDescription')} {_text(header, 'ProtocolName')}".lower()
    if _OTHER.search(said):
        return None
    is_t1, is_t2 = bool(_T1.search(said)), bool(_T2.search(said))
    if _FLAIR.search(said):
        return None if is_t1 else "flair"  # T1 with inversion is called FLAIR, too
    if is_t1 == is_t2:
        found = None if is_t1 else _by_timing(header)
    else:
        found = "t1" if is_t1 else "t2"
    return _with_agent(header, said) if found == "t1" else found


def _with_agent(header: Any, said: str) -> str | None:
    """T1 with or without contrast agent; None where description and agent disagree."""
    agent = _text(header, "ContrastBolusAgent").lower()
    given = bool(agent) and not _NO_AGENT.search(agent)
    if _PLAIN.search(said):
        return None if given else "t1"
    return "t1ce" if given or _ENHANCED.search(said) else "t1"


def _by_timing(header: Any) -> str | None:
    names = ("EchoTime", "RepetitionTime", "InversionTime")
    echo, repetition, inversion = (_number(header, name) for name in names)
    if echo is None or repetition is None:
        return None
    if inversion and inversion > 1500 and echo > 60:
        return "flair"
    if inversion:
        return None
    if repetition < 900 and echo < 30:
        return "t1"
    return "t2" if repetition > 2000 and echo > 70 else None
