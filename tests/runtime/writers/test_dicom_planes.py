"""Where the slices lie: what is refused, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_results import MADE_BY, WRITERS, read, results
from dicom_sources import (
    OPHTHALMIC_TOMOGRAPHY,
    ORIENTATIONS,
    SHAPE,
    classic,
    multi_frame,
)
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from berdiff.runtime.errors import InputError
from berdiff.runtime.scans.dicom import DicomImage
from berdiff.runtime.writers.dicom_planes import read_planes

SWAPS = {
    "rows flipped": np.diag([1.0, -1, 1, 1]),
    "columns flipped": np.diag([-1.0, 1, 1, 1]),
    "slices flipped": np.diag([1.0, 1, -1, 1]),
    "rows and columns swapped": np.eye(4)[[1, 0, 2, 3]],
}


def refuses(image: DicomImage, folder: Path, match: str) -> None:
    values = results(image.values.shape)
    for kind, write in WRITERS.items():
        with pytest.raises(InputError, match=match) as raised:
            write(folder / "out.dcm", image.origin, values[kind], image.affine, MADE_BY)
        assert "instead" in str(raised.value)
    assert not list(folder.glob("*.dcm"))
    assert not list(folder.glob(".part*"))


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("swap", SWAPS)
def test_an_affine_that_is_not_the_series_is_refused(name: str, swap: str, tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic(ORIENTATIONS[name]))
    refuses(replace(image, affine=image.affine @ SWAPS[swap]), tmp_path, "off the planes")


def test_a_grid_one_slice_off_is_refused(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    moved = image.affine.copy()
    moved[:3, 3] += moved[:3, 2]
    refuses(replace(image, affine=moved), tmp_path, "2.5 mm off the planes")


def test_another_shape_is_refused(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    turned = image.values.transpose(1, 0, 2)
    refuses(replace(image, values=turned), tmp_path, r"\(7, 9, 5\).*\(9, 7, 5\)")


def _without_positions(source: Dataset) -> None:
    for frame in source.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def _in_one_place(source: Dataset) -> None:
    frames = source.PerFrameFunctionalGroupsSequence
    for frame in frames:
        frame.PlanePositionSequence = frames[0].PlanePositionSequence


def _radial(source: Dataset) -> None:
    del source.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for number, frame in enumerate(source.PerFrameFunctionalGroupsSequence):
        angle = np.pi * number / SHAPE[2]
        turn = Dataset()
        turn.ImageOrientationPatient = [
            round(value, 9) for value in (np.cos(angle), np.sin(angle), 0, 0, 0, -1)
        ]
        frame.PlaneOrientationSequence = [turn]


def _without_frame_of_reference(source: Dataset) -> None:
    del source.FrameOfReferenceUID


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_without_positions, "no position"),
        (_in_one_place, "in one place"),
        (_radial, "differ in orientation"),
        (_without_frame_of_reference, "no valid FrameOfReferenceUID"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_b_scans_that_lie_nowhere_or_anyhow_are_refused(
    change: object, match: str, tmp_path: Path
) -> None:
    source = multi_frame(sop_class=OPHTHALMIC_TOMOGRAPHY)
    change(source)  # type: ignore[operator]
    refuses(read(tmp_path / "in", source), tmp_path, match)


def test_a_kind_of_image_that_highdicom_does_not_know_is_refused(tmp_path: Path) -> None:
    sources = classic()
    for source in sources:
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID = "1.2.3.4.5.6.7"
    refuses(read(tmp_path / "in", *sources), tmp_path, "cannot refer to images of this kind")


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("uid", ["", "x^y", "1." * 40])
def test_a_source_that_no_reference_can_point_to_is_refused(
    keyword: str, uid: str, tmp_path: Path
) -> None:
    image = read(tmp_path / "in", *classic())
    for source in image.origin.datasets:
        source.add(DataElement(keyword, "UI", uid, validation_mode=IGNORE))
    refuses(image, tmp_path, "lacks a UID")


def test_slices_that_go_by_one_uid_are_refused(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    image.origin.datasets[3].SOPInstanceUID = image.origin.datasets[1].SOPInstanceUID
    refuses(image, tmp_path, "same SOPInstanceUID")


@pytest.mark.parametrize("thickness", ["-1", "0", "thin", None])
def test_a_thickness_that_makes_no_sense_is_the_distance(
    thickness: str | None, tmp_path: Path
) -> None:
    image = read(tmp_path / "in", *classic())
    for source in image.origin.datasets:
        del source.SliceThickness
        if thickness is not None:
            raw = thickness.encode()
            tag = Tag("SliceThickness")
            source[tag] = RawDataElement(tag, "DS", len(raw), raw, 0, False, True)
    assert read_planes(image.origin).thickness == pytest.approx(2.5)


def test_planes_are_those_of_the_headers(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic(ORIENTATIONS["oblique"]))
    planes = read_planes(image.origin)
    assert planes.spacing == (0.75, 1.25)
    assert planes.thickness == 2
    assert planes.distance == pytest.approx(2.5)
    ours = np.diag([-1, -1, 1, 1]) @ image.affine
    np.testing.assert_allclose(planes.positions[3], (ours @ [0, 0, 3, 1])[:3], atol=1e-6)
