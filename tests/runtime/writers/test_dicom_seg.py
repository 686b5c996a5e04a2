"""Segmentations: the mask on the frames of its source, as other programs read it."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_results import (
    MADE_BY,
    assert_same_places,
    by_place,
    complaints,
    expected_by_place,
    read,
    results,
    write,
)
from dicom_sources import CT, MR, ORIENTATIONS, SHAPE, classic, multi_frame

from berdiff.runtime.writers.dicom_seg import write_segmentation


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("sop_class", [MR, CT])
def test_every_voxel_of_the_mask_lies_where_it_lay_in_the_scan(
    name: str, sop_class: str, tmp_path: Path
) -> None:
    image = read(tmp_path / "in", *classic(ORIENTATIONS[name], sop_class))
    data = write("seg", tmp_path / "seg.dcm", image)
    expected = expected_by_place(results(SHAPE)["seg"], image.affine)
    assert sum(expected.values()) > 20
    assert_same_places(by_place(data), expected)


@pytest.mark.parametrize("name", ["oblique", "flipped"])
@pytest.mark.parametrize("shared", [True, False])
def test_multi_frame_sources_keep_places_and_frame_numbers(
    name: str, shared: bool, tmp_path: Path
) -> None:
    order = [2, 0, 4, 1, 3]
    source = multi_frame(ORIENTATIONS[name], shared_orientation=shared, order=order)
    image = read(tmp_path / "in", source)
    data = write("seg", tmp_path / "seg.dcm", image)
    expected = expected_by_place(results(SHAPE)["seg"], image.affine)
    assert_same_places(by_place(data), expected)
    for frame in data.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        theirs = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            theirs.PlanePositionSequence[0].ImagePositionPatient,
            atol=1e-6,
        )
    assert complaints(tmp_path / "seg.dcm") == []


def test_frames_refer_to_the_slices_they_lie_on(tmp_path: Path) -> None:
    sources = classic(ORIENTATIONS["oblique flipped"])
    image = read(tmp_path / "in", *sources)
    data = write("seg", tmp_path / "seg.dcm", image)
    places = {source.SOPInstanceUID: source.ImagePositionPatient for source in sources}
    referred = set()
    for frame in data.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        referred.add(reference.ReferencedSOPInstanceUID)
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            places[reference.ReferencedSOPInstanceUID],
            atol=1e-6,
        )
    assert referred == set(places)
    (series,) = data.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    listed = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert listed == set(places)


def test_highdicom_reads_the_same_volume(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic(ORIENTATIONS["oblique"]))
    write("seg", tmp_path / "seg.dcm", image)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    mask = results(SHAPE)["seg"]
    for index in np.argwhere(mask):
        place = np.diag([-1, -1, 1, 1]) @ image.affine @ [*index, 1]
        there = np.rint(volume.map_reference_to_indices(place[None, :3])[0]).astype(int)
        assert volume.array[tuple(there)] == 1
    assert volume.array.sum() == mask.sum()


def test_it_says_what_it_is_and_what_made_it(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    data = write("seg", tmp_path / "seg.dcm", image)
    assert data.SegmentationType == "BINARY"
    assert data.NumberOfFrames == SHAPE[2]  # an empty slice has its frame
    (segment,) = data.SegmentSequence
    assert segment.SegmentLabel == "Anomaly"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == MADE_BY.model
    assert algorithm.AlgorithmVersion == f"{MADE_BY.software} {MADE_BY.bundle[:16]}"
    parameters = algorithm.AlgorithmParameters
    text = parameters if isinstance(parameters, str) else "".join(parameters)
    assert f"seed={MADE_BY.seed}" in text
    assert f"bundle={MADE_BY.bundle}" in text
    assert "threshold=0.125" in text


@pytest.mark.parametrize("sop_class", [MR, CT])
@pytest.mark.parametrize("body", ["HEAD", None])
def test_dciodvfy_finds_no_error(sop_class: str, body: str | None, tmp_path: Path) -> None:
    sources = classic(ORIENTATIONS["oblique"], sop_class)
    for source in sources:
        if body is None:
            del source.BodyPartExamined
    write("seg", tmp_path / "seg.dcm", read(tmp_path / "in", *sources))
    assert complaints(tmp_path / "seg.dcm") == []


def test_a_mask_of_nothing_and_one_slice_can_be_written(tmp_path: Path) -> None:
    image = read(tmp_path / "in", classic()[0])
    empty = np.zeros((*SHAPE[:2], 1), np.bool_)
    write_segmentation(tmp_path / "seg.dcm", image.origin, empty, image.affine, MADE_BY)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.NumberOfFrames == 1
    assert not data.pixel_array.any()
    assert complaints(tmp_path / "seg.dcm") == []
