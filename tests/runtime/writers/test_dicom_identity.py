"""Whose a result is, what it is called, and that the same run gives the same bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_results import MADE_BY, WRITERS, complaints, read, results, write
from dicom_sources import SHAPE, classic, multi_frame
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from berdiff.runtime.errors import InputError
from berdiff.runtime.provenance import NOTICE
from berdiff.runtime.writers.dicom_identity import derived_uid, in_ascii

KINDS = list(WRITERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("enhanced", [False, True])
def test_patient_and_study_stay_and_the_series_is_new(
    kind: str, enhanced: bool, tmp_path: Path
) -> None:
    sources = [multi_frame()] if enhanced else classic()
    data = write(kind, tmp_path / "out.dcm", read(tmp_path / "in", *sources))
    for keyword in (
        "PatientName PatientID PatientBirthDate PatientSex PatientAge StudyInstanceUID StudyDate "
        "StudyTime StudyID AccessionNumber ReferringPhysicianName StudyDescription "
        "FrameOfReferenceUID ContentDate ContentTime BodyPartExamined"
    ).split():
        assert data[keyword].value == sources[0][keyword].value, keyword
    assert str(data.PatientName) == "Müller^Jürgen"
    assert data.SeriesInstanceUID not in {source.SeriesInstanceUID for source in sources}
    assert data.SOPInstanceUID not in {source.SOPInstanceUID for source in sources}
    assert UID(data.SeriesInstanceUID).is_valid
    assert UID(data.SOPInstanceUID).is_valid
    assert data.SOPInstanceUID.startswith("2.25.")
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID


@pytest.mark.parametrize("kind", KINDS)
def test_names_say_berdiff_and_research(kind: str, tmp_path: Path) -> None:
    data = write(kind, tmp_path / "out.dcm", read(tmp_path / "in", *classic()))
    assert data.Manufacturer == "berdiff"
    assert data.ManufacturerModelName == MADE_BY.model
    assert data.SoftwareVersions == MADE_BY.software
    assert data.DeviceSerialNumber == MADE_BY.bundle[:16]
    assert data.SeriesDescription.startswith("berdiff anomaly")
    assert data.SeriesDescription.endswith(NOTICE)
    assert len(data.SeriesDescription) <= 64
    assert NOTICE in data.ContentDescription
    assert data.SeriesNumber == {"seg": 9007, "pmap": 19007}[kind]
    makers = [item.Manufacturer for item in data.ContributingEquipmentSequence]
    assert makers[:2] == ["Scanners Inc", "berdiff"]
    assert f"seed={MADE_BY.seed}" in data.ContributingEquipmentSequence[1].ContributionDescription


@pytest.mark.parametrize("kind", KINDS)
def test_equal_runs_give_equal_bytes_whatever_order_the_files_come_in(
    kind: str, tmp_path: Path
) -> None:
    contents = []
    for number, sources in enumerate((classic(), classic()[::-1])):
        path = tmp_path / f"{number}.dcm"
        write(kind, path, read(tmp_path / f"in{number}", *sources))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    "change",
    [{"seed": 3}, {"bundle": "e" * 64}, {"settings": {"steps": 26}}, {"threshold": 0.25}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_run_is_another_series(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    one = write(kind, tmp_path / "1.dcm", image)
    other = write(kind, tmp_path / "2.dcm", image, dataclasses.replace(MADE_BY, **change))
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.StudyInstanceUID == other.StudyInstanceUID


@pytest.mark.parametrize("kind", KINDS)
def test_other_pixels_never_go_by_the_same_uid(kind: str, tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    one = write(kind, tmp_path / "1.dcm", image)
    values = results(SHAPE)[kind]
    values[2, 3, 1] = not values[2, 3, 1]
    WRITERS[kind](tmp_path / "2.dcm", image.origin, values, image.affine, MADE_BY)
    assert (tmp_path / "2.dcm").read_bytes().find(one.SOPInstanceUID.encode()) < 0


def test_both_kinds_stand_apart(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    seg, pmap = (write(kind, tmp_path / f"{kind}.dcm", image) for kind in KINDS)
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber", "SeriesDescription"):
        assert seg[keyword].value != pmap[keyword].value


@pytest.mark.parametrize("kind", KINDS)
def test_a_stripped_source_has_its_results(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Without what type 2 demands and every date; and no name gets into a warning or log."""
    sources = classic()
    for source in sources:
        source.PatientName = "Nobodysname"  # no caret: highdicom warns of such, and quotes it
        for keyword in (
            "PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime SeriesNumber "
            "ReferringPhysicianName ContentDate ContentTime AcquisitionDate AcquisitionTime "
            "SeriesDate SeriesTime SliceThickness Manufacturer PositionReferenceIndicator"
        ).split():
            del source[keyword]
    data = write(kind, tmp_path / "out.dcm", read(tmp_path / "in", *sources))
    assert data.PatientName == "Nobodysname"
    assert data.PatientBirthDate == ""
    assert data.SeriesNumber == {"seg": 9000, "pmap": 19000}[kind]
    assert (data.ContentDate, data.ContentTime) == ("19000101", "000000")
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(2.5)  # the distance of the slices
    assert complaints(tmp_path / "out.dcm") == []
    said = [str(warning.message) for warning in recwarn.list] + [caplog.text]
    assert not any("Nobodysname" in text for text in said)


