"""Whose a DICOM result is, and how it says what made it.

A result belongs to the patient, study and frame of reference of its series; its own UIDs, numbers
and descriptions say that berdiff made it. Equal runs of one installation give equal bytes: UIDs
are derived from what went in, and the content's date and time are those of the source, since the
time of the run is no property of the result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from ..errors import InputError, optional
from ..provenance import NOTICE, Provenance

if TYPE_CHECKING:
    from pydicom import Dataset

Kind = Literal["seg", "pmap", "sc"]

MANUFACTURER = "berdiff"

_WHAT: dict[Kind, str] = {"seg": "anomaly mask", "pmap": "anomaly map", "sc": "anomaly summary"}
# Added to the source's series number, so that all kinds stand apart from it and from each other.
_FIRST_NUMBER: dict[Kind, int] = {"seg": 9000, "pmap": 19000, "sc": 29000}
_NUMBERS = 10000

# Copied from the source as they are, right or wrong: who was examined, and in which study.
_PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "PatientAge",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
)
_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
)
_SIDES = ("R", "L", "B", "U")

_DAY = re.compile(r"\d{8}")
_MOMENTS = ("Content", "Acquisition", "Series", "Study")
# Where a source was stripped of all its dates: an image must have one.
_NO_DATE, _NO_TIME = "19000101", "000000"


class Origin(Protocol):
    """The headers of the images that a scan was read from.

    Attributes
    ----------
    datasets : sequence of pydicom.Dataset
        Without pixels: one for each slice in the order of K, or one that has all of them as frames.
    frame_numbers : sequence of int
        Frame of each slice, from 1, in the order of K; empty where each has a file of its own.
    """

    @property
    def datasets(self) -> Sequence[Dataset]: ...  # noqa: D102 (above)

    @property
    def frame_numbers(self) -> Sequence[int]: ...  # noqa: D102 (above)


def derived_uid(*parts: str) -> str:
    """UID below 2.25 that depends on `parts` and nothing else."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def in_ascii(text: str, limit: int) -> str:
    """Text that stands in any character set, in one value of at most `limit` characters."""
    return re.sub(r"[^ -\[\]-~]", "_", text)[:limit].strip()


def own_identity(
    origin: Origin, pixels: NDArray[Any], made_by: Provenance, kind: Kind
) -> dict[str, Any]:
    """Arguments by which highdicom's constructors say which object it is and what made it.

    The series UID depends on the source series and everything in `made_by`; the instance UID
    on the pixels too, so that different content never goes by one UID.

    Parameters
    ----------
    origin : Origin
        The source.
    pixels : ndarray, shape (K, rows, columns)
        What the object holds.
    made_by : Provenance
        What made it.
    kind : {"seg", "pmap", "sc"}
        Kind of the object.
    """
    highdicom = optional("highdicom", "dicom")
    first = origin.datasets[0]
    run = json.dumps(dataclasses.asdict(made_by), sort_keys=True)
    series = derived_uid(kind, str(first.SeriesInstanceUID), run)
    content = hashlib.sha256(str(pixels.shape).encode())
    for frame in pixels:
        content.update(frame.tobytes())
    return {
        "series_instance_uid": series,
        "sop_instance_uid": derived_uid(series, content.hexdigest(), highdicom.__version__),
        "series_number": _FIRST_NUMBER[kind] + _number(first) % _NUMBERS,
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": in_ascii(made_by.model, 64) or "unnamed",
        "software_versions": in_ascii(made_by.software, 64),
        "device_serial_number": made_by.bundle[:16],
        "series_description": f"{MANUFACTURER} {_WHAT[kind]}, {NOTICE}",
        "content_label": "ANOMALY",
        "content_description": f"Anomalies found by {MANUFACTURER}. {NOTICE}",
        "contributing_equipment": [_processing(made_by)],
    }


def settle(result: Dataset, origin: Origin) -> None:
    """Give an object of highdicom its patient and study, and take away what differs between runs.

    Parameters
    ----------
    result : pydicom.Dataset
        A capture, or made for stand-ins of the source; see `dicom_planes`. Changed in place.
    origin : Origin
        The source.

    Raises
    ------
    InputError
        If the source's patient or study cannot be decoded or encoded.
    """
    first = origin.datasets[0]
    result.update(_identity_of(first))
    _name_body_part(result, first)
    result.ContentDate, result.ContentTime = _moment(first)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in result:
            del result[keyword]
    for item in result.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    organisation = derived_uid(str(result.SOPInstanceUID), "dimensions")
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in result.get(name, ()):
            item.DimensionOrganizationUID = organisation


def settings_of(made_by: Provenance) -> dict[str, str]:
    """What the run was started with, as text."""
    return {
        "bundle": made_by.bundle,
        "backend": made_by.backend,
        "device": made_by.device,
        "seed": str(made_by.seed),
        "threshold": f"{made_by.threshold!r}",
        "threshold_source": made_by.threshold_source,
        **{name: str(value) for name, value in made_by.settings.items()},
    }


def _identity_of(first: Dataset) -> Dataset:
    """Patient and study of the source as they are, if they can be written at all."""
    identity = optional("pydicom", "dicom").Dataset()
    keyword = ""
    try:
        for keyword in (*_PATIENT, *_STUDY):
            if keyword in first:
                identity.add(first[keyword])
                _encode(identity[keyword], first.get("SpecificCharacterSet"))
    except Exception as error:  # of pydicom and of Python's codecs; its words quote the value
        raise InputError(
            f"the series' {keyword} cannot be copied ({type(error).__name__}); write NIfTI or PNG "
            "instead"
        ) from error
    return identity


def _encode(element: Any, character_set: Any) -> None:
    """Write an element to nowhere. In a file, its error could not be told from one of the disk."""
    charset = optional("pydicom.charset", "dicom")
    target = optional("pydicom.filebase", "dicom").DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    encodings = charset.convert_encodings(character_set)
    optional("pydicom.filewriter", "dicom").write_data_element(target, element, encodings)


def _name_body_part(result: Dataset, first: Dataset) -> None:
    """Say which part of the body it is, and which side, as far as the source does.

    Where neither is known, a parametric map has to say so by an empty Laterality, and a
    segmentation must not.
    """
    part = first.get("BodyPartExamined")
    side = first.get("ImageLaterality") or first.get("Laterality")
    if part:
        result.BodyPartExamined = part
    if side in _SIDES:
        result.ImageLaterality = side
    elif not part and "SegmentSequence" not in result:
        result.Laterality = ""


def _processing(made_by: Provenance) -> Any:
    """What processed the images, for the list of contributing equipment."""
    highdicom = optional("highdicom", "dicom")
    codes = optional("pydicom.sr.codedict", "dicom").codes
    settings = ", ".join(f"{name}={value}" for name, value in settings_of(made_by).items())
    return highdicom.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=in_ascii(made_by.model, 64) or "unnamed",
        software_versions=in_ascii(made_by.software, 64),
        device_serial_number=made_by.bundle[:16],
        contribution_description=in_ascii(f"{NOTICE}. {settings}", 1024),
    )


def _number(first: Dataset) -> int:
    """Series number of the source; 0 where it has none that can be read."""
    try:
        return max(0, int(first.get("SeriesNumber") or 0))
    except (TypeError, ValueError):
        return 0


def _moment(first: Dataset) -> tuple[str, str]:
    """Date and time of the source's content, or the nearest that it has."""
    for name in _MOMENTS:
        date = str(first.get(f"{name}Date") or "")
        time = str(first.get(f"{name}Time") or "")
        if _DAY.fullmatch(date):
            return date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else _NO_TIME
    return _NO_DATE, _NO_TIME