def test_an_identity_that_cannot_be_decoded_is_refused_without_quoting_it(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    tag, raw = Tag("PatientAge"), b"Secrets"  # as numbers of two bytes
    first = image.origin.datasets[0]
    first[tag] = RawDataElement(tag, "US", len(raw), raw, 0, False, True)
    with pytest.raises(InputError, match="PatientAge cannot be copied") as raised:
        write("seg", tmp_path / "out.dcm", image)
    assert "Secret" not in str(raised.value)
    assert not (tmp_path / "out.dcm").exists()


def test_an_identity_that_cannot_be_encoded_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    image.origin.datasets[0].add(DataElement("PatientAge", "US", "Secret", validation_mode=IGNORE))
    with pytest.raises(InputError, match="PatientAge cannot be copied") as raised:
        write("seg", tmp_path / "out.dcm", image)
    assert "Secret" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_identity_survives_other_encodings(kind: str, syntax: str, tmp_path: Path) -> None:
    """Implicit and big-endian sources, code extensions, and sequences with private elements."""
    sources = classic()
    for source in sources:
        source.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        source.PatientName = "Yamada^Tarou=山田^太郎"
        other = Dataset()
        other.PatientID, other.TypeOfPatientID = "Q-4", "TEXT"
        other.private_block(0x0011, "SOMEONE", create=True).add_new(1, "LO", "value")
        source.OtherPatientIDsSequence = [other]
        source.file_meta.TransferSyntaxUID = syntax
        pixels = np.frombuffer(source.PixelData, "<u2")[: source.Rows * source.Columns]
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        source["PixelData"] = DataElement("PixelData", "OW", _even(pixels.astype(order).tobytes()))
    data = write(kind, tmp_path / "out.dcm", read(tmp_path / "in", *sources))
    assert data.PatientName.ideographic == "山田^太郎"
    assert data.PatientName.alphabetic == "Yamada^Tarou"
    (other,) = data.OtherPatientIDsSequence
    assert (other.PatientID, other.TypeOfPatientID) == ("Q-4", "TEXT")
    value = other[0x0011, 0x1001].value  # of unknown type where the source did not say
    assert value == (b"value " if syntax == ImplicitVRLittleEndian else "value")
    assert complaints(tmp_path / "out.dcm") == []


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


@pytest.mark.parametrize("number", [-5, 0, 9999, 10000, 2**31 - 1])
def test_series_numbers_are_bounded(number: int, tmp_path: Path) -> None:
    sources = classic()
    for source in sources:
        source.SeriesNumber = number
    data = write("seg", tmp_path / "out.dcm", read(tmp_path / "in", *sources))
    assert 9000 <= data.SeriesNumber < 19000


def test_a_model_may_have_any_name(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    odd = dataclasses.replace(MADE_BY, model="gehirn\\größe\n" + "x" * 100, software="1\\2")
    for kind in KINDS:
        data = write(kind, tmp_path / f"{kind}.dcm", image, odd)
        assert data.ManufacturerModelName == ("gehirn_gr__e_" + "x" * 100)[:64]
        assert complaints(tmp_path / f"{kind}.dcm") == []


def test_derived_uids_are_valid_and_depend_on_every_part() -> None:
    uids = {derived_uid(*parts) for parts in (("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""))}
    assert len(uids) == 4
    assert derived_uid("a", "b") in uids
    assert all(UID(uid).is_valid and len(uid) <= 64 for uid in uids)


def test_text_is_cut_and_cleaned() -> None:
    assert in_ascii("a\\b\x00é[", 64) == "a_b__["
    assert in_ascii("abc def", 4) == "abc"
    np.testing.assert_equal(len(in_ascii("x" * 99, 64)), 64)
